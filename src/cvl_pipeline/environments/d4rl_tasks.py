"""D4RL's maze2d, antmaze and kitchen, reimplemented: no current environment has their observations.

Fu et al. 2020, "D4RL: Datasets for Deep Data-Driven Reinforcement Learning". Maps, starts, goals, limits and
noise come from the package ``d4rl`` 1.1, which can no longer be imported; this module needs neither gym nor
mujoco_py. Current MuJoCo simulates the same models:

* the point of Gymnasium-Robotics, which kept D4RL's constants;
* the ant of the package ``d4rl``, which is weaker than the current Ant and has steps twice as long;
* the kitchen of Gymnasium-Robotics, which differs in one shape; this module restores D4RL's.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, SupportsFloat

import gymnasium
import numpy as np
from numpy.typing import NDArray

from cvl_pipeline.environments.base import Array
from cvl_pipeline.environments.gymnasium import register_installed
from cvl_pipeline.errors import InputError, look_up
from cvl_pipeline.imports import package_file

Floats = NDArray[np.float64]
Cell = tuple[int, int]

INSTALL = {
    "gymnasium_robotics": "pip install 'cvl-pipeline[robotics]'",
    "mujoco": "pip install 'cvl-pipeline[robotics]'",
    "d4rl": "pip install --no-deps d4rl==1.1",
}

MAPS = {
    "open": ("#######", "#.....#", "#.....#", "#.....#", "#######"),
    "umaze": ("#####", "#...#", "###.#", "#...#", "#####"),
    "medium": (
        "########", "#..##..#", "#..#...#", "##...###", "#..#...#", "#.#..#.#", "#...#..#", "########",
    ),
    "large": (
        "############", "#....#.....#", "#.##.#.#.#.#", "#......#...#", "#.####.###.#", "#..#.#.....#",
        "##.#.#.#.###", "#..#...#...#", "############",
    ),
    "eval-umaze": ("#####", "#...#", "#.###", "#...#", "#####"),
    "eval-medium": (
        "########", "#......#", "#.#.##.#", "#....#.#", "###..###", "#......#", "#..##..#", "########",
    ),
    "eval-large": (
        "############", "#..#...#...#", "##.###.#.#.#", "#..#.#.....#", "#.##.#..##.#", "#......#...#",
        "#.##.#.#.###", "#....#.....#", "############",
    ),
}  # fmt: skip
"""Rows of cells; ``#`` is a wall. D4RL's maze2d and antmaze share them."""

MAZE2D_GOALS: dict[str, Cell] = {
    "open": (2, 3), "umaze": (1, 1), "medium": (6, 6), "large": (7, 9),
    "eval-umaze": (1, 3), "eval-medium": (1, 6), "eval-large": (1, 9),
}  # fmt: skip
MAZE2D_STEPS = {"open": 150, "umaze": 300, "medium": 600, "large": 800}
"""Length of an episode; the log reader cuts old files without flags by it."""

ANTMAZE_GOALS: dict[str, Cell] = {"umaze": (3, 1), "medium": (6, 6), "large": (7, 9)}
ANTMAZE_STEPS = {"umaze": 700, "medium": 1000, "large": 1000}
ANTMAZE_KINDS = {"umaze": ("", "-diverse"), "medium": ("-play", "-diverse"), "large": ("-play", "-diverse")}

KITCHEN_TASKS = {
    "kitchen-complete-v0": ("microwave", "kettle", "light switch", "slide cabinet"),
    "kitchen-partial-v0": ("microwave", "kettle", "light switch", "slide cabinet"),
    "kitchen-mixed-v0": ("microwave", "kettle", "bottom burner", "light switch"),
}
"""Subtasks by dataset id."""


