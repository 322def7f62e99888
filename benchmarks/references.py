"""Baselines of this package beside d3rlpy's implementations of the same methods (docs/benchmarks.md).

Both train on the same episodes of the same file, with the same networks, batch size, learning rate and steps. Both
policies act in the same evaluation episodes, in this package's environment. One cell is a method, a dataset and a seed.
Finished cells are kept in the record, and a cell is rerun if its settings or its log change.

    python -m benchmarks.references --data      # train policies with SAC, and record the logs
    python -m benchmarks.references --methods bc iql --datasets medium medium-expert --seeds 0 1 2

Libraries of other environments (SBX for the logs, d3rlpy) are installed from PyPI into ``.venv-peers`` on first use.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats

from benchmarks.common import PROJECT, RESULTS, kedro_run, markdown, write_record
from benchmarks.speed import D3RLPY, TORCH, Contender, output, python_of
from cvl_pipeline.api import load
from cvl_pipeline.environments.evaluation import evaluate
from cvl_pipeline.environments.gymnasium import GymnasiumEnvironment
from cvl_pipeline.episodes.preparation import episode_summary
from cvl_pipeline.methods.base import METHODS

ENVIRONMENT = "HalfCheetah-v5"
DATA = PROJECT / "data/references"
"""Folder of the logs, of the SAC policies, and of the pipeline's artifacts."""
RECORD = RESULTS / "references.json"
DATASETS = ("random", "medium", "medium-expert")
LOG_EPISODES = 100
"""Episodes of each policy in the logs."""
LOG_SEED = 0
HOURS = 4 * 3600.0
"""Time limit in seconds of one training in another environment."""
HIDDEN, BATCH, RATE = (256, 256), 256, 3e-4

VALUES = {"discount": 0.99, "target_rate": 0.005}
SETTINGS: dict[str, dict[str, float]] = {
    "bc": {},
    "iql": VALUES | {"expectile": 0.7, "beta": 3.0, "max_weight": 100.0},
    "td3_bc": VALUES | {"alpha": 2.5, "policy_delay": 2, "target_noise": 0.2, "noise_clip": 0.5},
    "cql": VALUES | {"conservative_weight": 5.0, "samples": 10, "actor_rate": 1.0 / 3.0},
}
"""Settings of each method, under this package's names. ``peers.d3rlpy_policy`` translates them for d3rlpy."""

SIMULATOR = (
    f"gymnasium[mujoco]=={metadata.version('gymnasium')}",
    f"mujoco=={metadata.version('mujoco')}",
)
COLLECTOR = Contender(
    "SBX", "benchmarks.peers.sbx", (), "", environment="sbx",
    requirements=(("sbx-rl==0.28.0", "jax==0.10.2", "h5py", TORCH, *SIMULATOR),),
)  # fmt: skip
REFERENCE = Contender(
    "d3rlpy", "benchmarks.peers.d3rlpy_policy", (), "", environment="d3rlpy", requirements=D3RLPY
)


def run_peer(peer: Contender, **job: Any) -> dict[str, Any]:
    """Run a script in its own environment, on one core, and return its last line, JSON."""
    text = output([str(python_of(peer)), "-m", peer.module, json.dumps(job)], one_core=True, limit=HOURS)
    result: dict[str, Any] = json.loads(text.strip().splitlines()[-1])
    return result


def log_path(dataset: str) -> Path:
    """Path of a log."""
    return DATA / f"logs/{dataset}.hdf5"


def make_data(steps: int) -> None:
    """Train SAC for a number of steps and record the logs; unfinished training goes on."""
    folder = log_path("").parent
    print(f"training SAC in {ENVIRONMENT} and recording logs in {folder}", flush=True)  # noqa: T201
    made = run_peer(
        COLLECTOR, folder=str(folder), environment=ENVIRONMENT, steps=steps, seed=LOG_SEED, episodes=LOG_EPISODES
    )  # fmt: skip
    print(json.dumps(made))  # noqa: T201


def dataset_name(dataset: str) -> str:
    """Name of the folder of a dataset's artifacts."""
    return f"halfcheetah-{dataset}"


