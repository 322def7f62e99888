"""Success of CVL, BC, IQL and the behaviour data in simulators, for the tables of docs/benchmarks.md.

Each task and seed is one whole ``kedro run``, so you get the same numbers. The methods share episodes, networks and
evaluation goals. IQL takes as many gradient steps as CVL's critic, regression and policy together. The default seeds
were not used for tuning (docs/tuning.md).

    python -m benchmarks.success --tasks reach-v3 door-open-v3 push-v3 drawer-close-v3 --seeds 10 11 12
    python -m benchmarks.success --env pointmaze --tasks PointMaze_Medium-v3
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmarks.common import PROJECT, RESULTS, kedro_run, markdown, record_path, write_record
from cvl_pipeline.methods.base import METHODS

TASKS = {
    None: ["reach-v3", "door-open-v3", "push-v3", "drawer-close-v3"],
    "pointmaze": ["PointMaze_Medium-v3"],
}
"""Tasks by default, by environment of conf/."""
BEHAVIOUR, CONTROL = "behaviour", "bc"
RESAMPLES = 10_000


def table_path(policy: str, task: str, seed: int) -> Path:
    """Path of a policy's table of episodes."""
    behaviour = policy == BEHAVIOUR
    layer, name = ("02_intermediate", "episodes") if behaviour else ("07_model_output", f"{policy}_rollouts")
    return PROJECT / f"data/{layer}/{task}/seed_{seed}/{name}.parquet"


def run(task: str, seed: int, methods: list[str], env: str | None, params: str) -> float:
    """Run the pipeline for one task and seed; return the seconds."""
    baselines = [
        f"baselines.{name}.method={name}" for name in methods if name != "cvl" and name in METHODS.names
    ]
    return kedro_run(
        *(["--env", env] if env else []),
        params=",".join(filter(None, [f"dataset.task={task},seed={seed}", *baselines, params])),
    )


def successes(policy: str, task: str, seed: int) -> NDArray[np.float64]:
    """Success (0 or 1) of each of a policy's episodes."""
    return pd.read_parquet(table_path(policy, task, seed))["success"].to_numpy(np.float64)


def resampled_means(runs: list[NDArray[np.float64]], generator: np.random.Generator) -> NDArray[np.float64]:
    """Bootstrap means over seeds; episodes are resampled within each seed."""
    means = [
        values[generator.integers(len(values), size=(RESAMPLES, len(values)))].mean(1) for values in runs
    ]
    return np.asarray(np.mean(means, axis=0))


def summarise(tasks: list[str], seeds: list[int], methods: list[str]) -> dict[str, Any]:
    """Compute means and 95 % intervals of each task and policy, over all tasks, and of differences.

    The differences are those of the first method from each other one.
    """
    generator = np.random.default_rng(0)
    policies = [*methods, BEHAVIOUR]
    summary: dict[str, Any] = {}
    resampled: dict[str, list[NDArray[np.float64]]] = {name: [] for name in policies}
    for task in tasks:
        summary[task] = {}
        for name in policies:
            runs = [successes(name, task, seed) for seed in seeds]
            resampled[name].append(resampled_means(runs, generator))
            means = [float(values.mean()) for values in runs]
            summary[task][name] = estimate(float(np.mean(means)), resampled[name][-1]) | {"seeds": means}
    over_tasks = {name: np.mean(values, axis=0) for name, values in resampled.items()}
    means_of = {name: float(np.mean([summary[task][name]["mean"] for task in tasks])) for name in policies}
    summary["mean"] = {name: estimate(means_of[name], over_tasks[name]) for name in policies}
    first, *others = methods
    for other in others:
        summary[f"{first} - {other}"] = estimate(
            means_of[first] - means_of[other], over_tasks[first] - over_tasks[other]
        )
    return summary


def estimate(mean: float, resampled: NDArray[np.float64]) -> dict[str, Any]:
    """Return a mean with its 95 % interval."""
    return {"mean": mean, "ci": np.quantile(resampled, [0.025, 0.975]).tolist()}


def table(summary: dict[str, Any], tasks: list[str], methods: list[str]) -> str:
    """Format the summary as a Markdown table."""
    first, *others = methods
    by_seed = [first, *(name for name in others if name != CONTROL)]
    titles = ["task", "behaviour data", *(name.upper() for name in (*others, first))]
    titles += [f"{name.upper()}, each seed" for name in by_seed]
    rows = []
    for task in [*tasks, "mean"]:
        cells = [
            "{mean:.2f} [{ci[0]:.2f}, {ci[1]:.2f}]".format(**summary[task][name])
            for name in (BEHAVIOUR, *others, first)
        ]
        cells += [
            ", ".join(f"{value:.2f}" for value in summary[task][name].get("seeds", [])) for name in by_seed
        ]
        rows.append([task, *cells])
    lines = [markdown(pd.DataFrame(rows, columns=titles)), ""]
    for other in others:
        gain = summary[f"{first} - {other}"]
        lines.append(
            f"{first.upper()} - {other.upper()}, mean over tasks: {gain['mean']:+.2f} "
            f"[{gain['ci'][0]:+.2f}, {gain['ci'][1]:+.2f}]"
        )
    return "\n".join(lines)


def main() -> None:
    """Run the pipeline for all tasks and seeds, then save and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tasks", nargs="+", help="default: the tasks of docs/benchmarks.md")
    parser.add_argument("--env", help="folder of conf/ with other settings, such as pointmaze")
    parser.add_argument("--seeds", nargs="+", type=int, default=[10, 11, 12])
    parser.add_argument(
        "--methods", nargs="+", default=["cvl", "bc", "iql"],
        help="cvl and names of baselines; the first one is compared with each other one",
    )  # fmt: skip
    parser.add_argument("--params", default="", help="more kedro --params, such as evaluation.episodes=100")
    parser.add_argument(
        "--keep", action="store_true", help="do not rerun finished runs (check that their settings match)"
    )
    parser.set_defaults(tasks=TASKS.get(parser.parse_args().env))
    arguments = parser.parse_args()
    if not arguments.tasks:
        parser.error(f"--env {arguments.env} needs --tasks")
    methods = arguments.methods
    seconds = [
        run(task, seed, methods, arguments.env, arguments.params)
        for task in arguments.tasks
        for seed in arguments.seeds
        if not arguments.keep
        or not all(table_path(policy, task, seed).exists() for policy in (*methods, BEHAVIOUR))
    ]
    summary = summarise(arguments.tasks, arguments.seeds, methods)
    name = f"success_{arguments.env}" if arguments.env else "success"
    write_record(
        record_path(RESULTS / f"{name}.json", parser, arguments, "env"),
        measured=bool(seconds),
        seeds=arguments.seeds,
        seconds_per_run={"mean": float(np.mean(seconds)), "max": max(seconds)} if seconds else None,
        success=summary,
    )
    print(table(summary, arguments.tasks, methods))  # noqa: T201


if __name__ == "__main__":
    main()
