"""Meta-World, collected in the simulator with its scripted policies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from cvl_pipeline.schema import listed
from cvl_pipeline.sources.base import Task
from cvl_pipeline.sources.simulated import SimulatedParameters, SimulatedSource

if TYPE_CHECKING:
    from cvl_pipeline.environments.base import Environment
    from cvl_pipeline.environments.collection import Controller
    from cvl_pipeline.episodes.container import Rewards, Transitions

CAMERAS = ("topview", "corner", "corner2", "corner3", "corner4", "behindGripper", "gripperPOV")
"""Cameras of Meta-World's models."""
Cameras = Annotated[
    tuple[Literal["topview", "corner", "corner2", "corner3", "corner4", "behindGripper", "gripperPOV"], ...],
    BeforeValidator(listed),
]
LONGEST = 500
"""Longest episode that Meta-World's simulation allows."""


class MetaWorld(SimulatedSource):
    """One of Meta-World's 50 tasks, or one of its benchmarks of several tasks."""

    class Parameters(SimulatedParameters):
        """The settings of ``metaworld``."""

        plays = True

        source: Literal["metaworld"] = Field(
            "metaworld", description="Episodes collected in Meta-World with its scripted policies."
        )
        task: Task = Field(
            "door-open-v3", description="A task, such as `reach-v3`, or a benchmark of several: MT10, MT50."
        )
        episode_steps: int = Field(200, ge=1, le=LONGEST, description="Length of an episode.")
        cameras: Cameras = Field(
            (),
            description="Cameras whose pictures are observed, such as `corner` and `gripperPOV`, one part of the "
            "observations each (docs/data.md). None: only the state.",
        )
        image_size: int | None = Field(
            None, ge=16, le=512, description="Height and width of the pictures, in pixels. null: 64."
        )
        state: bool = Field(
            True,
            description="Whether the state, with the goal, is observed beside the pictures. The scripted policy sees "
            "it in any case.",
        )

        @model_validator(mode="after")
        def _cameras_fit(self) -> MetaWorld.Parameters:
            if not self.cameras and (self.image_size is not None or not self.state):
                field = "image_size" if self.image_size is not None else "state=false"
                raise ValueError(
                    f"dataset.{field} needs dataset.cameras: name one or more of {', '.join(CAMERAS)}"
                )
            if self.cameras and self.task in ("MT10", "MT50"):
                raise ValueError(f"dataset.cameras is for single tasks, and dataset.task is {self.task}")
            if len(set(self.cameras)) < len(self.cameras):
                raise ValueError(f"dataset.cameras names one twice: {', '.join(self.cameras)}")
            return self

        @property
        def stem(self) -> str:
            """The task, the preset unless it is ``mixed``, and ``images`` with or without ``state``."""
            if not self.cameras:
                return super().stem
            return f"{super().stem}-images{'-state' if self.state else ''}"

    parameters: Parameters

    def load(self, seed: int, workers: int | None) -> tuple[Transitions, Rewards]:
        """Collect the episodes, with the state, and leave it out afterwards if it is not observed."""
        transitions, rewards = super().load(seed, workers)
        if self.parameters.state or transitions.parts is None:
            return transitions, rewards
        names = [part.name for part in transitions.parts.parts if part.image]
        layout, observations = transitions.parts.select(transitions.observations, names)
        return replace(transitions, observations=observations, parts=layout), rewards

    @property
    def controller_part(self) -> str | None:
        """The scripted policy sees the state."""
        return "state" if self.parameters.cameras else None

    def collection_environment(self) -> Callable[[], Environment]:
        """Return a factory of the environment that also observes the state."""
        return self._environment(state=True)

    @property
    def _several(self) -> bool:
        from cvl_pipeline.environments.metaworld import BENCHMARKS  # not above: it imports gymnasium

        return self.parameters.task in BENCHMARKS

    def make_environment(self, episode_steps: int | None = None) -> Callable[[], Environment]:
        """Return a factory; episodes keep the length of the collection."""
        return self._environment(self.parameters.state)

    def _environment(self, state: bool, goals: bool = False) -> Callable[[], Environment]:
        from cvl_pipeline.environments.metaworld import (
            BENCHMARKS,
            MetaWorldEnvironment,
            MetaWorldGoals,
            check_metaworld_task,
        )
        from cvl_pipeline.environments.multitask import MultiTaskEnvironment

        check_metaworld_task(self.parameters.task, BENCHMARKS)  # before any process starts
        p = self.parameters
        if p.cameras:
            from cvl_pipeline.environments.cameras import MetaWorldCameras

            size = p.image_size or 64
            return partial(MetaWorldCameras, p.task, p.episode_steps, p.cameras, size, state, goals)
        single = MetaWorldGoals if goals else MetaWorldEnvironment
        return partial(MultiTaskEnvironment if self._several else single, p.task, p.episode_steps)

    def make_goal_environment(self, episode_steps: int | None = None) -> Callable[[], Environment] | None:
        """Return a factory; a benchmark of several tasks has none."""
        return None if self._several else self._environment(self.parameters.state, goals=True)

    @property
    def slow_to_build(self) -> bool:
        """A simulation takes seconds to build."""
        return True

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks of a benchmark."""
        from cvl_pipeline.environments.multitask import benchmark_tasks

        return benchmark_tasks(self.parameters.task) if self._several else ()

    def make_controller(self) -> Callable[[], Controller]:
        """Return the scripted policy."""
        from cvl_pipeline.environments.metaworld import MetaWorldExpert
        from cvl_pipeline.environments.multitask import MultiTaskExpert

        return partial(MultiTaskExpert if self._several else MetaWorldExpert, self.parameters.task)
