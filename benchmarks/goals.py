"""One dynamics model, many goals: cost and success of swapping the reward (docs/benchmarks.md).

The script trains the dynamics once, on reach-v3. Then it starts a `kedro run` per goal, from the reward labels
to the rollouts. The goal in the task's observations differs from the rewarded one.

    python -m benchmarks.goals
"""

from __future__ import annotations

import argparse
import itertools
import json
from typing import Any

import pandas as pd

from benchmarks.common import PROJECT, RESULTS, kedro_run, markdown, record_path, write_record

# Corners of a box within the region of reach-v3's goals, in metres; the hand starts at (0, 0.6, 0.2).
GOALS = tuple(itertools.product((-0.08, 0.08), (0.82, 0.88), (0.08, 0.27)))
SCALE = 0.1  # distance at which the reward is one half, metres
TOLERANCE = 0.05  # metres, as in the task


def swap(number: int, goal: tuple[float, ...], common: str, folder: str) -> dict[str, Any]:
    """Run one goal and return its row of the table."""
    critic = PROJECT / f"data/06_models/{folder}/critic.safetensors"
    written = critic.stat().st_mtime_ns
    name = f"goal_{number}"
    target = " ".join(f"{value:g}" for value in goal)
    reward = (
        f"reward.source=goal_distance,reward.name={name},reward.indices=0 1 2,reward.target={target},"
        f"reward.scale={SCALE},reward.tolerance={TOLERANCE}"
    )
    seconds = kedro_run("--from-nodes", "value_readout.label", params=f"{common},{reward}")
    assert critic.stat().st_mtime_ns == written  # the dynamics were not trained again
    metrics = json.loads((PROJECT / f"data/08_reporting/{folder}/{name}/metrics.json").read_text())
    return {
        "goal": f"({', '.join(f'{value:g}' for value in goal)})",
        **{
            column: "{:.2f} [{:.2f}, {:.2f}]".format(
                *(metrics[f"{policy}.success_rate{end}"] for end in ("", "_ci_low", "_ci_high"))
            )
            for policy, column in (("cvl", "CVL"), ("bc", "BC"), ("behaviour", "behaviour data"))
        },
        "seconds": seconds,
    }


def main() -> None:
    """Train once, swap the goal eight times, print and save the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--task", default="reach-v3")
    parser.add_argument("--seed", type=int, default=10)
    parser.add_argument("--keep", action="store_true", help="reuse the trained dynamics")
    arguments = parser.parse_args()
    common = f"dataset.task={arguments.task},seed={arguments.seed}"
    folder = f"{arguments.task}/seed_{arguments.seed}"
    if not arguments.keep:
        kedro_run(params=common)
    table = pd.DataFrame([swap(number, goal, common, folder) for number, goal in enumerate(GOALS)])
    path = record_path(RESULTS / "goals.json", parser, arguments)
    write_record(path, scale=SCALE, tolerance=TOLERANCE, rows=table.to_dict("records"))
    print(markdown(table, digits=0))  # noqa: T201
    print(f"\nslowest swap: {table['seconds'].max():.0f} s")  # noqa: T201


if __name__ == "__main__":
    main()
