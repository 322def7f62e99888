"""Success with a study's best parameters compared with the defaults, on seeds that the study did not use.

The script runs a study with an offline objective, which also measures rollouts, then whole runs of both
settings. docs/studies.md has the results.

    python -m benchmarks.tuning --task door-open-v3 --seeds 10 11 12
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmarks.common import PROJECT, RESULTS, kedro_run, write_record
from benchmarks.success import resampled_means

FOLDER = PROJECT / "data/benchmark_tuning"
SETTINGS = {"defaults": "false", "tuned": "true"}
MEASURES = "contrastive_loss mutual_information_bound success_rate return_mean"


def run(task: str, seeds: list[int], workers: int) -> float:
    """Run the study, then every seed with both settings, and copy their rollouts; return the study's seconds."""
    seconds = kedro_run(
        "--pipelines", "data_ingestion,tuning",
        params=f"dataset.task={task},tuning.workers={workers},tuning.measures={MEASURES}",
    )  # fmt: skip
    for seed in seeds:
        for setting, tuned in SETTINGS.items():
            kedro_run(params=f"dataset.task={task},tuned={tuned},seed={seed}")
            rollouts = PROJECT / f"data/07_model_output/{task}/seed_{seed}/cvl_rollouts.parquet"
            copy = table_path(task, seed, setting)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(rollouts, copy)
    return seconds


def table_path(task: str, seed: int, setting: str) -> Path:
    """Path of the rollouts of a setting."""
    return FOLDER / task / f"seed_{seed}" / f"{setting}.parquet"


def summarise(task: str, seeds: list[int]) -> dict[str, Any]:
    """Compute success of both settings and the gain on the same goals, with 95 % intervals."""
    runs: dict[str, list[NDArray[np.float64]]] = {
        setting: [
            pd.read_parquet(table_path(task, seed, setting))["success"].to_numpy(np.float64) for seed in seeds
        ]
        for setting in SETTINGS
    }
    # Episode by episode, because both settings have the same goals.
    runs["gain"] = [tuned - default for default, tuned in zip(runs["defaults"], runs["tuned"], strict=True)]
    generator = np.random.default_rng(0)
    return {
        name: {
            "mean": float(np.mean([values.mean() for values in of_seeds])),
            "ci": np.quantile(resampled_means(of_seeds, generator), [0.025, 0.975]).tolist(),
            "seeds": [float(values.mean()) for values in of_seeds],
        }
        for name, of_seeds in runs.items()
    }


def main() -> None:
    """Run the study, save and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--task", default="door-open-v3")
    parser.add_argument("--seeds", nargs="+", type=int, default=[10, 11, 12])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--report", action="store_true", help="run nothing, save the results of earlier runs")
    arguments = parser.parse_args()
    seconds = None if arguments.report else run(arguments.task, arguments.seeds, arguments.workers)
    study = PROJECT / f"data/08_reporting/{arguments.task}/tuning/study"
    success = summarise(arguments.task, arguments.seeds)
    write_record(
        RESULTS / "tuning.json",
        measured=not arguments.report,
        seconds_of_the_study=seconds,
        study=json.loads((study / "tuning_report.json").read_text()),
        best=json.loads((study / "best_parameters.json").read_text()),
        success=success,
    )
    for name, result in success.items():
        seeds = ", ".join(f"{value:+.2f}" if name == "gain" else f"{value:.2f}" for value in result["seeds"])
        print(f"{name}: {result['mean']:.2f} [{result['ci'][0]:.2f}, {result['ci'][1]:.2f}] ({seeds})")  # noqa: T201


if __name__ == "__main__":
    main()
