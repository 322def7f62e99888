"""Baselines of this package beside d3rlpy's implementations of the same methods (docs/benchmarks.md).

Both train on the same episodes of the same file, with the same networks, batch size, learning rate and steps. Both
policies act in the same evaluation episodes, in this package's environment. One cell is a method, a dataset and a seed.
Finished cells are kept in the record, and a cell is rerun if its settings or its log change.

    python -m benchmarks.references --data      # train policies with SAC, and record the logs
    python -m benchmarks.references --methods bc iql --datasets medium medium-expert --seeds 0 1 2
    python -m benchmarks.references --jobs 16 --steps 10000 cql=5000 --device gpu

SBX, for the logs, is installed from PyPI into ``.venv-peers`` on first use. So is d3rlpy, if this environment lacks it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import shutil
import sys
import traceback
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from importlib import metadata, util
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import torch
from scipy import stats

from benchmarks.common import PROJECT, RESULTS, half_width, kedro_run, markdown, write_record
from benchmarks.speed import D3RLPY, ONE_CORE, TORCH, Contender, output, python_of
from cvl_pipeline.api import load
from cvl_pipeline.environments.evaluation import evaluate
from cvl_pipeline.environments.gymnasium import GymnasiumEnvironment
from cvl_pipeline.episodes.preparation import episode_summary
from cvl_pipeline.methods.base import METHODS

ENVIRONMENT = "HalfCheetah-v5"
DATA = PROJECT / "data/references"
"""Default folder of the logs, of the SAC policies, and of the pipeline's artifacts."""
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
    "d3rlpy", "benchmarks.peers.d3rlpy_policy", (), "",
    environment=None if util.find_spec("d3rlpy") else "d3rlpy", requirements=D3RLPY,
)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """A method, a dataset and a seed, and all that the cell's run needs besides.

    Attributes:
        method: name in METHODS.
        dataset: one of DATASETS.
        seed: of both trainings, of the split into training and validation episodes, and of the evaluation.
        steps: gradient steps.
        episodes: evaluation episodes.
        data: folder with ``logs``, in which the cell gets a folder of its own while it runs.
        device: ``cpu`` or ``gpu``, for both sides.
    """

    method: str
    dataset: str
    seed: int
    steps: int
    episodes: int
    data: Path
    device: str

    @property
    def place(self) -> dict[str, Any]:
        """What distinguishes cells in the record."""
        return {"dataset": self.dataset, "method": self.method, "seed": self.seed}

    @property
    def log(self) -> Path:
        """Path of the log."""
        return log_path(self.data, self.dataset)

    @property
    def name(self) -> str:
        """Name of the dataset in the pipeline."""
        return f"halfcheetah-{self.dataset}"

    @property
    def folder(self) -> Path:
        """Folder of the pipeline's artifacts, so that cells can run side by side."""
        return self.data / f"cells/{self.dataset}_{self.method}_{self.seed}"

    def settings(self, digest: str) -> dict[str, Any]:
        """Everything that decides the returns, besides the seed and rounding.

        Args:
            digest: of the log.
        """
        return {
            "environment": ENVIRONMENT,
            "log": digest,
            "steps": self.steps,
            "episodes": self.episodes,
            "hidden": list(HIDDEN),
            "batch": BATCH,
            "learning_rate": RATE,
            "settings": SETTINGS[self.method],
        }

    def parameters(self) -> str:
        """Parameters of the pipeline's run, for ``kedro run --params``."""
        own: dict[str, Any] = {
            "method": self.method,
            "hidden": " ".join(map(str, HIDDEN)),
            "training.steps": self.steps,
            "training.batch_size": BATCH,
            "training.learning_rate": RATE,
            "training.validation_interval": self.steps,
            "training.accelerator": self.device,
            **SETTINGS[self.method],
        }
        values = {
            "dataset.source": "d4rl",
            "dataset.task": self.name,
            "dataset.path": self.log,
            "dataset.name": self.name,
            "data.root": self.folder,
            "seed": self.seed,
            "evaluation.environment": ENVIRONMENT,
            "evaluation.episodes": self.episodes,
            "evaluation.workers": 1,
            **{f"baselines.{self.method}.{name}": value for name, value in own.items()},
        }
        return ",".join(f"{name}={value}" for name, value in values.items())

    def artifact(self, layer: str, name: str) -> Path:
        """Path of an artifact of the pipeline."""
        return self.folder / layer / self.name / f"seed_{self.seed}" / name

    def ours(self) -> list[float]:
        """Train and evaluate this package's method with ``kedro run``; return the return of each episode."""
        kedro_run(
            "--runner", "SequentialRunner", "--to-nodes", f"evaluation.score_{self.method}",
            params=self.parameters(),
        )  # fmt: skip
        table = pd.read_parquet(self.artifact("07_model_output", f"{self.method}_rollouts.parquet"))
        return [float(value) for value in table["return"]]

    def reference(self) -> tuple[list[float], dict[str, Any]]:
        """Train d3rlpy's method on the training episodes of our run, and evaluate it in the same episodes.

        Returns:
            The return of each episode, and the report of the training.
        """
        policy = self.folder / "policy.pt"
        trained = run_peer(
            REFERENCE, method=self.method, log=str(self.log), policy=str(policy), seed=self.seed, steps=self.steps,
            episodes=load(self.artifact("02_intermediate", "split.safetensors")).train.tolist(),
            hidden=HIDDEN, batch=BATCH, learning_rate=RATE, settings=SETTINGS[self.method],
            device="cuda:0" if self.device == "gpu" else "cpu:0",
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # d3rlpy exports TorchScript or ONNX alone
            network = torch.jit.load(policy, map_location="cpu")  # type: ignore[no-untyped-call]
        recorded = evaluate(
            network, partial(GymnasiumEnvironment, ENVIRONMENT), episodes=self.episodes, seed=self.seed, workers=1,
            name=f"d3rlpy {self.method}",
        )  # fmt: skip
        return [float(value) for value in episode_summary(*recorded)["return"]], trained

    def run(self, digest: str) -> dict[str, Any]:
        """Run both sides and return the cell's entry in the record; its artifacts are deleted."""
        shutil.rmtree(self.folder, ignore_errors=True)
        ours = self.ours()
        theirs, trained = self.reference()
        shutil.rmtree(self.folder)
        return {
            **self.place,
            "settings": self.settings(digest),
            "device": self.device,
            "ours": ours,
            "reference": theirs,
            "trained": trained,
        }


def run_peer(peer: Contender, one_core: bool = False, **job: Any) -> dict[str, Any]:
    """Run a script in its own environment and return its last line, JSON.

    Args:
        peer: the script and its environment.
        one_core: whether it is bound to one core of the machine, the same for all such scripts.
        job: its argument.
    """
    command = [str(python_of(peer)), "-m", peer.module, json.dumps(job)]
    text = output(command, one_core=one_core, limit=HOURS)
    result: dict[str, Any] = json.loads(text.strip().splitlines()[-1])
    return result


def log_path(data: Path, dataset: str) -> Path:
    """Path of a log."""
    return data / f"logs/{dataset}.hdf5"


def log_digest(path: Path) -> str:
    """SHA-256 of a log's arrays, so that the way in which they are compressed does not matter."""
    digest = hashlib.sha256()
    with h5py.File(path) as file:
        for name in sorted(file):
            digest.update(name.encode())
            digest.update(file[name][()].tobytes())
    return digest.hexdigest()


def make_data(data: Path, steps: int) -> None:
    """Train SAC for a number of steps and record the logs; unfinished training goes on."""
    folder = data / "logs"
    print(f"training SAC in {ENVIRONMENT} and recording logs in {folder}", flush=True)  # noqa: T201
    made = run_peer(
        COLLECTOR, one_core=True,
        folder=str(folder), environment=ENVIRONMENT, steps=steps, seed=LOG_SEED, episodes=LOG_EPISODES,
    )  # fmt: skip
    print(json.dumps(made))  # noqa: T201


def interval(values: Sequence[float]) -> dict[str, float | None]:
    """Mean over seeds, and half the width of its 95 % interval by Student's t; None for a single seed."""
    count = len(values)
    half = float(half_width(stats.sem(values), count - 1)) if count > 1 else None
    return {"mean": float(np.mean(values)), "ci": half}


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
                "steps": str(row["steps"]),
                "cvl-pipeline": cell(row["ours"]),
                "d3rlpy": cell(row["reference"]),
                "difference": cell(row["difference"], "+"),
                "contains zero": answers[row["difference"]["contains_zero"]],
            }
            for row in rows
        )
    )


