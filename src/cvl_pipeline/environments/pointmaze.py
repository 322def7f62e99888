"""PointMaze of Gymnasium-Robotics, which reimplements D4RL's maze2d, and a controller that solves it."""

from __future__ import annotations

from collections import deque
from typing import Any

import gymnasium
import numpy as np

from cvl_pipeline.environments.base import Array
from cvl_pipeline.environments.collection import Controller
from cvl_pipeline.environments.gymnasium import GymnasiumEnvironment, register_installed
from cvl_pipeline.errors import InputError, unknown_name

GAIN, DAMPING = 10.0, 3.0
"""Force per metre towards the waypoint, and per metre per second against the velocity."""
NEAR = 0.35
"""Distance to a waypoint, in metres, within which the controller aims at the next; cells are 1 m wide."""


class PointMazeGoals(GymnasiumEnvironment):
    """A maze that says what the goal looks like: ``info["goal"]`` of the reset is a point that rests there."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Start the episode that ``seed`` determines."""
        observation, info = super().reset(seed=seed, options=options)
        # Achieved goal, desired goal, position, velocity.
        return observation, {**info, "goal": np.concatenate([np.tile(observation[2:4], 3), np.zeros(2)])}


def pointmaze_tasks() -> list[str]:
    """Sorted ids of the PointMaze environments; raises InputError without Gymnasium-Robotics."""
    register_installed()
    tasks = sorted(name for name in gymnasium.registry if name.startswith("PointMaze_"))
    if not tasks:
        raise InputError(
            "dataset.source pointmaze needs Gymnasium-Robotics: pip install 'cvl-pipeline[robotics]'"
        )
    return tasks


def check_pointmaze_task(task: str) -> None:
    """Raise InputError, naming the nearest ids, unless ``task`` is a PointMaze environment."""
    tasks = pointmaze_tasks()
    if task not in tasks:
        raise unknown_name("PointMaze environment", task, tasks)


class WaypointController:
    """Controller that moves the point from cell to cell along a shortest path to the goal.

    D4RL's maze2d data were generated in the same way (Fu et al. 2020, section 5): a planner selects
    waypoints, and a proportional-derivative controller reaches them.
    """

    def __init__(self, task: str) -> None:
        """Read the map of ``task``; raises InputError if the task is unknown."""
        check_pointmaze_task(task)
        environment: Any = gymnasium.make(task)
        self._maze = environment.unwrapped.maze
        self._free = np.array([[cell != 1 for cell in row] for row in self._maze.maze_map])
        self._next_cell: dict[tuple[int, int], dict[tuple[int, int], tuple[int, int]]] = {}
        environment.close()

    def __call__(self, observation: Array) -> Array:
        """Force in [-1, 1]^2 for one observation: achieved goal, desired goal, position, velocity, (8,)."""
        goal, position, velocity = observation[2:4], observation[4:6], observation[6:8]
        here, there = self._cell(position), self._cell(goal)
        target = goal
        if here != there:
            following = self._towards(there).get(here)
            if following is not None:  # None if rounding puts the point into a wall's cell: go straight on
                target = self._centre(following)
                after = self._towards(there).get(following)
                if np.linalg.norm(target - position) < NEAR:
                    target = goal if after is None else self._centre(after)
        force: Array = np.clip(GAIN * (target - position) - DAMPING * velocity, -1.0, 1.0)
        return force

    def other_goal(self, observation: Array, generator: np.random.Generator) -> Controller:
        """Return the controller with the centre of a random free cell as its goal."""
        row, column = generator.choice(np.argwhere(self._free))
        goal = self._centre((int(row), int(column)))

        def act(observation: Array) -> Array:
            observation = observation.copy()
            observation[2:4] = goal
            return self(observation)

        return act

    def _cell(self, position: Array) -> tuple[int, int]:
        row, column = self._maze.cell_xy_to_rowcol(position)
        return int(row), int(column)

    def _centre(self, cell: tuple[int, int]) -> Array:
        return np.asarray(self._maze.cell_rowcol_to_xy(np.array(cell)))

    def _towards(self, goal: tuple[int, int]) -> dict[tuple[int, int], tuple[int, int]]:
        """Next cell from every cell on the way to the goal, by breadth-first search from the goal."""
        if goal not in self._next_cell:
            following: dict[tuple[int, int], tuple[int, int]] = {goal: goal}
            waiting = deque([goal])
            while waiting:
                row, column = waiting.popleft()
                for cell in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
                    if self._free[cell] and cell not in following:
                        following[cell] = (row, column)
                        waiting.append(cell)
            del following[goal]
            self._next_cell[goal] = following
        return self._next_cell[goal]
