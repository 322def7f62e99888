"""The interface of environments that episodes are collected in and policies are evaluated in."""

from __future__ import annotations

from typing import Any, Protocol, SupportsFloat

import gymnasium
from numpy.typing import NDArray

Array = NDArray[Any]

SUCCESSES = ("success", "is_success", "goal_achieved")
"""Names of the entry of ``info`` that says whether the task is solved; the first one that is there counts."""


class Environment(Protocol):
    """What rollouts need of an environment: Gymnasium's interface with a seed for every episode."""

    observation_space: gymnasium.spaces.Box  # (O,)
    action_space: gymnasium.spaces.Box  # (A,)
    discrete: bool  # actions are one-hot vectors

    def reset(self, *, seed: int) -> tuple[Array, dict[str, Any]]:
        """Start the episode that ``seed`` determines."""

    def step(self, action: Array) -> tuple[Array, SupportsFloat, bool, bool, dict[str, Any]]:
        """Gymnasium's step; ``info`` has one of SUCCESSES, truthy where the task counts as solved."""

    def close(self) -> None:
        """Give back what the simulation holds."""