def run_cells(cells: Sequence[Cell], path: Path, jobs: int) -> dict[str, Any]:
    """Run all cells that the record lacks, save the record after each, and return it.

    The record's table has the cells at hand, in the given order; cells that fail are reported and left out.

    Args:
        cells: the cells, in the order of the table.
        path: of the record.
        jobs: cells at once.
    """
    known: list[dict[str, Any]] = json.loads(path.read_text())["cells"] if path.exists() else []
    digests = {log: log_digest(log) for log in {cell.log for cell in cells}}

    def at_hand(cell: Cell) -> dict[str, Any] | None:
        wanted = {**cell.place, "settings": cell.settings(digests[cell.log])}
        return next((other for other in known if wanted.items() <= other.items()), None)

    def save() -> dict[str, Any]:
        wanted = [entry for cell in cells if (entry := at_hand(cell))]
        return write_record(path, measured=bool(todo), summary=summarise(wanted), cells=known)

    # Seeds last in the order of the table, but first in time: an interrupted comparison has whole rows of few seeds.
    todo = sorted((cell for cell in cells if not at_hand(cell)), key=lambda cell: cell.seed)
    if todo:
        python_of(REFERENCE)  # install it once
    os.environ.update(ONE_CORE)
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(cell.run, digests[cell.log]): cell for cell in todo}
        for number, future in enumerate(as_completed(futures), 1):
            cell = futures[future]
            try:
                entry = future.result()
            except (Exception, SystemExit):
                traceback.print_exc()
                print(f"{number}/{len(todo)} {cell.place}: failed", flush=True)  # noqa: T201
                continue
            known = [other for other in known if not cell.place.items() <= other.items()] + [entry]
            means = f"{np.mean(entry['ours']):.0f}, d3rlpy {np.mean(entry['reference']):.0f}"
            print(f"{number}/{len(todo)} {cell.place}: {means}", flush=True)  # noqa: T201
            save()
    return save()


