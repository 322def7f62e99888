"""Episodes of any environment, to compare with each other."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cvl_pipeline.environments.base import Environment


def play(environment: Environment, seed: int, steps: int) -> NDArray[np.float64]:
    """Play random actions, the same for every seed.

    Returns:
        One row per state: the observation, and reward, success and truncation on arrival there.
    """
    shape = (steps, *(environment.action_space.shape or ()))
    actions = np.random.default_rng(0).uniform(-1.0, 1.0, shape).astype(np.float32)
    observation, _ = environment.reset(seed=seed)
    rows = [np.append(observation, [0.0, 0.0, 0.0])]
    for action in actions:
        observation, reward, _, truncated, info = environment.step(action)
        assert observation.shape == environment.observation_space.shape
        rows.append(np.append(observation, [float(reward), float(info["success"]), float(truncated)]))
    return np.stack(rows)
