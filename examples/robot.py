"""Run an exported Meta-World policy where neither torch nor cvl-pipeline is installed.

    pip install numpy onnxruntime metaworld
    python robot.py FOLDER SEEDS.json 200

FOLDER is an exported one (docs/deploy.md). SEEDS.json is a list of episode seeds, 200 the steps of an episode. Prints
one JSON object: success and return of each episode, on the seeds of ``cvl_rollouts.parquet`` those of the run.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any


def make_environment(task: str) -> Any:
    """Return a Meta-World task whose goal is visible, and whose seed decides the whole episode."""
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    environment = ALL_V3_ENVIRONMENTS[task]()
    environment._partially_observable = False
    environment._freeze_rand_vec = False
    environment.seeded_rand_vec = True
    environment._set_task_called = True
    vars(environment).pop("sawyer_observation_space", None)
    return environment


def main(folder: str, seeds: list[int], steps: int) -> dict[str, Any]:
    """Run one episode per seed."""
    sys.path.insert(0, folder)
    from runner import load_policy  # type: ignore[import-not-found]

    policy = load_policy(folder)
    environment = make_environment(policy.contract["about"]["task"])
    successes, returns, seconds = [], [], []
    for seed in seeds:
        environment.seed(seed)
        observation, _ = environment.reset()
        policy.reset()
        success, total = False, 0.0
        for _ in range(steps):
            start = time.perf_counter()
            action = policy.select_action(observation)
            seconds.append(time.perf_counter() - start)
            observation, reward, terminated, _, info = environment.step(action)
            success, total = success or bool(info["success"]), total + float(reward)
            if terminated:
                break
        successes.append(success)
        returns.append(total)
    return {
        "successes": successes, "returns": returns, "microseconds_per_action": 1e6 * sorted(seconds)[len(seconds) // 2],
        "torch_imported": "torch" in sys.modules,
    }  # fmt: skip


if __name__ == "__main__":
    folder, file, length = sys.argv[1:]
    print(json.dumps(main(folder, json.loads(Path(file).read_text()), int(length))))  # noqa: T201
