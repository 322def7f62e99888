"""The tasks of D4RL whose observations no environment of today has: maze2d, antmaze and kitchen.

Fu et al. 2020, "D4RL: Datasets for Deep Data-Driven Reinforcement Learning". Maps, starts, goals, limits and
noise are those of the package ``d4rl`` 1.1, which cannot be imported any more; nothing here needs gym or
mujoco_py. What moves is simulated by today's MuJoCo from the same models: the point of Gymnasium-Robotics,
which kept D4RL's constants, the ant of the package ``d4rl``, which is weaker than today's Ant and steps twice
as long, and the kitchen of Gymnasium-Robotics, which differs in one shape that is put back.
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

from cvl_pipeline.environments.base import Array, register_installed
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
"""Rows of cells, ``#`` a wall. D4RL's maze2d and antmaze share them."""

MAZE2D_GOALS: dict[str, Cell] = {
    "open": (2, 3), "umaze": (1, 1), "medium": (6, 6), "large": (7, 9),
    "eval-umaze": (1, 3), "eval-medium": (1, 6), "eval-large": (1, 9),
}  # fmt: skip
MAZE2D_STEPS = {"open": 150, "umaze": 300, "medium": 600, "large": 800}

ANTMAZE_GOALS: dict[str, Cell] = {"umaze": (3, 1), "medium": (6, 6), "large": (7, 9)}
ANTMAZE_STEPS = {"umaze": 700, "medium": 1000, "large": 1000}
ANTMAZE_KINDS = {"umaze": ("", "-diverse"), "medium": ("-play", "-diverse"), "large": ("-play", "-diverse")}

KITCHEN_TASKS = {
    "kitchen-complete-v0": ("microwave", "kettle", "light switch", "slide cabinet"),
    "kitchen-partial-v0": ("microwave", "kettle", "light switch", "slide cabinet"),
    "kitchen-mixed-v0": ("microwave", "kettle", "bottom burner", "light switch"),
}
"""What is to be done, by the dataset's id."""


class _Task(gymnasium.Env[Array, Array], ABC):
    """Counts steps, clips actions as D4RL does, and lets the seed determine the episode."""

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
        """Start the episode that ``seed`` determines, or the next one of the last seed."""
        super().reset(seed=seed)
        self._steps = 0
        return self._start(), {}

    def step(self, action: Array) -> tuple[Array, SupportsFloat, bool, bool, dict[str, Any]]:
        """Advance by one control step; the episode is truncated at its length."""
        self._steps += 1
        self._move(np.clip(np.asarray(action, dtype=np.float64), -1.0, 1.0))
        observation, reward, terminated, success = self._judge()
        return observation, reward, terminated, self._steps >= self._episode_steps, {"success": success}

    @abstractmethod
    def _start(self) -> Floats:
        """Draw a start from ``self.np_random`` and return its observation."""

    @abstractmethod
    def _move(self, action: Floats) -> None:
        """Simulate one control step."""

    @abstractmethod
    def _judge(self) -> tuple[Floats, float, bool, bool]:
        """Observation, reward, termination and success of the state that the step led to."""


class Maze2D(_Task):
    """A point pushed through a maze to a fixed goal that it does not see.

    Observations are position (x, y; metres, x counts the rows of the map, y its columns) and velocity
    (metres a second), (4,); actions forces along x and y in [-1, 1]^2; a step takes 0.01 s. The goal is a
    cell's (row, column); the reward of a step 1 within 0.5 of it, or exp(-distance) in the dense tasks.
    Episodes never terminate. Success is to be within 0.5 of the goal.
    """

    # D4RL's point starts its axes at 1.2 where the walls are laid out from 1.0: a cell's centre is not where
    # its indices say, so the goal and the starts are off-centre, and the walls are 0.2 nearer on one side.
    WALLS_AT = -0.2

    def __init__(self, dataset_id: str, episode_steps: int | None = None) -> None:
        """Build the simulation.

        Args:
            dataset_id: D4RL's, such as ``maze2d-umaze-v1`` or ``maze2d-eval-large-dense-v1``.
            episode_steps: length after which an episode is truncated; None takes D4RL's.

        Raises:
            InputError: unknown id; Gymnasium-Robotics is not installed.
        """
        maze, self._dense = look_up("maze2d dataset of D4RL", dataset_id, self.datasets())
        super().__init__(4, 2, episode_steps or MAZE2D_STEPS[maze.removeprefix("eval-")])
        point = _package_file(dataset_id, "gymnasium_robotics", "envs/assets/point/point.xml")
        walls = ((row + self.WALLS_AT, column + self.WALLS_AT, 0.0) for row, column in _cells(maze, "#"))
        self._simulation = _Simulation(_with_walls(point, walls, (0.5, 0.5, 0.2)), frame_skip=1)
        self._starts = np.array(_cells(maze, "."), dtype=np.float64)  # the goal's cell too
        self._goal = np.array(MAZE2D_GOALS[maze], dtype=np.float64)

    @staticmethod
    def datasets() -> dict[str, tuple[str, bool]]:
        """Map and whether rewards are dense, by D4RL's ids."""
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
        np.clip(velocity, -5.0, 5.0, out=velocity)  # before the step, so that an observed one may be larger
        self._simulation.advance(action)

    def _judge(self) -> tuple[Floats, float, bool, bool]:
        observation = self._simulation.observation()
        distance = float(np.linalg.norm(observation[:2] - self._goal))
        success = distance <= 0.5
        return observation, float(np.exp(-distance)) if self._dense else float(success), False, success