def check(methods: Sequence[str], data: Path, datasets: Sequence[str]) -> None:
    """Exit if a method is not part of this package yet, or a log is missing."""
    unknown = [method for method in methods if method not in METHODS.names]
    if unknown:
        sys.exit(
            f"--methods: {', '.join(unknown)}: not a method of this package ({', '.join(METHODS.names)})"
        )
    missing = [str(path) for dataset in datasets if not (path := log_path(data, dataset)).exists()]
    if missing:
        sys.exit(f"no log {missing[0]}; make it: python -m benchmarks.references --data")


def steps_of(given: Sequence[str]) -> dict[str, int]:
    """Read ``--steps``: a number for all methods, and ``method=number`` for one; exit if it is neither."""
    steps: dict[str, int] = {}
    for text in sorted(given, key=lambda text: "=" in text):
        name, _, number = text.rpartition("=")
        if not number.isdecimal() or int(number) < 1 or (name and name not in SETTINGS):
            sys.exit(f"--steps: {text}: neither a number nor method=number ({', '.join(SETTINGS)})")
        steps |= dict.fromkeys([name] if name else SETTINGS, int(number))
    return steps


def main() -> None:
    """Make the logs, or compare; save and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", action="store_true", help="make the logs, and stop")
    parser.add_argument("--data-steps", type=int, default=50_000, help="steps of SAC in the environment")
    parser.add_argument("--methods", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--datasets", nargs="+", choices=DATASETS, default=["medium", "medium-expert"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", nargs="+", default=[], help="gradient steps (20000), or method=steps")
    parser.add_argument("--episodes", type=int, default=10, help="evaluation episodes per policy")
    parser.add_argument("--jobs", type=int, default=1, help="cells at once")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu", help="device of both sides")
    parser.add_argument("--data-root", type=Path, default=DATA, help="folder of the logs and artifacts")
    parser.add_argument("--record", type=Path, default=RECORD, help="path of the record")
    arguments = parser.parse_args()
    data = arguments.data_root.resolve()
    if arguments.data:
        make_data(data, arguments.data_steps)
        return
    check(arguments.methods, data, arguments.datasets)
    steps = steps_of(["20000", *arguments.steps])
    cells = [
        Cell(method, dataset, seed, steps[method], arguments.episodes, data, arguments.device)
        for dataset in arguments.datasets
        for method in arguments.methods
        for seed in arguments.seeds
    ]
    record = run_cells(cells, arguments.record, arguments.jobs)
    print(table(record["summary"]))  # noqa: T201
    if sum(len(row["seeds"]) for row in record["summary"]) < len(cells):
        sys.exit("some cells failed")


if __name__ == "__main__":
    main()