def settings_of(method: str, dataset: str, steps: int, episodes: int) -> dict[str, Any]:
    """Everything that decides the returns of a cell, besides the seed."""
    return {
        "environment": ENVIRONMENT,
        "log": hashlib.sha256(log_path(dataset).read_bytes()).hexdigest(),
        "steps": steps,
        "episodes": episodes,
        "hidden": list(HIDDEN),
        "batch": BATCH,
        "learning_rate": RATE,
        "settings": SETTINGS[method],
    }


def parameters_of(method: str, dataset: str, seed: int, steps: int, episodes: int) -> str:
    """Parameters of the pipeline's run of a cell, for ``kedro run --params``."""
    own: dict[str, Any] = {
        "method": method,
        "hidden": f"[{','.join(map(str, HIDDEN))}]",
        "training.steps": steps,
        "training.batch_size": BATCH,
        "training.learning_rate": RATE,
        "training.validation_interval": steps,
        **SETTINGS[method],
    }
    values = {
        "dataset.source": "d4rl",
        "dataset.task": dataset_name(dataset),
        "dataset.path": log_path(dataset),
        "dataset.name": dataset_name(dataset),
        "data.root": DATA,
        "seed": seed,
        "evaluation.environment": ENVIRONMENT,
        "evaluation.episodes": episodes,
        "evaluation.workers": 1,
        **{f"baselines.{method}.{name}": value for name, value in own.items()},
    }
    return ",".join(f"{name}={value}" for name, value in values.items())


def artifact(layer: str, dataset: str, seed: int, name: str) -> Path:
    """Path of an artifact of the pipeline."""
    return DATA / layer / dataset_name(dataset) / f"seed_{seed}" / name


def our_returns(method: str, dataset: str, seed: int, steps: int, episodes: int) -> list[float]:
    """Train and evaluate this package's method with ``kedro run``; return the return of each episode."""
    kedro_run(
        "--runner", "SequentialRunner", "--to-nodes", f"evaluation.score_{method}",
        params=parameters_of(method, dataset, seed, steps, episodes),
    )  # fmt: skip
    table = pd.read_parquet(artifact("07_model_output", dataset, seed, f"{method}_rollouts.parquet"))
    return [float(value) for value in table["return"]]


