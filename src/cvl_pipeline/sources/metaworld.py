"""Meta-World, collected in the simulator with its scripted policies."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from cvl_pipeline.sources.base import Task
from cvl_pipeline.sources.simulated import SimulatedParameters, SimulatedSource

if TYPE_CHECKING:
    from cvl_pipeline.environments.base import Environment
    from cvl_pipeline.environments.collection import Controller

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

    parameters: Parameters

    @property
    def _several(self) -> bool:
        from cvl_pipeline.environments.metaworld import BENCHMARKS  # not above: it imports gymnasium

        return self.parameters.task in BENCHMARKS

    def make_environment(self, episode_steps: int | None = None) -> Callable[[], Environment]:
        """Return a factory; episodes keep the length of the collection."""
        from cvl_pipeline.environments.metaworld import (
            BENCHMARKS,
            MetaWorldEnvironment,
            check_metaworld_task,
        )
        from cvl_pipeline.environments.multitask import MultiTaskEnvironment

        check_metaworld_task(self.parameters.task, BENCHMARKS)  # before any process starts
        kind = MultiTaskEnvironment if self._several else MetaWorldEnvironment
        return partial(kind, self.parameters.task, self.parameters.episode_steps)

    def make_goal_environment(self, episode_steps: int | None = None) -> Callable[[], Environment] | None:
        """Return a factory; a benchmark of several tasks has none."""
        from cvl_pipeline.environments.metaworld import MetaWorldGoals, check_metaworld_task

        if self._several:
            return None
        check_metaworld_task(self.parameters.task)
        return partial(MetaWorldGoals, self.parameters.task, self.parameters.episode_steps)

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
