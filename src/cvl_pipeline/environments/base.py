"""The interface of environments that episodes are collected in and policies are evaluated in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, SupportsFloat

import gymnasium
import numpy as np
from numpy.typing import NDArray

from cvl_pipeline.episodes.parts import Layout
from cvl_pipeline.errors import InputError

Array = NDArray[Any]

SUCCESSES = ("success", "is_success", "goal_achieved")
"""Names of the entry of ``info`` that says whether the task is solved; the first one with a value counts."""


def success_in(info: Mapping[str, Any]) -> bool | None:
    """Return whether ``info`` counts the task as solved; None if it does not say.

    Args:
        info: of one reset or step. One of SUCCESSES is a flag, or a number 0 or 1, alone or in an array of one
            entry. None and NaN say nothing.

    Raises:
        InputError: the entry is something else, such as a text, 0.5 or several flags.
    """
    for name in SUCCESSES:
        flag = info.get(name)
        if flag is None:
            continue
        if type(flag) in (bool, int, float) and flag in (0, 1):  # no array, because every step asks
            return bool(flag)
        try:
            value = np.asarray(flag)
        except ValueError:  # parts of different shapes
            value = np.array(flag, dtype=object)
        known = value.dtype.kind in "biuf" and value.size == 1
        if known and np.isnan(value).any():
            continue
        if not known or value.item() not in (0, 1):
            raise InputError(
                f"the environment's info['{name}'] is {flag!r}, not a flag; report 0 or 1 per step, "
                "or False or True"
            )
        return bool(value.item())
    return None


class Environment(Protocol):
    """What rollouts need of an environment: Gymnasium's interface with a seed for every episode.

    Videos also need one that is MuJoCo's, with Gymnasium's ``model`` and ``data``, or a method ``render`` that returns
    a picture, (H, W, 3) uint8. A wrapper has them in an attribute ``simulation``.

    An environment whose observations have several parts packs them (see ``episodes.parts``), and has their layout in an
    attribute ``parts``; its observations are rows of bytes, (B,) uint8.
    """

    observation_space: gymnasium.spaces.Box  # (O,)
    action_space: gymnasium.spaces.Box  # (A,)
    discrete: bool  # actions are one-hot vectors

    def reset(self, *, seed: int) -> tuple[Array, dict[str, Any]]:
        """Start the episode that ``seed`` determines."""

    def step(self, action: Array) -> tuple[Array, SupportsFloat, bool, bool, dict[str, Any]]:
        """Gymnasium's step; ``info`` may say whether the task is solved (see ``success_in``)."""

    def close(self) -> None:
        """Give back what the simulation holds."""


class SuccessRewarded(Environment):
    """An environment whose reward is its success: 1 for a step that ends in a solved state, else 0."""

    def __init__(self, make: Callable[[], Environment]) -> None:
        """Make the environment that is wrapped."""
        self._environment = environment = checked(make())
        self.observation_space, self.action_space = environment.observation_space, environment.action_space
        self.discrete = environment.discrete
        self.parts = parts_of(environment)

    @property
    def simulation(self) -> Any:
        """What videos show."""
        return getattr(self._environment, "simulation", self._environment)

    def reset(self, *, seed: int) -> tuple[Array, dict[str, Any]]:
        """Start the episode that ``seed`` determines."""
        return self._environment.reset(seed=seed)

    def step(self, action: Array) -> tuple[Array, SupportsFloat, bool, bool, dict[str, Any]]:
        """Advance by one step. The reward is 0 where the environment does not mention success."""
        observation, _, terminated, truncated, info = self._environment.step(action)
        return observation, float(bool(success_in(info))), terminated, truncated, info

    def close(self) -> None:
        """Free the environment."""
        self._environment.close()


def parts_of(environment: Environment) -> Layout | None:
    """The layout of an environment's packed observations; None if they are one vector or one image."""
    layout: Layout | None = getattr(environment, "parts", None)
    return layout


def checked(environment: Environment) -> Environment:
    """Return an environment; raise InputError if it lacks a part of the interface, as a bare Gymnasium one does."""
    parts = (*Environment.__annotations__, "reset", "step", "close")
    missing = [name for name in parts if not hasattr(environment, name)]
    if missing:
        raise InputError(
            f"the environment is {type(environment).__name__}, which has no {', '.join(missing)}: a source's "
            "make_environment must return a function that makes an Environment, such as GymnasiumEnvironment"
        )
    return environment
