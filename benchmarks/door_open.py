"""An exported door-open policy, run without torch in an environment of its own, beside the evaluation of the pipeline.

    python -m benchmarks.door_open

Trains, evaluates and exports the policy of CVL with the default settings (``kedro run``; fresh artifacts stay), makes
an environment with numpy, onnxruntime and metaworld in ``.venv-peers``, and runs ``examples/robot.py`` there on the
seeds of the evaluation. Both have the same start and goal in every episode, so success should be the same.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.common import PROJECT, RESULTS, kedro_run, write_record
from benchmarks.speed import Contender, python_of

TASK, STEPS = "door-open-v3", 200
PACKAGES = ("numpy", "onnxruntime", "metaworld", "mujoco")
ROBOT = Contender(
    "robot", "examples/robot.py", (), "", environment="robot",
    requirements=(
        ("numpy", "onnxruntime", *(f"{name}=={metadata.version(name)}" for name in ("metaworld", "mujoco"))),
    ),
)  # fmt: skip
VERSIONS = (
    "import importlib.metadata as m, json, sys; print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
)


def robot(folder: Path, seeds: list[int]) -> dict[str, Any]:
    """Run the exported folder in the environment without torch; return what examples/robot.py prints, and versions."""
    python = python_of(ROBOT)
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary) / "seeds.json"
        place.write_text(json.dumps(seeds))
        script = str(PROJECT / "examples/robot.py")
        command = [str(python), "-I", script, str(folder.resolve()), str(place), str(STEPS)]
        found: dict[str, Any] = json.loads(_output(command))
    return found | {"versions": json.loads(_output([str(python), "-I", "-c", VERSIONS, *PACKAGES]))}


def _output(command: list[str]) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]


def main() -> None:
    """Compare, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="seed of the run")
    options = parser.parse_args()
    params = f"dataset.task={TASK},seed={options.seed}"
    kedro_run("--only-missing-outputs", params=params)
    kedro_run("--only-missing-outputs", "--pipelines", "export", params=params)
    run = f"{TASK}/seed_{options.seed}"
    pipeline = pd.read_parquet(PROJECT / f"data/07_model_output/{run}/cvl_rollouts.parquet")
    seeds = [int(seed) for seed in pipeline["episode_seed"]]
    alone = robot(PROJECT / f"data/06_models/{run}/cvl_exported", seeds)
    if alone["torch_imported"]:
        raise SystemExit(
            "torch was imported beside the runner: the environment is not the one that was asked for"
        )
    successes = pipeline["success"].to_numpy(bool), np.array(alone["successes"])
    gaps = np.abs(pipeline["return"].to_numpy() - np.array(alone["returns"]))
    record = write_record(
        RESULTS / "deploy_success.json",
        task=TASK, steps=STEPS, episodes=len(seeds), seeds=seeds,
        pipeline={
            "versions": {name: metadata.version(name) for name in ("torch", *PACKAGES)},
            "successes": successes[0].tolist(), "returns": pipeline["return"].tolist(),
        },
        runner=alone,
        same_success=int((successes[0] == successes[1]).sum()), largest_difference_of_return=float(gaps.max()),
    )  # fmt: skip
    print(  # noqa: T201
        f"success in the pipeline {successes[0].sum()}, by the runner alone {successes[1].sum()} of {len(seeds)}; the "
        f"same in {record['same_success']} episodes; returns differ by at most {gaps.max():.3g}"
    )


if __name__ == "__main__":
    main()
