"""Environments that show the goal of the episode, for policies that reach any goal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, SupportsFloat

import gymnasium
import numpy as np
import torch

from cvl_pipeline.environments.base import Array, Environment, checked, parts_of
from cvl_pipeline.episodes.parts import beside
from cvl_pipeline.errors import InputError


class GoalEnvironment(Environment):
    """An environment whose observation is a state and the goal of the episode, side by side.

    Vectors (O,) become (2 O,), and images (H, W, C) become (H, W, 2 C). If observations have parts, every part does.
    ``ObservedGoal`` acts on them.
    """

    def __init__(self, make: Callable[[], Environment]) -> None:
        """Make the environment that is wrapped; ``info["goal"]`` of its reset is the goal, an observation."""
        self._environment = environment = checked(make())
        space, self._layout = environment.observation_space, parts_of(environment)
        self.parts = self._layout and self._layout.twice
        low, high = (self._beside(bound, bound) for bound in (space.low, space.high))
        self.observation_space = gymnasium.spaces.Box(low, high, dtype=space.dtype.type)
        self.action_space, self.discrete = environment.action_space, environment.discrete

    @property
    def simulation(self) -> Any:
        """What videos show."""
        return getattr(self._environment, "simulation", self._environment)

    def reset(self, *, seed: int) -> tuple[Array, dict[str, Any]]:
        """Start the episode that ``seed`` determines; raise InputError if the environment does not say its goal."""
        observation, info = self._environment.reset(seed=seed)
        fault = None if "goal" in info else "is missing"
        if fault is None:
            self._goal = np.asarray(info["goal"], dtype=observation.dtype)
            if self._goal.shape != observation.shape:
                fault = f"has shape {self._goal.shape}"
        if fault:
            raise InputError(
                f"info['goal'] of the environment's reset {fault}; give an observation, of shape {observation.shape}"
            )
        return self._beside(observation, self._goal), info

    def step(self, action: Array) -> tuple[Array, SupportsFloat, bool, bool, dict[str, Any]]:
        """Advance by one step."""
        observation, reward, terminated, truncated, info = self._environment.step(action)
        return self._beside(observation, self._goal), reward, terminated, truncated, info

    def close(self) -> None:
        """Free the environment."""
        self._environment.close()

    def _beside(self, first: Array, second: Array) -> Array:
        # Copies, because torch takes neither read-only arrays nor negative strides.
        rows = [torch.from_numpy(np.array(array)) for array in (first, second)]
        return beside(rows[0], rows[1], self._layout).numpy()
