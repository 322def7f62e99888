"""Small environments that worker processes can import."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, SupportsFloat

import gymnasium
import numpy as np

from cvl_pipeline.environments.base import Array, Environment
from cvl_pipeline.environments.gymnasium import GymnasiumEnvironment


class Walk(Environment):
    """A walk from the seed's position; ends past 3 (a termination) or after ``steps`` steps."""

    def __init__(self, steps: int = 6) -> None:
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.discrete = False
        self.steps = steps
        self.executed: list[float] = []

    def reset(self, *, seed: int) -> tuple[Array, dict[str, Any]]:
        self.place = float(seed % 10) / 10.0
        self.taken = 0
        return np.array([self.place, 0.0]), {}

    def step(self, action: Array) -> tuple[Array, SupportsFloat, bool, bool, dict[str, Any]]:
        self.executed.append(float(action[0]))
        self.place += float(action[0])
        self.taken += 1
        fallen = self.place > 3.0
        info = {"success": 1.0} if self.place > 2.0 else {}
        return np.array([self.place, self.taken]), self.place, fallen, self.taken >= self.steps, info

    def close(self) -> None:
        self.closed = True


class Push:
    """Moves by five times the last digit of the episode's seed minus two, often beyond the bounds."""

    def start(self, seeds: Sequence[int]) -> None:
        self.seeds = list(seeds)

    def act(self, observations: list[Array], running: list[int]) -> list[Array]:
        assert len(observations) == len(running)
        return [np.array([5.0 * (self.seeds[i] % 10) / 10.0 - 2.0]) for i in running]


class Dying(Walk):
    """Kills its process, as the kernel does if it uses too much memory."""

    def step(self, action: Array) -> tuple[Array, SupportsFloat, bool, bool, dict[str, Any]]:
        os._exit(9)


class Spaces(gymnasium.Env[Any, Any]):
    """An environment with any spaces. It reuses one array and records all actions."""

    def __init__(self, observations: gymnasium.Space[Any], actions: gymnasium.Space[Any]) -> None:
        self.observation_space = observations
        self.action_space = actions
        self.executed: list[Any] = []
        self._buffer = np.zeros(observations.shape or (), dtype=np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        self._buffer[:] = 0.0
        return self._buffer, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.executed.append(action)
        self._buffer += 1.0
        return self._buffer, 1.0, False, False, {"success": True}


class Dot(gymnasium.Env[Any, Any]):
    """An image with a red dot to move to a fixed green dot; solved within two pixels."""

    SIZE, TARGET = 16, np.array([12.0, 4.0])

    def __init__(self, steps: int = 20) -> None:
        self.observation_space = gymnasium.spaces.Box(0, 255, (self.SIZE, self.SIZE, 3), np.uint8)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self._steps = steps

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._place, self._taken = self.np_random.uniform(2.0, self.SIZE - 3.0, size=2), 0
        return self._picture(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._place = np.clip(self._place + 1.5 * action, 1.0, self.SIZE - 2.0)
        self._taken += 1
        solved = bool(np.abs(self._place - self.TARGET).max() < 2.0)
        return self._picture(), float(solved), False, self._taken >= self._steps, {"success": solved}

    def _picture(self) -> Array:
        picture = np.zeros((self.SIZE, self.SIZE, 3), dtype=np.uint8)
        for channel, (row, column) in enumerate((self._place, self.TARGET)):
            picture[round(row) - 1 : round(row) + 2, round(column) - 1 : round(column) + 2, channel] = 255
        return picture


def to_the_target(observation: Any) -> Array:
    """Move to the target; for ``dataset.policy``."""
    direction: Array = np.clip(Dot.TARGET - observation["place"], -1.0, 1.0)
    return direction


class SeenDot(Dot):
    """The same, seen as a picture and as the place of the red dot, in a nested dictionary."""

    def __init__(self, steps: int = 20) -> None:
        super().__init__(steps)
        place = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
        camera = gymnasium.spaces.Dict({"top": self.observation_space})
        self.observation_space = gymnasium.spaces.Dict({"images": camera, "place": place})

    def _picture(self) -> Any:
        return {"images": {"top": super()._picture()}, "place": self._place}


class SeenDotGoals(GymnasiumEnvironment):
    """The same, with a goal: the observation of the red dot on the green one."""

    def __init__(self) -> None:
        super().__init__(SEEN_DOT)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        observation, info = super().reset(seed=seed, options=options)
        solved = SeenDot()
        solved._place = Dot.TARGET
        return observation, {**info, "goal": self._flat(solved._picture())}


SEEN_DOT = "tests.environments.toys:tests/SeenDot-v0"
gymnasium.register("tests/SeenDot-v0", "tests.environments.toys:SeenDot", max_episode_steps=20)
DOT = "tests.environments.toys:tests/Dot-v0"
"""Its id with the module that registers it, which other processes need."""
gymnasium.register("tests/Dot-v0", "tests.environments.toys:Dot", max_episode_steps=20)
