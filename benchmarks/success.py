"""Success of CVL, BC and the behaviour data on Meta-World tasks, over seeds: the table of docs/benchmarks.md.

Every cell comes from a whole ``kedro run``, so the numbers are those that a user gets. The default seeds
were never used while settings were tuned (docs/tuning.md), so neither were their data and goals.

    python benchmarks/success.py --tasks reach-v3 door-open-v3 push-v3 drawer-close-v3 --seeds 10 11 12
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

PROJECT = Path(__file__).parents[1]
POLICIES = {"cvl": "rollouts", "bc": "bc_rollouts", "behaviour": "episodes"}
LAYERS = {"rollouts": "07_model_output", "bc_rollouts": "07_model_output", "episodes": "02_intermediate"}
RESAMPLES = 10_000


def run(task: str, seed: int, params: str, keep: bool) -> float | None:
    """Run the pipeline for one task and seed; seconds, or None if its results are kept."""
    if keep and (PROJECT / f"data/08_reporting/{task}/seed_{seed}/metrics.json").exists():
        return None
    command = [
        str(Path(sys.executable).with_name("kedro")),
        "run",
        "--params",
        ",".join(filter(None, [f"dataset.task={task},seed={seed}", params])),
    ]
    print(shlex.join(["kedro", *command[1:]]), flush=True)  # noqa: T201
    start = time.perf_counter()
    subprocess.run(command, cwd=PROJECT, check=True)
    return time.perf_counter() - start


def episodes(task: str, seed: int) -> dict[str, NDArray[np.float64]]:
    """Success (0 or 1) of every episode of each policy."""
    return {
        policy: pd.read_parquet(
            PROJECT / f"data/{LAYERS[table]}/{task}/seed_{seed}/{table}.parquet", columns=["success"]
        )["success"].to_numpy(np.float64)
        for policy, table in POLICIES.items()
    }


def resampled_means(runs: list[NDArray[np.float64]], generator: np.random.Generator) -> NDArray[np.float64]:
    """Means over seeds with the episodes of every seed resampled: a bootstrap stratified by seed."""
    means = [
        values[generator.integers(len(values), size=(RESAMPLES, len(values)))].mean(1) for values in runs
    ]
    return np.asarray(np.mean(means, axis=0))


def summarise(tasks: list[str], seeds: list[int]) -> dict[str, Any]:
    """Means and 95 % intervals per task and policy, and of the difference CVL - BC over all tasks."""
    generator = np.random.default_rng(0)
    summary: dict[str, Any] = {}
    differences = []
    for task in tasks:
        runs = [episodes(task, seed) for seed in seeds]
        resampled = {name: resampled_means([r[name] for r in runs], generator) for name in POLICIES}
        summary[task] = {
            name: {
                "mean": float(np.mean([r[name].mean() for r in runs])),
                "ci": np.quantile(resampled[name], [0.025, 0.975]).tolist(),
                "seeds": [float(r[name].mean()) for r in runs],
            }
            for name in POLICIES
        }
        differences.append(resampled["cvl"] - resampled["bc"])
    gains = [summary[task]["cvl"]["mean"] - summary[task]["bc"]["mean"] for task in tasks]
    summary["cvl - bc"] = {
        "mean": float(np.mean(gains)),
        "ci": np.quantile(np.mean(differences, axis=0), [0.025, 0.975]).tolist(),
    }
    return summary


def table(summary: dict[str, Any], tasks: list[str]) -> str:
    """The summary as a Markdown table."""
    lines = ["| task | behaviour data | BC | CVL | CVL, each seed |", "|---|---|---|---|---|"]
    for task in tasks:
        cells = [
            "{mean:.2f} [{ci[0]:.2f}, {ci[1]:.2f}]".format(**summary[task][name])
            for name in ("behaviour", "bc", "cvl")
        ]
        cells.append(", ".join(f"{value:.2f}" for value in summary[task]["cvl"]["seeds"]))
        lines.append(f"| {task} | {' | '.join(cells)} |")
    gain = summary["cvl - bc"]
    lines.append(
        f"\nCVL - BC, mean over tasks: {gain['mean']:+.2f} [{gain['ci'][0]:+.2f}, {gain['ci'][1]:+.2f}]"
    )
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, then write and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--tasks", nargs="+", default=["reach-v3", "door-open-v3", "push-v3", "drawer-close-v3"]
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[10, 11, 12])
    parser.add_argument("--params", default="", help="more kedro --params, such as evaluation.episodes=100")
    parser.add_argument(
        "--keep", action="store_true", help="do not rerun finished runs (made by the same settings?)"
    )
    arguments = parser.parse_args()
    seconds = [
        run(task, seed, arguments.params, arguments.keep)
        for task in arguments.tasks
        for seed in arguments.seeds
    ]
    timed = [value for value in seconds if value is not None]
    summary = summarise(arguments.tasks, arguments.seeds)
    record = {
        "command": shlex.join(["python", "benchmarks/success.py", *sys.argv[1:]]),
        "seeds": arguments.seeds,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}",
        "seconds_per_run": {"mean": float(np.mean(timed)), "max": max(timed)} if timed else None,
        "success": summary,
    }
    results = PROJECT / "benchmarks/results/success.json"
    results.parent.mkdir(exist_ok=True)
    results.write_text(json.dumps(record, indent=2) + "\n")
    print(table(summary, arguments.tasks))  # noqa: T201


if __name__ == "__main__":
    main()
