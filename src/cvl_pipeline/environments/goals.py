"""Environments that show the goal of the episode, for policies that reach any goal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, SupportsFloat

import gymnasium
import numpy as np

from cvl_pipeline.environments.base import Array, Environment, checked


class GoalEnvironment(Environment):
    """An environment whose observation is a state and the goal of the episode, side by side.

    Vectors (O,) become (2 O,), and images (H, W, C) become (H, W, 2 C). ``ObservedGoal`` acts on them.
    """

    def __init__(self, make: Callable[[], Environment]) -> None:
        """Make the environment that is wrapped; ``info["goal"]`` of its reset is the goal, an observation."""
        self._environment = environment = checked(make())
        space = environment.observation_space
        low, high = (np.concatenate([bound, bound], axis=-1) for bound in (space.low, space.high))
        self.observation_space = gymnasium.spaces.Box(low, high, dtype=space.dtype.type)
        self.action_space, self.discrete = environment.action_space, environment.discrete

    @property
    def simulation(self) -> Any:
        """What videos show."""
        return getattr(self._environment, "simulation", self._environment)

    def reset(self, *, seed: int) -> tuple[Array, dict[str, Any]]:
        """Start the episode that ``seed`` determines."""
        observation, info = self._environment.reset(seed=seed)
        self._goal = np.asarray(info["goal"], dtype=observation.dtype)
        return self._with_goal(observation), info

    def step(self, action: Array) -> tuple[Array, SupportsFloat, bool, bool, dict[str, Any]]:
        """Advance by one step."""
        observation, reward, terminated, truncated, info = self._environment.step(action)
        return self._with_goal(observation), reward, terminated, truncated, info

    def close(self) -> None:
        """Free the environment."""
        self._environment.close()

    def _with_goal(self, observation: Array) -> Array:
        return np.concatenate([observation, self._goal], axis=-1)
