"""Success of CVL, BC, IQL and the behaviour data in simulators, for the tables of docs/benchmarks.md.

CVL and BC come from whole ``kedro run``s, so you get the same numbers. IQL is trained on the artifacts of the
same run, with as many gradient steps as critic and policy together, and evaluated on the same goals. The
default seeds were not used for tuning (docs/tuning.md).

    python -m benchmarks.success --tasks reach-v3 door-open-v3 push-v3 drawer-close-v3 --seeds 10 11 12
    python -m benchmarks.success --env pointmaze --tasks PointMaze_Medium-v3
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmarks.common import PROJECT, RESULTS, defaults, machine
from benchmarks.iql import IQLParameters, train_iql
from cvl_pipeline.environments.evaluation import evaluate, rollout_table
from cvl_pipeline.environments.parameters import EvaluationParameters
from cvl_pipeline.io.artifacts import load_artifact
from cvl_pipeline.sources.parameters import DatasetParameters
from cvl_pipeline.sources.simulators import make_environment
from cvl_pipeline.training.parameters import TrainingParameters

POLICIES = {"cvl": "rollouts", "iql": "iql_rollouts", "bc": "bc_rollouts", "behaviour": "episodes"}
DIFFERENCES = (("cvl", "bc"), ("cvl", "iql"))
RESAMPLES = 10_000


def table_path(table: str, task: str, seed: int) -> Path:
    """Path of a table of episodes."""
    layer = "02_intermediate" if table == "episodes" else "07_model_output"
    return PROJECT / f"data/{layer}/{task}/seed_{seed}/{table}.parquet"


def iql_parameters(env: str | None) -> IQLParameters:
    """Published settings of IQL, with the pipeline's networks, batch size and gradient steps."""
    critic, policy = defaults("contrastive_dynamics", env), defaults("policy_extraction", env)
    steps = critic["training"]["steps"] + policy["training"]["steps"]
    return IQLParameters(
        discount=0.99, expectile=0.7, beta=3.0, max_weight=100.0, target_rate=0.005, scale_advantage=False,
        hidden=tuple(critic["hidden"]),
        training=TrainingParameters(**critic["training"] | {"steps": steps, "validation_interval": steps}),
    )  # fmt: skip


def run_iql(task: str, seed: int, env: str | None) -> None:
    """Train IQL on the run's artifacts and save its rollouts beside the others."""
    folder = f"{task}/seed_{seed}"
    transitions, rewards, split, normalisation = (
        load_artifact(PROJECT / f"data/{layer}/{folder}/{name}.safetensors")
        for layer, name in (
            ("01_raw", "transitions"),
            ("01_raw", "rewards"),
            ("02_intermediate", "split"),
            ("02_intermediate", "normalisation"),
        )
    )
    actor = train_iql(transitions, rewards, split, normalisation, iql_parameters(env), seed)
    dataset = DatasetParameters(**defaults("dataset", env) | {"task": task})
    evaluation = EvaluationParameters(**defaults("evaluation", env))
    recorded = evaluate(
        actor, make_environment(dataset, evaluation),
        episodes=evaluation.episodes, seed=seed, workers=None, name="IQL",
    )  # fmt: skip
    rollout_table(*recorded, seed).to_parquet(table_path("iql_rollouts", task, seed))


def run(task: str, seed: int, env: str | None, params: str, keep: bool) -> float | None:
    """Run the pipeline for one task and seed; return the seconds, or None if earlier results are reused."""
    if keep and all(table_path(table, task, seed).exists() for table in POLICIES.values()):
        return None
    command = [
        str(Path(sys.executable).with_name("kedro")),
        "run",
        *(["--env", env] if env else []),
        "--params",
        ",".join(filter(None, [f"dataset.task={task},seed={seed}", params])),
    ]
    print(shlex.join(["kedro", *command[1:]]), flush=True)  # noqa: T201
    start = time.perf_counter()
    subprocess.run(command, cwd=PROJECT, check=True)
    seconds = time.perf_counter() - start
    run_iql(task, seed, env)
    return seconds


