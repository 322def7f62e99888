"""Any registered Gymnasium environment, collected with a policy of your own or at random."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from cvl_pipeline.environments.base import Array, Environment
from cvl_pipeline.environments.collection import Controller, Disturbances
from cvl_pipeline.environments.gymnasium import GymnasiumEnvironment
from cvl_pipeline.errors import InputError
from cvl_pipeline.imports import user_function
from cvl_pipeline.sources.base import Task
from cvl_pipeline.sources.simulated import SimulatedParameters, SimulatedSource


class Gymnasium(SimulatedSource):
    """A Gymnasium environment with numeric observations or images."""

    class Parameters(SimulatedParameters):
        """The settings of ``gymnasium``."""

        source: Literal["gymnasium"] = Field(
            "gymnasium", description="Episodes collected in any registered Gymnasium environment."
        )
        task: Task = Field("CartPole-v1", description="Id of the environment.")
        policy: str | None = Field(
            None,
            description="`module:function` of your own, from an observation (O,) to an action. null: random actions "
            "alone.",
        )

        @model_validator(mode="after")
        def _preset_has_its_policy(self) -> Gymnasium.Parameters:
            if self.policy is None and self.preset in ("noisy", "expert_few"):
                raise ValueError(
                    f"dataset.preset {self.preset} disturbs a policy: set dataset.policy, or choose another preset"
                )
            for name in ("noise_max", "random_max"):
                if self.policy is None and getattr(self, name) is not None:
                    raise ValueError(
                        f"dataset.{name} disturbs a policy: set dataset.policy, or leave {name} out; without a policy, "
                        "every action is random"
                    )
            return self

    parameters: Parameters

    def make_environment(self, episode_steps: int | None = None) -> Callable[[], Environment]:
        """Return a factory; episodes keep the length of the collection."""
        return partial(
            GymnasiumEnvironment, self.parameters.task, self.parameters.episode_steps,
            limit_field="dataset.episode_steps",
        )  # fmt: skip

    def disturbances(self) -> Disturbances:
        """Return the disturbances; without a policy every step is random."""
        if self.parameters.policy is None:
            return Disturbances(0.0, 1.0, self.parameters.setting("random_hold"), random_min=1.0)
        return super().disturbances()

    def make_controller(self) -> Callable[[], Controller]:
        """Return the user's policy."""
        if self.parameters.policy is not None:
            user_function("dataset.policy", self.parameters.policy)  # before any process starts
        return partial(UserController, self.parameters.policy, self.make_environment())


class UserController:
    """A policy of the user's own; without one, zeros for the disturbances to replace."""

    def __init__(self, policy: str | None, make: Callable[[], Environment]) -> None:
        """Import ``policy``, a function of an observation (O,) that returns what Gymnasium's step takes."""
        environment = make()
        self._space, self._discrete = environment.action_space, environment.discrete
        self._first: int = getattr(environment, "first_action", 0)
        environment.close()
        self._policy = None if policy is None else user_function("dataset.policy", policy)
        self._name = policy

    def __call__(self, observation: Array) -> Array:
        """Action (A,), one-hot where it is a choice."""
        if self._policy is None:
            return np.zeros(self._space.shape)
        action: Array = np.asarray(self._policy(observation))
        size = self._space.shape[0]
        if self._discrete:
            choice = action.shape == () and action.dtype.kind in "iu"
            known = choice and 0 <= int(action) - self._first < size
        else:
            known = (
                action.shape == (size,) and action.dtype.kind in "biuf" and bool(np.isfinite(action).all())
            )
        if not known:
            choices = f"one of {self._first}..{self._first + size - 1}"
            wanted = choices if self._discrete else f"{size} finite numbers"
            raise InputError(f"dataset.policy '{self._name}' returned {action!r}, not {wanted}")
        one_hot: Array = np.eye(size)
        return one_hot[int(action) - self._first] if self._discrete else action