class AntMaze(_Task):
    """An ant that walks from one end of a maze to the other, towards a goal that it does not see.

    Observations are MuJoCo's positions (15: torso x, y, z in metres from the start's cell, x counting the
    columns of the map and y its rows, a quaternion, eight joint angles in radians) and velocities (14),
    (29,); actions eight torques in [-1, 1], 1 being 30 N m; a step takes 0.1 s. Every episode draws its goal
    in the goal's cell, as D4RL does from v2 on; v0 drew it once for all episodes. The reward is 1 within 0.5
    of the goal, where the episode terminates in success, and 0 elsewhere; a fall does not end it.
    """

    START: Cell = (1, 1)
    SIZE = 4.0  # of a cell, metres
    TORQUE = 30.0

    def __init__(self, dataset_id: str, episode_steps: int | None = None) -> None:
        """Build the simulation.

        Args:
            dataset_id: D4RL's, such as ``antmaze-umaze-v2`` or ``antmaze-large-play-v2``.
            episode_steps: length after which an episode is truncated; None takes D4RL's.

        Raises:
            InputError: unknown id; the package ``d4rl``, which has the ant, or MuJoCo is not installed.
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
        """Map by D4RL's ids."""
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
        # Two draws, added: D4RL disturbs the goal twice.
        spread = self.np_random.uniform(0.0, 1.0, 2) + self.np_random.uniform(0.0, 0.5, 2)
        self._goal = self._goal_cell + spread
        model = self._simulation.model
        position = model.qpos0 + self.np_random.uniform(-0.1, 0.1, model.nq)
        # MuJoCo 2.0 made rotations of length 1 before the first observation, today's does in the first step.
        position[3:7] /= np.linalg.norm(position[3:7])
        return self._simulation.place(position, 0.1 * self.np_random.standard_normal(model.nv))

    def _move(self, action: Floats) -> None:
        self._simulation.advance(self.TORQUE * action)

    def _judge(self) -> tuple[Floats, float, bool, bool]:
        observation = self._simulation.observation()
        success = bool(np.linalg.norm(observation[:2] - self._goal) <= 0.5)
        return observation, float(success), success, success


class Kitchen(_Task):
    """A robot arm that has four things to do in a kitchen.

    Observations are the arm's joints (9), the kitchen's (21) and those wanted of the four things (30, zero
    elsewhere), (60,), in radians and metres; actions joint velocities in [-1, 1]^9, 1 being two a second; a
    step takes 0.08 s. The reward of a step is the number of things done in it for the first time; the
    episode terminates, in success, when all four have been done.

    Observations are noisy, and so is the control that starts from them, as in D4RL: all episodes start alike,
    and the noise is what tells one from another.
    """

    STEPS = 280
    NEAR = 0.3  # distance in joint space at which a thing counts as done
    ARM_NOISE = 0.1  # a factor of Gymnasium-Robotics, 0.01 rad; its own default is a tenth
    NOISE: Floats = 1e-4 * np.repeat([5.0, 0.5, 5.0, 100.0, 5.0, 100.0, 5.0], [2, 6, 3, 3, 3, 3, 1])

    def __init__(self, dataset_id: str, episode_steps: int | None = None) -> None:
        """Build the simulation.

        Args:
            dataset_id: D4RL's, such as ``kitchen-partial-v0``.
            episode_steps: length after which an episode is truncated; None takes D4RL's.

        Raises:
            InputError: unknown id; Gymnasium-Robotics is not installed.
        """
        tasks = look_up("kitchen dataset of D4RL", dataset_id, KITCHEN_TASKS)
        super().__init__(60, 9, episode_steps or self.STEPS)
        _package_file(dataset_id, "gymnasium_robotics", "__init__.py")
        register_installed()  # which keeps its notice to itself, unlike the next import
        from gymnasium_robotics.envs.franka_kitchen import kitchen_env

        library: Any = kitchen_env  # its annotations call the environment abstract
        self._kitchen = library.KitchenEnv(tasks_to_complete=list(tasks), robot_noise_ratio=self.ARM_NOISE)
        self._robot = self._kitchen.robot_env
        self._arm = np.zeros(9)
        self._entries = {task: library.OBS_ELEMENT_INDICES[task] for task in tasks}
        self._goal = np.zeros(30)
        for task, entries in self._entries.items():
            self._goal[entries] = self._kitchen.goal[task]
        self._left = set(tasks)
        # The arm stands on a post that nothing touches in D4RL, and that fallen things rest on in its heir.
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
"""What makes the environment of a dataset's id, by the first word of the id."""


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
        """Begin anew from a state, whose observation is returned."""
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
    """(row, column) of the cells of one kind."""
    rows = enumerate(MAPS[maze])
    return [(row, column) for row, cells in rows for column, cell in enumerate(cells) if cell == kind]


def _with_walls(
    body: Path, centres: Iterable[tuple[float, float, float]], half: tuple[float, float, float]
) -> str:
    """The model of a body among boxes, all of half the size ``half``, as MJCF."""
    model = ET.parse(body).getroot()
    world = model.find("worldbody")
    assert world is not None  # of any model that has a body
    for centre in centres:
        box = {"pos": " ".join(map(str, centre)), "size": " ".join(map(str, half))}
        ET.SubElement(world, "geom", box, type="box", contype="1", conaffinity="1")
    return ET.tostring(model, encoding="unicode")


def _package_file(dataset_id: str, package: str, path: str) -> Path:
    file = package_file(package, path)
    if file is None:
        raise InputError(f"dataset.task '{dataset_id}' needs the package {package}: {INSTALL[package]}")
    return file