def episodes(task: str, seed: int) -> dict[str, NDArray[np.float64]]:
    """Success (0 or 1) per episode of each policy."""
    return {
        policy: pd.read_parquet(table_path(table, task, seed), columns=["success"])["success"].to_numpy(
            np.float64
        )
        for policy, table in POLICIES.items()
    }


def resampled_means(runs: list[NDArray[np.float64]], generator: np.random.Generator) -> NDArray[np.float64]:
    """Bootstrap means over seeds; episodes are resampled within each seed."""
    means = [
        values[generator.integers(len(values), size=(RESAMPLES, len(values)))].mean(1) for values in runs
    ]
    return np.asarray(np.mean(means, axis=0))


def summarise(tasks: list[str], seeds: list[int]) -> dict[str, Any]:
    """Compute means and 95 % intervals per task and policy, over all tasks, and of CVL's differences."""
    generator = np.random.default_rng(0)
    summary: dict[str, Any] = {}
    resampled_tasks = []
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
        resampled_tasks.append(resampled)
    over_tasks = {name: np.mean([task[name] for task in resampled_tasks], axis=0) for name in POLICIES}
    means = {name: float(np.mean([summary[task][name]["mean"] for task in tasks])) for name in POLICIES}
    summary["mean"] = {
        name: {"mean": means[name], "ci": np.quantile(over_tasks[name], [0.025, 0.975]).tolist()}
        for name in POLICIES
    }
    for one, other in DIFFERENCES:
        summary[f"{one} - {other}"] = {
            "mean": means[one] - means[other],
            "ci": np.quantile(over_tasks[one] - over_tasks[other], [0.025, 0.975]).tolist(),
        }
    return summary


def table(summary: dict[str, Any], tasks: list[str]) -> str:
    """Format the summary as a Markdown table."""
    lines = ["| task | behaviour data | BC | IQL | CVL | CVL, each seed | IQL, each seed |", "|" + "---|" * 7]
    for task in [*tasks, "mean"]:
        cells = [
            "{mean:.2f} [{ci[0]:.2f}, {ci[1]:.2f}]".format(**summary[task][name])
            for name in ("behaviour", "bc", "iql", "cvl")
        ]
        cells += [
            ", ".join(f"{value:.2f}" for value in summary[task][name].get("seeds", []))
            for name in ("cvl", "iql")
        ]
        lines.append(f"| {task} | {' | '.join(cells)} |")
    lines.append("")
    for one, other in DIFFERENCES:
        gain = summary[f"{one} - {other}"]
        lines.append(
            f"{one.upper()} - {other.upper()}, mean over tasks: {gain['mean']:+.2f} "
            f"[{gain['ci'][0]:+.2f}, {gain['ci'][1]:+.2f}]"
        )
    return "\n".join(lines)


def main() -> None:
    """Run the pipeline for all tasks and seeds, then save and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--tasks", nargs="+", default=["reach-v3", "door-open-v3", "push-v3", "drawer-close-v3"]
    )
    parser.add_argument("--env", help="folder of conf/ with other settings, such as pointmaze")
    parser.add_argument("--seeds", nargs="+", type=int, default=[10, 11, 12])
    parser.add_argument("--params", default="", help="more kedro --params, such as evaluation.episodes=100")
    parser.add_argument(
        "--keep", action="store_true", help="do not rerun finished runs (check that their settings match)"
    )
    arguments = parser.parse_args()
    seconds = [
        run(task, seed, arguments.env, arguments.params, arguments.keep)
        for task in arguments.tasks
        for seed in arguments.seeds
    ]
    timed = [value for value in seconds if value is not None]
    summary = summarise(arguments.tasks, arguments.seeds)
    record = {
        "command": shlex.join(["python", "-m", "benchmarks.success", *sys.argv[1:]]),
        "seeds": arguments.seeds,
        "machine": machine(),
        "seconds_per_run": {"mean": float(np.mean(timed)), "max": max(timed)} if timed else None,
        "success": summary,
    }
    RESULTS.mkdir(exist_ok=True)
    name = f"success_{arguments.env}" if arguments.env else "success"
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n")
    print(table(summary, arguments.tasks))  # noqa: T201


if __name__ == "__main__":
    main()
