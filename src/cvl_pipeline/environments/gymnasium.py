"""Adapter from registered Gymnasium environments to rollouts."""

from __future__ import annotations

import importlib
import io
import warnings
from collections.abc import Mapping
from contextlib import redirect_stderr, suppress
from typing import Any, SupportsFloat

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec

from cvl_pipeline.environments.base import Array
from cvl_pipeline.episodes.parts import Layout, Part
from cvl_pipeline.errors import InputError, one_line
from cvl_pipeline.imports import place_in_user_code


class GymnasiumEnvironment(gymnasium.Env[Array, Array]):
    """Any registered Gymnasium environment with numeric observations or images.

    Observations are flattened by ``gymnasium.spaces.flatten``, in the order of a dictionary's space. Images,
    (H, W, C) uint8, are not changed. A dictionary with images among its entries is packed (see ``episodes.parts``):
    its images and, flattened, its other entries are the parts, named ``outer.inner`` if dictionaries are nested.
    Discrete actions are one-hot vectors, as in the episode container; the environment receives the index of the
    largest entry. ``info`` is the environment's own. For Gymnasium-Robotics' kitchen, which lists tasks,
    ``info["success"]`` is True when all of them are completed.
    """

    def __init__(
        self,
        environment_id: str,
        episode_steps: int | None = None,
        settings: Mapping[str, Any] | None = None,
        limit_field: str = "evaluation.episode_steps",
    ) -> None:
        """Make the environment.

        Args:
            environment_id: such as ``CartPole-v1``; ``module:id`` of a module that registers it, or ``module:Class`` of
                an environment of the user's own.
            episode_steps: number of steps after which an episode is truncated; None: the registered one.
            settings: arguments of the environment itself; None: the registered ones.
            limit_field: the parameter that gives ``episode_steps``, for the error.

        Raises:
            InputError: unknown id; an environment without a time limit; spaces other than numeric observations and
                bounded vector or discrete actions.
        """
        register_installed()
        try:
            environment = self._build(environment_id, max_episode_steps=episode_steps, **(settings or {}))
        except (Exception, SystemExit) as error:  # an id may name a module, and making it runs any code
            place = place_in_user_code(error)
            at = f" at {place[1]}" if place else ""
            text = str(error) if isinstance(error, gymnasium.error.Error) else one_line(error)
            raise InputError(
                f"Gymnasium environment '{environment_id}': {' '.join(text.split())}{at}"
            ) from error
        if not _has_time_limit(environment):
            raise InputError(
                f"Gymnasium environment '{environment_id}' has no time limit, so an episode may never end; set "
                f"{limit_field} (in Python: episode_steps)"
            )
        spaces = (environment.observation_space, environment.action_space)
        self.discrete = isinstance(spaces[1], gymnasium.spaces.Discrete)
        self._images = is_image_space(spaces[0])
        self.parts = self._parts_of(spaces[0], environment_id)
        flat: gymnasium.Space[Any] | None = spaces[0]
        if self.parts is not None:
            flat = gymnasium.spaces.Box(0, 255, (self.parts.nbytes,), np.uint8)
        elif not self._images:
            flat = gymnasium.spaces.flatten_space(spaces[0]) if spaces[0].is_np_flattenable else None
        if not isinstance(flat, gymnasium.spaces.Box):
            raise InputError(
                f"Gymnasium environment '{environment_id}': observations are {spaces[0]}, neither numbers "
                "that make one vector nor an image, (height, width, channels) uint8"
            )
        self.first_action = 0  # what the first choice is called in the environment
        if isinstance(spaces[1], gymnasium.spaces.Discrete):
            self.first_action = int(spaces[1].start)
            one_hot = gymnasium.spaces.Box(0.0, 1.0, (int(spaces[1].n),), np.float32)
            self.action_space: gymnasium.spaces.Box = one_hot
        elif isinstance(spaces[1], gymnasium.spaces.Box) and len(spaces[1].shape) == 1:
            if not spaces[1].is_bounded():
                raise InputError(
                    f"Gymnasium environment '{environment_id}': actions are {spaces[1]}, not bounded"
                )
            if not np.issubdtype(spaces[1].dtype, np.floating):
                raise InputError(
                    f"Gymnasium environment '{environment_id}': actions are {spaces[1]}, whole numbers, but policies "
                    "give fractions; wrap the environment so that its actions are Discrete, or a Box of float32"
                )
            self.action_space = spaces[1]
        else:
            raise InputError(
                f"Gymnasium environment '{environment_id}': actions are {spaces[1]}, neither a vector nor "
                "discrete"
            )
        self.simulation = environment  # for videos
        self._environment = environment
        self._space = spaces[0]
        self.observation_space: gymnasium.spaces.Box = flat

    def _build(self, environment_id: str, **settings: Any) -> gymnasium.Env[Any, Any]:
        module, colon, name = environment_id.partition(":")
        if colon:  # module:Class, or Gymnasium's own module:id
            kind = getattr(importlib.import_module(module), name, None)
            if isinstance(kind, type) and issubclass(kind, gymnasium.Env):
                maker: Any = kind
                return gymnasium.make(EnvSpec(id=name, entry_point=maker), **settings)
        return gymnasium.make(environment_id, **settings)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Start an episode; the seed determines it."""
        observation, info = self._environment.reset(seed=seed, options=options)
        return self._flat(observation), info

    def step(self, action: Array) -> tuple[Array, SupportsFloat, bool, bool, dict[str, Any]]:
        """Advance the environment by one step.

        Actions are recorded in single precision. In an environment of double precision, a bound may be exceeded by
        rounding, so actions are converted and clipped here.
        """
        space = self.action_space
        executed = (
            int(np.argmax(action)) + self.first_action
            if self.discrete
            else np.clip(np.asarray(action, space.dtype), space.low, space.high)
        )
        with warnings.catch_warnings():
            # Gymnasium warns of environments that return the same array at every step; `_flat` copies it.
            warnings.filterwarnings("ignore", message=".*share an object")
            observation, reward, terminated, truncated, info = self._environment.step(executed)
        if "episode_task_completions" in info:
            completed = set(info["tasks_to_complete"]) <= set(info["episode_task_completions"])
            info = {"success": completed, **info}
        return self._flat(observation), reward, terminated, truncated, info

    def close(self) -> None:
        """Free the environment."""
        self._environment.close()

    def _parts_of(self, space: gymnasium.Space[Any], environment_id: str) -> Layout | None:
        """The layout of a dictionary that has images; raises InputError if another entry is no vector of numbers."""
        self._entries = _entries(space)
        if not isinstance(space, gymnasium.spaces.Dict) or not any(
            map(is_image_space, self._entries.values())
        ):
            return None
        parts = []
        for name, entry in self._entries.items():
            image = is_image_space(entry)
            if not image and not entry.is_np_flattenable:
                raise InputError(
                    f"Gymnasium environment '{environment_id}': observation '{name}' is {entry}, neither numbers that "
                    "make one vector nor an image, (height, width, channels) uint8"
                )
            shape = entry.shape if image else (gymnasium.spaces.flatdim(entry),)
            assert shape is not None  # of a Box
            parts.append(Part(name, shape, "uint8" if image else "float32"))
        return Layout(tuple(parts))

    def _flat(self, observation: Any) -> Array:
        if self.parts is not None:
            values = _values(observation)
            packed = {
                name: values[name]
                if self.parts[name].image
                else gymnasium.spaces.flatten(entry, values[name])
                for name, entry in self._entries.items()
            }
            return self.parts.pack(packed).numpy()
        flat = observation if self._images else gymnasium.spaces.flatten(self._space, observation)
        return np.array(flat)  # copy, because `flatten` returns a vector itself


def _has_time_limit(environment: gymnasium.Env[Any, Any]) -> bool:
    """Whether one of the environment's wrappers truncates its episodes."""
    while isinstance(environment, gymnasium.Wrapper):
        if isinstance(environment, gymnasium.wrappers.TimeLimit):
            return True
        environment = environment.env
    return False


