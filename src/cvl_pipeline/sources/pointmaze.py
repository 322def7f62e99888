"""PointMaze of Gymnasium-Robotics, collected with a waypoint controller: D4RL's maze2d reimplemented."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

from pydantic import Field

from cvl_pipeline.environments.base import Environment
from cvl_pipeline.environments.collection import Controller
from cvl_pipeline.environments.gymnasium import GymnasiumEnvironment
from cvl_pipeline.environments.pointmaze import PointMazeGoals, WaypointController, check_pointmaze_task
from cvl_pipeline.sources.base import Task
from cvl_pipeline.sources.simulated import SimulatedParameters, SimulatedSource


class PointMaze(SimulatedSource):
    """A maze in which every episode has a fresh start and goal."""

    class Parameters(SimulatedParameters):
        """The settings of ``pointmaze``."""

        plays = True

        source: Literal["pointmaze"] = Field(
            "pointmaze", description="Episodes collected in PointMaze with a waypoint controller."
        )
        task: Task = Field("PointMaze_Medium-v3", description="Id of the environment.")

    parameters: Parameters

    def make_environment(self, episode_steps: int | None = None) -> Callable[[], Environment]:
        """Return a factory; episodes keep the length of the collection."""
        return self._factory(GymnasiumEnvironment)

    def make_goal_environment(self, episode_steps: int | None = None) -> Callable[[], Environment]:
        """Return a factory."""
        return self._factory(PointMazeGoals)

    def _factory(self, kind: type[GymnasiumEnvironment]) -> Callable[[], Environment]:
        check_pointmaze_task(self.parameters.task)
        return partial(
            kind, self.parameters.task, self.parameters.episode_steps, limit_field="dataset.episode_steps"
        )

    def make_controller(self) -> Callable[[], Controller]:
        """Return the waypoint controller."""
        return partial(WaypointController, self.parameters.task)