def reference_returns(
    method: str, dataset: str, seed: int, steps: int, episodes: int
) -> tuple[list[float], dict[str, Any]]:
    """Train d3rlpy's method on the training episodes of our run, and evaluate it in the same episodes.

    Returns:
        The return of each episode, and the report of the training.
    """
    policy = DATA / f"policies/{method}_{dataset}_{seed}.pt"
    policy.parent.mkdir(parents=True, exist_ok=True)
    trained = run_peer(
        REFERENCE, method=method, log=str(log_path(dataset)), policy=str(policy), seed=seed, steps=steps,
        episodes=load(artifact("02_intermediate", dataset, seed, "split.safetensors")).train.tolist(),
        hidden=HIDDEN, batch=BATCH, learning_rate=RATE, settings=SETTINGS[method],
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # d3rlpy exports TorchScript or ONNX alone
        network = torch.jit.load(policy)  # type: ignore[no-untyped-call]
    recorded = evaluate(
        network, partial(GymnasiumEnvironment, ENVIRONMENT), episodes=episodes, seed=seed, workers=1,
        name=f"d3rlpy {method}",
    )  # fmt: skip
    return [float(value) for value in episode_summary(*recorded)["return"]], trained


def interval(values: Sequence[float]) -> dict[str, float | None]:
    """Mean over seeds, and half the width of its 95 % interval by Student's t; None for a single seed."""
    count = len(values)
    half = stats.t.ppf(0.975, count - 1) * np.std(values, ddof=1) / np.sqrt(count) if count > 1 else None
    return {"mean": float(np.mean(values)), "ci": None if half is None else float(half)}


def difference(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """Difference of two means over seeds, its 95 % interval by Welch's t, and whether that contains zero.

    The last two are None for a single seed, or if all returns are equal.
    """
    gap = float(np.mean(ours) - np.mean(theirs))
    if min(len(ours), len(theirs)) < 2 or np.ptp(ours) == np.ptp(theirs) == 0.0:
        return {"mean": gap, "ci": None, "contains_zero": None}
    bounds = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(0.95)
    return {
        "mean": gap,
        "ci": float(bounds.high - bounds.low) / 2.0,
        "contains_zero": bool(bounds.low <= 0.0 <= bounds.high),
    }


def summarise(cells: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Compare the means over episodes of all seeds, one row per dataset and method, in the order of the cells."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for cell in cells:
        groups.setdefault((cell["dataset"], cell["method"]), []).append(cell)
    rows = []
    for (dataset, method), group in groups.items():
        ours, theirs = ([float(np.mean(cell[name])) for cell in group] for name in ("ours", "reference"))
        rows.append(
            {
                "dataset": dataset,
                "method": method,
                "seeds": [cell["seed"] for cell in group],
                "steps": group[0]["settings"]["steps"],
                "ours": interval(ours),
                "reference": interval(theirs),
                "difference": difference(ours, theirs),
            }
        )
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Format the summary as Markdown."""
    answers = {True: "yes", False: "no", None: "n/a"}

    def cell(estimate: dict[str, Any], sign: str = "") -> str:
        half = "" if estimate["ci"] is None else f" ± {estimate['ci']:.0f}"
        return f"{estimate['mean']:{sign}.0f}{half}"

    return markdown(
        pd.DataFrame(
            {
                "dataset": row["dataset"],
                "method": row["method"],
                "seeds": str(len(row["seeds"])),
                "cvl-pipeline": cell(row["ours"]),
                "d3rlpy": cell(row["reference"]),
                "difference": cell(row["difference"], "+"),
                "contains zero": answers[row["difference"]["contains_zero"]],
            }
            for row in rows
        )
    )


def run_cells(
    methods: Sequence[str], datasets: Sequence[str], seeds: Sequence[int], steps: int, episodes: int
) -> dict[str, Any]:
    """Run all cells that the record lacks, save the record after each, and return it."""
    known = json.loads(RECORD.read_text())["cells"] if RECORD.exists() else []
    wanted: list[dict[str, Any]] = []
    # Seeds last in the order of the table, but first in time: an interrupted comparison has whole rows of few seeds.
    for seed in seeds:
        for dataset in datasets:
            for method in methods:
                place = {"dataset": dataset, "method": method, "seed": seed}
                settings = settings_of(method, dataset, steps, episodes)
                cell = next(
                    (
                        other
                        for other in known
                        if place.items() <= other.items() and other["settings"] == settings
                    ),
                    None,
                )
                if cell is None:
                    ours = our_returns(method, dataset, seed, steps, episodes)
                    theirs, trained = reference_returns(method, dataset, seed, steps, episodes)
                    cell = {
                        **place,
                        "settings": settings,
                        "ours": ours,
                        "reference": theirs,
                        "trained": trained,
                    }
                    known = [other for other in known if not place.items() <= other.items()] + [cell]
                    print(f"{place}: {np.mean(ours):.0f}, d3rlpy {np.mean(theirs):.0f}", flush=True)  # noqa: T201
                wanted.append(cell)
                write_record(RECORD, summary=summarise(wanted), cells=known)
    return write_record(RECORD, summary=summarise(wanted), cells=known)


def check(methods: Sequence[str], datasets: Sequence[str]) -> None:
    """Exit if a method is not part of this package yet, or a log is missing."""
    unknown = [method for method in methods if method not in METHODS.names]
    if unknown:
        sys.exit(
            f"--methods: {', '.join(unknown)}: not a method of this package ({', '.join(METHODS.names)})"
        )
    missing = [str(log_path(dataset)) for dataset in datasets if not log_path(dataset).exists()]
    if missing:
        sys.exit(f"no log {missing[0]}; make it: python -m benchmarks.references --data")


def main() -> None:
    """Make the logs, or compare; save and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", action="store_true", help="make the logs, and stop")
    parser.add_argument("--data-steps", type=int, default=50_000, help="steps of SAC in the environment")
    parser.add_argument("--methods", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--datasets", nargs="+", choices=DATASETS, default=["medium", "medium-expert"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=20_000, help="gradient steps of each method")
    parser.add_argument("--episodes", type=int, default=10, help="evaluation episodes per policy")
    arguments = parser.parse_args()
    if arguments.data:
        make_data(arguments.data_steps)
        return
    check(arguments.methods, arguments.datasets)
    record = run_cells(
        arguments.methods, arguments.datasets, arguments.seeds, arguments.steps, arguments.episodes
    )
    print(table(record["summary"]))  # noqa: T201


if __name__ == "__main__":
    main()