class _Task(gymnasium.Env[Array, Array], ABC):
    """Base class: counts steps, clips actions as D4RL does, and seeds the episode."""

    discrete = False

    def __init__(self, observations: int, actions: int, episode_steps: int) -> None:
        self.observation_space: gymnasium.spaces.Box = gymnasium.spaces.Box(
            -np.inf, np.inf, (observations,), np.float64
        )
        self.action_space: gymnasium.spaces.Box = gymnasium.spaces.Box(-1.0, 1.0, (actions,), np.float32)
        self._episode_steps = episode_steps
        self._steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Start the episode of ``seed``; None: the next episode of the last seed."""
        super().reset(seed=seed)
        self._steps = 0
        return self._start(), {}

    def step(self, action: Array) -> tuple[Array, SupportsFloat, bool, bool, dict[str, Any]]:
        """Advance by one control step; truncate the episode at its maximum length."""
        self._steps += 1
        self._move(np.clip(np.asarray(action, dtype=np.float64), -1.0, 1.0))
        observation, reward, terminated, success = self._judge()
        return observation, reward, terminated, self._steps >= self._episode_steps, {"success": success}

    @abstractmethod
    def _start(self) -> Floats:
        """Sample a start from ``self.np_random`` and return its observation."""

    @abstractmethod
    def _move(self, action: Floats) -> None:
        """Simulate one control step."""

    @abstractmethod
    def _judge(self) -> tuple[Floats, float, bool, bool]:
        """Observation, reward, termination and success of the state after the step."""


class Maze2D(_Task):
    """Maze with a point mass that forces move to a fixed goal, which the observation does not contain.

    Observations are position (x, y, in metres; x counts the rows of the map, y its columns) and velocity
    (metres per second), (4,). Actions are forces along x and y in [-1, 1]^2. A step takes 0.01 s. The goal is
    a cell's (row, column). The reward is 1 within 0.5 of the goal and 0 elsewhere, or exp(-distance) in the
    dense tasks. Episodes never terminate. Success means a distance of at most 0.5.
    """

    # D4RL's point has its origin at 1.2, but the walls start at 1.0. So goal and starts are not at the centre
    # of their cells, and the walls are 0.2 nearer on one side.
    WALLS_AT = -0.2

    def __init__(self, dataset_id: str, episode_steps: int | None = None) -> None:
        """Build the simulation.

        Args:
            dataset_id: D4RL's id, such as ``maze2d-umaze-v1`` or ``maze2d-eval-large-dense-v1``.
            episode_steps: number of steps after which an episode is truncated; None: D4RL's number.

        Raises:
            InputError: unknown id, or Gymnasium-Robotics is not installed.
        """
        maze, self._dense = look_up("maze2d dataset of D4RL", dataset_id, self.datasets())
        super().__init__(4, 2, episode_steps or MAZE2D_STEPS[maze.removeprefix("eval-")])
        point = _package_file(dataset_id, "gymnasium_robotics", "envs/assets/point/point.xml")
        walls = ((row + self.WALLS_AT, column + self.WALLS_AT, 0.0) for row, column in _cells(maze, "#"))
        self._simulation = _Simulation(_with_walls(point, walls, (0.5, 0.5, 0.2)), frame_skip=1)
        self._starts = np.array(_cells(maze, "."), dtype=np.float64)  # including the goal's cell
        self._goal = np.array(MAZE2D_GOALS[maze], dtype=np.float64)

    @staticmethod
    def datasets() -> dict[str, tuple[str, bool]]:
        """Map name and whether rewards are dense, by D4RL id."""
        return {
            f"maze2d-{maze}{'-dense' if dense else ''}-v{0 if maze == 'open' else 1}": (maze, dense)
            for maze in MAZE2D_GOALS
            for dense in (False, True)
        }

    def _start(self) -> Floats:
        cell = self._starts[self.np_random.integers(len(self._starts))]
        position = cell + self.np_random.uniform(-0.1, 0.1, 2)
        return self._simulation.place(position, 0.1 * self.np_random.standard_normal(2))

    def _move(self, action: Floats) -> None:
        velocity = self._simulation.data.qvel
        np.clip(velocity, -5.0, 5.0, out=velocity)  # before the step, so observed velocities may be larger
        self._simulation.advance(action)

    def _judge(self) -> tuple[Floats, float, bool, bool]:
        observation = self._simulation.observation()
        distance = float(np.linalg.norm(observation[:2] - self._goal))
        success = distance <= 0.5
        return observation, float(np.exp(-distance)) if self._dense else float(success), False, success


class AntMaze(_Task):
    """Maze with an ant that walks to a goal at the other end, which the observation does not contain.

    Observations, (29,), are MuJoCo's 15 positions and 14 velocities. The positions are the torso's x, y and z
    in metres from the start cell (x counts the columns of the map, y its rows), a quaternion, and eight joint
    angles in radians. Actions are eight torques in [-1, 1]; 1 is 30 N m. A step takes 0.1 s. Every episode
    samples its goal in the goal's cell, as D4RL does since v2; v0 sampled it once for all episodes. The
    reward is 1 within 0.5 of the goal, where the episode terminates with success, and 0 elsewhere. A fall
    does not end the episode.
    """

    START: Cell = (1, 1)
    SIZE = 4.0  # side of a cell, metres
    TORQUE = 30.0

    def __init__(self, dataset_id: str, episode_steps: int | None = None) -> None:
        """Build the simulation.

        Args:
            dataset_id: D4RL's id, such as ``antmaze-umaze-v2`` or ``antmaze-large-play-v2``.
            episode_steps: number of steps after which an episode is truncated; None: D4RL's number.

        Raises:
            InputError: unknown id, or MuJoCo or the package ``d4rl``, which contains the ant, is missing.
        """
        maze = look_up("antmaze dataset of D4RL", dataset_id, self.datasets())
        super().__init__(29, 8, episode_steps or ANTMAZE_STEPS[maze])
        _package_file(dataset_id, "mujoco", "__init__.py")
        ant = _package_file(dataset_id, "d4rl", "locomotion/assets/ant.xml")
        walls = ((*self._centre(cell), 0.25 * self.SIZE) for cell in _cells(maze, "#"))
        half = (0.5 * self.SIZE, 0.5 * self.SIZE, 0.25 * self.SIZE)
        self._simulation = _Simulation(_with_walls(ant, walls, half), frame_skip=5)
        self._goal_cell = self._centre(ANTMAZE_GOALS[maze])
        self._goal = np.zeros(2)

    @staticmethod
    def datasets() -> dict[str, str]:
        """Map name by D4RL id."""
        return {
            f"antmaze-{maze}{kind}-v{version}": maze
            for maze, kinds in ANTMAZE_KINDS.items()
            for kind in kinds
            for version in (0, 2)
        }

    def _centre(self, cell: Cell) -> tuple[float, float]:
        row, column = cell
        return self.SIZE * (column - self.START[1]), self.SIZE * (row - self.START[0])

    def _start(self) -> Floats:
        # The sum of two samples, because D4RL disturbs the goal twice.
        spread = self.np_random.uniform(0.0, 1.0, 2) + self.np_random.uniform(0.0, 0.5, 2)
        self._goal = self._goal_cell + spread
        model = self._simulation.model
        position = model.qpos0 + self.np_random.uniform(-0.1, 0.1, model.nq)
        # MuJoCo 2.0 normalised quaternions before the first observation; today's does so in the first step.
        position[3:7] /= np.linalg.norm(position[3:7])
        return self._simulation.place(position, 0.1 * self.np_random.standard_normal(model.nv))

    def _move(self, action: Floats) -> None:
        self._simulation.advance(self.TORQUE * action)

    def _judge(self) -> tuple[Floats, float, bool, bool]:
        observation = self._simulation.observation()
        success = bool(np.linalg.norm(observation[:2] - self._goal) <= 0.5)
        return observation, float(success), success, success


class Kitchen(_Task):
    """Kitchen with a robot arm and four subtasks.

    Observations, (60,), in radians and metres, are the 9 joints of the arm, the 21 joints of the kitchen, and
    the goal: the 30 joints with the four subtasks' targets, zero elsewhere. Actions are joint velocities in
    [-1, 1]^9; 1 is two per second. A step takes 0.08 s. The reward is the number of subtasks completed in the
    step for the first time. The episode terminates with success when all four are complete.

    Observations are noisy, and so is the control, which starts from them, as in D4RL. All episodes start in
    the same state; only the noise makes them differ.
    """

    STEPS = 280
    NEAR = 0.3  # distance in joint space within which a subtask counts as complete
    ARM_NOISE = 0.1  # noise factor of Gymnasium-Robotics, 0.01 rad; its default is a tenth of it
    NOISE: Floats = 1e-4 * np.repeat([5.0, 0.5, 5.0, 100.0, 5.0, 100.0, 5.0], [2, 6, 3, 3, 3, 3, 1])

    def __init__(self, dataset_id: str, episode_steps: int | None = None) -> None:
        """Build the simulation.

        Args:
            dataset_id: D4RL's id, such as ``kitchen-partial-v0``.
            episode_steps: number of steps after which an episode is truncated; None: D4RL's number.

        Raises:
            InputError: unknown id, or Gymnasium-Robotics is not installed.
        """
        tasks = look_up("kitchen dataset of D4RL", dataset_id, KITCHEN_TASKS)
        super().__init__(60, 9, episode_steps or self.STEPS)
        _package_file(dataset_id, "gymnasium_robotics", "__init__.py")
        register_installed()  # suppresses a notice that the next import would print
        from gymnasium_robotics.envs.franka_kitchen import kitchen_env

        library: Any = kitchen_env  # its annotations declare the environment as abstract
        self._kitchen = library.KitchenEnv(tasks_to_complete=list(tasks), robot_noise_ratio=self.ARM_NOISE)
        self._robot = self._kitchen.robot_env
        self._arm = np.zeros(9)
        self._entries = {task: library.OBS_ELEMENT_INDICES[task] for task in tasks}
        self._goal = np.zeros(30)
        for task, entries in self._entries.items():
            self._goal[entries] = self._kitchen.goal[task]
        self._left = set(tasks)
        # The arm stands on a post. Fallen objects rest on it in Gymnasium-Robotics, but pass through in D4RL.
        post = np.flatnonzero(self._robot.model.geom_bodyid == 1)
        self._robot.model.geom_contype[post] = self._robot.model.geom_conaffinity[post] = 0

    def _start(self) -> Floats:
        self._left = set(self._entries)
        observation, _ = self._kitchen.reset(seed=int(self.np_random.integers(2**31)))
        return self._observed(observation["observation"][:9])

    def _move(self, action: Floats) -> None:
        self._arm, *_ = self._robot.step(action)

    def _judge(self) -> tuple[Floats, float, bool, bool]:
        observation = self._observed(self._arm[:9])
        gap = observation[:30] - self._goal
        done = {task for task in self._left if np.linalg.norm(gap[self._entries[task]]) < self.NEAR}
        self._left -= done
        return observation, float(len(done)), not self._left, not self._left

    def _observed(self, arm: Floats) -> Floats:
        noise = self.NOISE * self.np_random.uniform(-1.0, 1.0, len(self.NOISE))
        return np.concatenate([arm, self._robot.data.qpos[9:] + noise, self._goal])

    def close(self) -> None:
        """Free the simulation."""
        self._kitchen.close()


D4RL_TASKS: dict[str, type[Maze2D] | type[AntMaze] | type[Kitchen]] = {
    "maze2d": Maze2D,
    "antmaze": AntMaze,
    "kitchen": Kitchen,
}
"""Environment class by the first word of the dataset id."""


class _Simulation:
    """A MuJoCo model and its state."""

    def __init__(self, xml: str, frame_skip: int) -> None:
        """Compile ``xml``; a control step is ``frame_skip`` steps of MuJoCo."""
        import mujoco

        self._mujoco = mujoco
        self._frame_skip = frame_skip
        self.model = mujoco.MjModel.from_xml_string(xml)
        self.data = mujoco.MjData(self.model)

    def place(self, positions: Floats, velocities: Floats) -> Floats:
        """Reset to a state and return its observation."""
        self._mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:], self.data.qvel[:] = positions, velocities
        return self.observation()

    def advance(self, control: Floats) -> None:
        """Simulate one control step."""
        self.data.ctrl[:] = control
        self._mujoco.mj_step(self.model, self.data, self._frame_skip)

    def observation(self) -> Floats:
        """Positions and velocities side by side."""
        return np.concatenate([self.data.qpos, self.data.qvel])


def _cells(maze: str, kind: str) -> list[Cell]:
    """(row, column) of all cells of one kind."""
    rows = enumerate(MAPS[maze])
    return [(row, column) for row, cells in rows for column, cell in enumerate(cells) if cell == kind]


def _with_walls(
    body: Path, centres: Iterable[tuple[float, float, float]], half: tuple[float, float, float]
) -> str:
    """MJCF of a body among boxes with the given centres and half sizes."""
    model = ET.parse(body).getroot()
    world = model.find("worldbody")
    assert world is not None  # every model with a body has one
    for centre in centres:
        box = {"pos": " ".join(map(str, centre)), "size": " ".join(map(str, half))}
        ET.SubElement(world, "geom", box, type="box", contype="1", conaffinity="1")
    return ET.tostring(model, encoding="unicode")


def _package_file(dataset_id: str, package: str, path: str) -> Path:
    file = package_file(package, path)
    if file is None:
        raise InputError(f"dataset.task '{dataset_id}' needs the package {package}: {INSTALL[package]}")
    return file
