"""Logs of trained policies in D4RL's format, for ``benchmarks.references``.

SBX's SAC (the SAC of Stable-Baselines3 in JAX) trains on a Gymnasium task. The last policy is the expert. The first one
with a third of the expert's return is the medium policy, as in D4RL. Both act with their own noise in the logs.

Training is saved after every INTERVAL steps. The same command resumes it, and skips finished logs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np
from sbx import SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

Logs = dict[str, np.ndarray]
Act = Callable[[np.ndarray], np.ndarray]

INTERVAL = 5_000
"""Steps between two saved policies."""
ROUND = 8
"""Environment steps, then as many gradient steps: one call of a compiled program takes them."""
JUDGED = 5
"""Episodes that judge a saved policy."""
MEDIUM = 1.0 / 3.0
"""Share of the expert's return that the medium policy has."""
BESIDE = 10
"""Episodes that are recorded side by side."""


def train(folder: Path, environment: str, steps: int, seed: int) -> list[dict[str, Any]]:
    """Train SAC and save its policies; return the learning curve, ``steps`` and ``return`` of each saved policy."""
    curve_path, buffer = folder / "curve.json", folder / "buffer.pkl"
    curve: list[dict[str, Any]] = json.loads(curve_path.read_text()) if curve_path.exists() else []
    environments = make_vec_env(environment, seed=seed)
    judge = make_vec_env(environment, seed=seed + 1)
    if curve:
        model = SAC.load(policy_path(folder, curve[-1]["steps"]), env=environments)
        model.load_replay_buffer(buffer)
    else:
        model = SAC(
            "MlpPolicy", environments, seed=seed, buffer_size=steps, learning_starts=INTERVAL,
            train_freq=ROUND, gradient_steps=ROUND,
        )  # fmt: skip
    while model.num_timesteps < steps:
        model.learn(INTERVAL, reset_num_timesteps=False, log_interval=None)
        score, _ = evaluate_policy(model, judge, JUDGED)
        model.save(policy_path(folder, model.num_timesteps))
        model.save_replay_buffer(buffer)
        curve.append({"steps": model.num_timesteps, "return": float(score)})
        write(curve_path, lambda path: path.write_text(json.dumps(curve, indent=2)))
        print(json.dumps(curve[-1]), flush=True)  # noqa: T201
    return curve


def policy_path(folder: Path, steps: int) -> Path:
    """Path of the policy after a number of steps."""
    return folder / f"sac_{steps}.zip"


def write(path: Path, save: Callable[[Path], Any]) -> None:
    """Write a whole file or none."""
    temporary = path.with_name(path.name + ".part")
    save(temporary)
    temporary.replace(path)


def record(environment: str, act: Act, episodes: int, seed: int) -> Logs:
    """Record whole episodes, one row per step, in the order of their seeds.

    Args:
        environment: Gymnasium id.
        act: observations (B, O) to actions (B, A).
        episodes: number of episodes.
        seed: the episodes have the seeds ``seed``, ``seed + 1``, ...
    """
    names = ("observations", "actions", "rewards", "next_observations", "terminals", "timeouts")
    rows: list[list[tuple[Any, ...]]] = [[] for _ in range(episodes)]
    simulators = [gymnasium.make(environment) for _ in range(min(BESIDE, episodes))]
    for first in range(0, episodes, BESIDE):
        running = {
            episode: simulators[episode - first].reset(seed=seed + episode)[0]
            for episode in range(first, min(first + BESIDE, episodes))
        }
        while running:
            actions = act(np.stack(list(running.values())))
            for episode, action in zip(list(running), actions, strict=True):
                state = running[episode]
                reached, reward, terminal, timeout, _ = simulators[episode - first].step(action)
                rows[episode].append((state, action, reward, reached, terminal, timeout and not terminal))
                running[episode] = reached
                if terminal or timeout:
                    del running[episode]
    columns = zip(*(row for episode in rows for row in episode), strict=True)
    return {
        name: np.asarray(column, bool if name in ("terminals", "timeouts") else np.float32)
        for name, column in zip(names, columns, strict=True)
    }


def save_log(path: Path, log: Logs) -> None:
    """Write a log as HDF5."""

    def save(temporary: Path) -> None:
        with h5py.File(temporary, "w") as file:
            for name, values in log.items():
                file.create_dataset(name, data=values, compression="gzip")

    write(path, save)


def main() -> None:
    """Train, and record the logs that are missing."""
    job = json.loads(sys.argv[1])
    folder, environment, episodes = Path(job["folder"]), job["environment"], job["episodes"]
    folder.mkdir(parents=True, exist_ok=True)
    curve = train(folder, environment, job["steps"], job["seed"])
    expert = curve[-1]
    medium = next(point for point in curve if point["return"] >= MEDIUM * expert["return"])
    space = gymnasium.make(environment).action_space
    generator = np.random.default_rng(job["seed"])
    logs: dict[str, Logs] = {}
    for number, (name, steps) in enumerate(
        [("random", None), ("medium", medium["steps"]), ("expert", expert["steps"])]
    ):
        path = folder / f"{name}.hdf5"
        if path.exists():
            with h5py.File(path) as file:
                logs[name] = {key: values[()] for key, values in file.items()}
            continue
        if steps is None:

            def act(observations: np.ndarray) -> np.ndarray:
                shape = (len(observations), *space.shape)
                return generator.uniform(space.low, space.high, shape).astype(np.float32)

        else:
            model = SAC.load(policy_path(folder, steps))

            def act(observations: np.ndarray, model: SAC = model) -> np.ndarray:
                return model.predict(observations)[0]

        logs[name] = record(environment, act, episodes, 1000 * (number + 1))
        save_log(path, logs[name])
    both = {name: np.concatenate([logs["medium"][name], logs["expert"][name]]) for name in logs["medium"]}
    if not (folder / "medium-expert.hdf5").exists():
        save_log(folder / "medium-expert.hdf5", both)
    returns = {name: float(log["rewards"].sum() / episodes) for name, log in logs.items()}
    print(json.dumps({"medium": medium, "expert": expert, "returns": returns}))  # noqa: T201


if __name__ == "__main__":
    main()