def _entries(space: gymnasium.Space[Any], prefix: str = "") -> dict[str, gymnasium.Space[Any]]:
    """Entries of a dictionary and of those in it, by name."""
    if not isinstance(space, gymnasium.spaces.Dict):
        return {prefix.removesuffix("."): space}
    return {
        full: entry
        for name, inner in space.spaces.items()
        for full, entry in _entries(inner, f"{prefix}{name}.").items()
    }


def _values(observation: Any, prefix: str = "") -> dict[str, Any]:
    """Values of a dictionary and of those in it, by name."""
    if not isinstance(observation, Mapping):
        return {prefix.removesuffix("."): observation}
    return {
        full: value
        for name, inner in observation.items()
        for full, value in _values(inner, f"{prefix}{name}.").items()
    }


def is_image_space(space: gymnasium.Space[Any]) -> bool:
    """Whether observations are images, (H, W, C) uint8."""
    return isinstance(space, gymnasium.spaces.Box) and len(space.shape) == 3 and space.dtype == np.uint8


def register_installed() -> None:
    """Import Gymnasium-Robotics, if it is installed, to register its ids."""
    # In every process, it prints a notice about old versions of Adroit.
    with redirect_stderr(io.StringIO()), suppress(ModuleNotFoundError):
        import gymnasium_robotics  # noqa: F401
