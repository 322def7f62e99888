"""OGBench's environments (Park et al. 2025), and its scripted oracles that collect episodes.

OGBench draws starts, goals and the noise of its oracles from NumPy's global random generator. Here, the seed of
``reset`` determines the whole episode, whatever runs beside it.
"""

from __future__ import annotations

import copy
import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, SupportsFloat

import gymnasium
import numpy as np

from cvl_pipeline.environments.base import Array, Environment
from cvl_pipeline.environments.collection import task_of_seed
from cvl_pipeline.environments.gymnasium import GymnasiumEnvironment
from cvl_pipeline.errors import InputError, missing_extra, unknown_name

GOALS = ("task1", "task2", "task3", "task4", "task5")
"""The evaluation goals that every environment has."""
KINDS = {
    "pointmaze": ("navigate", "stitch"),
    "cube": ("play", "noisy"),
    "scene": ("play", "noisy"),
    "puzzle": ("play", "noisy"),
}
"""Kinds of data that an oracle of the installed package collects, by family. Its ant and humanoid have none."""
_NAME = re.compile(r"(.+)-(play|noisy|navigate|stitch|explore)(-singletask(?:-task[1-5])?)?-v0")
_FAMILIES = (*KINDS, "antmaze", "humanoidmaze", "antsoccer")
_GL = "MUJOCO_GL"

# Published settings of the collection (data_gen_scripts/commands.sh of OGBench).
_NOISE = 0.1
_MAZE_NOISE = 0.5
_RANDOM = {"cube": 0.1, "scene": 0.1, "puzzle": 0.2}  # share of random actions in `noisy`
_STACK = {"single": (0.0, 0.0), "double": (0.0, 0.25), "triple": (0.05, 0.35), "quadruple": (0.1, 0.5)}
_BUILT: dict[Any, gymnasium.Env[Any, Any]] = {}
_STITCH = 4  # cells from the start to the goal


@dataclass(frozen=True)
class DatasetName:
    """The parts of a dataset's name, such as ``cube-single-play-singletask-task2-v0``.

    Attributes:
        environment: ``cube-single``; ``visual-cube-single`` has images.
        kind: ``play``.
        single: ``-singletask-task2``, or ``-singletask`` for the environment's default task; empty for the
            goal-conditioned dataset, which has no rewards.
    """

    environment: str
    kind: str
    single: str

    @staticmethod
    def parse(name: str) -> DatasetName:
        """Split a name; raise InputError if OGBench has no such environment, or is not installed."""
        found = _NAME.fullmatch(name)
        if not found:
            raise InputError(
                f"dataset.task '{name}' is not a name of OGBench's; it must be <environment>-<kind>-v0 or "
                "<environment>-<kind>-singletask-task<1 to 5>-v0, such as cube-single-play-singletask-task1-v0"
            )
        parts = DatasetName(found[1], found[2], found[3] or "")
        with importing_ogbench():
            ids = gymnasium.registry
        known = [
            name.removesuffix("-v0")
            for name in ids
            if name.removeprefix("visual-").startswith(_FAMILIES)
            and f"{name.removesuffix('-v0')}-singletask-v0" in ids
        ]
        if parts.environment not in known:
            raise unknown_name("OGBench environment", parts.environment, sorted(known))
        return parts

    @property
    def family(self) -> str:
        """``cube``."""
        return self.environment.removeprefix("visual-").partition("-")[0]

    @property
    def images(self) -> bool:
        """Whether observations are images."""
        return self.environment.startswith("visual-")

    @property
    def file(self) -> str:
        """Name of the published file without its suffix; its held-out episodes are in a second one, ``-val``."""
        return f"{self.environment}-{self.kind}-v0"

    @property
    def environment_id(self) -> str:
        """Gymnasium id of the environment, with the task's reward if there is a single task."""
        return f"{self.environment}{self.single}-v0"


@contextmanager
def importing_ogbench() -> Iterator[None]:
    """Import OGBench and let it import dm_control, whatever ``MUJOCO_GL`` says.

    dm_control refuses, or warns, if it finds no display, although OGBench renders without it. MuJoCo itself reads
    ``MUJOCO_GL`` first, so images are rendered as the user says; without a graphics library there are none.
    """
    given = os.environ.get(_GL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of glfw, about displays, and of Gymnasium, about rounded bounds
            try:
                import mujoco
            except ModuleNotFoundError:
                raise
            except Exception:  # the graphics library that MUJOCO_GL names does not work
                os.environ[_GL] = "disable"
                import mujoco  # noqa: F401
            os.environ[_GL] = "disable"
            import ogbench  # noqa: F401

            yield
    except ModuleNotFoundError as error:
        if sys.version_info >= (3, 13):
            raise InputError(
                "OGBench cannot be installed for Python 3.13: dm_control, which it needs, has no packages for it; use "
                "Python 3.11 or 3.12"
            ) from None
        raise missing_extra("ogbench", error) from None
    finally:
        os.environ.pop(_GL) if given is None else os.environ.update({_GL: given})


class OGBenchEnvironment(GymnasiumEnvironment):
    """One of OGBench's environments. The seed of ``reset`` determines the whole episode."""

    def __init__(
        self,
        environment_id: str,
        episode_steps: int | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Build the simulation, which takes a second for robots' arms.

        Args:
            environment_id: Gymnasium id, such as ``cube-single-singletask-task1-v0``.
            episode_steps: number of steps after which an episode is truncated; None: OGBench's.
            settings: arguments of the environment.

        Raises:
            InputError: OGBench is not installed, has no such environment, or cannot render its images.
        """
        with importing_ogbench():
            try:
                super().__init__(environment_id, episode_steps, settings)
            except InputError as error:
                if not environment_id.startswith("visual-"):
                    raise
                raise InputError(
                    f"{error}; images need graphics: set MUJOCO_GL, such as MUJOCO_GL=egl"
                ) from error
            core = self.core
            space = core.action_space
            if core.action_space is not space:
                # An arm makes a new action space whenever it is asked, and draws random actions from each before an
                # episode. Only one that stays can be seeded.
                core.__class__ = type(type(core).__name__, (type(core),), {"action_space": space})
        self._numpy = np.random.RandomState(0).get_state()

    def _build(self, environment_id: str, **settings: Any) -> gymnasium.Env[Any, Any]:
        """Build the simulation, or copy one that this process built before, which takes a seventh of the time."""
        key = (environment_id, *sorted(settings.items()))
        if key not in _BUILT:
            built = super()._build(environment_id, **settings)
            if hasattr(built.unwrapped, "maze_map"):
                Path(built.unwrapped.fullpath).unlink(missing_ok=True)  # type: ignore[attr-defined]
            if getattr(built.unwrapped, "_renderer", built) is not None:  # a maze, or images
                return built
            _BUILT[key] = built
        parts = vars(_BUILT[key].unwrapped).values()
        # The elements of the model are neither copied nor changed.
        shared = [part for part in parts if type(part) in (list, tuple) or "mjcf" in type(part).__module__]
        return copy.deepcopy(_BUILT[key], {id(part): part for part in shared})

    @property
    def core(self) -> Any:
        """The environment without Gymnasium's wrappers."""
        return self._environment.unwrapped

    @contextmanager
    def own_randomness(self) -> Iterator[None]:
        """Let NumPy's global generator be this environment's."""
        before = np.random.get_state()
        np.random.set_state(self._numpy)
        try:
            yield
        finally:
            self._numpy = np.random.get_state()
            np.random.set_state(before)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Start the episode that the seed determines."""
        if seed is not None:
            self._numpy = np.random.RandomState(seed).get_state()
            self.core.action_space.seed(seed)
        with self.own_randomness():
            return super().reset(seed=seed, options=options)

    def step(self, action: Array) -> tuple[Array, SupportsFloat, bool, bool, dict[str, Any]]:
        """Advance the environment by one step."""
        with self.own_randomness():  # a teleporter's exit is random
            return super().step(action)


class OGBenchGoals(OGBenchEnvironment):
    """An environment with OGBench's five evaluation goals, of which each seed selects one.

    ``info["goal"]`` of the reset is an observation in which the goal is reached.
    """

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Start the episode that the seed determines, with the goal that it selects."""
        goal = {} if seed is None else {"task_id": 1 + task_of_seed(seed, len(GOALS))}
        return super().reset(seed=seed, options={**(options or {}), **goal})


def task_rewards(name: DatasetName, states: Mapping[str, Array]) -> tuple[Array, Array]:
    """Return reward and success of states in a single task, by the package's own functions.

    Args:
        name: of a dataset with a single task.
        states: by name, (N, ...): ``qpos``, and ``button_states`` of scenes and puzzles.

    Returns:
        Rewards of the states, (N,) float32, and whether the task is solved in them, (N,) bool.

    Raises:
        InputError: an array is missing, or has not the environment's shape.
    """
    # Rewards do not depend on images, and this one needs no graphics.
    environment_id = name.environment_id.removeprefix("visual-")
    environment = OGBenchEnvironment(environment_id)
    try:
        environment.reset(seed=0)
        core = environment.core
        widths = {"qpos": len(core.data.qpos)}
        if name.family in ("scene", "puzzle"):
            widths["button_states"] = len(core._cur_button_states)
        for field, width in widths.items():
            if field not in states:
                raise InputError(
                    f"no array '{field}', from which the rewards of dataset.task follow; name the goal-conditioned "
                    f"dataset, {name.file}, which needs none"
                )
            if states[field].shape[1:] != (width,):
                raise InputError(
                    f"{field} have shape {states[field].shape}, but {environment_id} needs {width} numbers per row; "
                    "is dataset.task that of the file?"
                )
        from ogbench.relabel_utils import relabel_dataset

        labelled: dict[str, Array] = dict(states)
        with environment.own_randomness():
            relabel_dataset(  # type: ignore[no-untyped-call]
                environment_id, environment.simulation, labelled
            )
    finally:
        environment.close()
    return labelled["rewards"], labelled["masks"] == 0.0


class OracleEnvironment(Environment):
    """A simulation in which a scripted oracle of OGBench pursues random goals, one after another.

    The oracle needs more than an observation, so it runs here. An observation ends with the oracle's next action, which
    ``Follower`` reads; all numbers before it are logged.

    Attributes:
        sizes: how many numbers of an observation are the environment's ``observations``, the simulation's ``qpos``, the
            ``button_states`` and the oracle's ``actions``, in this order.
    """

    def __init__(self, name: DatasetName, episode_steps: int) -> None:
        """Build the simulation.

        Args:
            name: of the dataset; its kind selects the oracle.
            episode_steps: number of steps of an episode.
        """
        arm = name.family != "pointmaze"
        settings = {"terminate_at_goal": False, **({"mode": "data_collection"} if arm else {})}
        self._environment = OGBenchEnvironment(f"{name.environment}-v0", episode_steps, settings)
        self._oracle: _Arm | _Point = (_Arm if arm else _Point)(name, self._environment.simulation)
        self.action_space = self._environment.action_space
        self.discrete = False
        first, _ = self._environment.reset(seed=0)
        core = self._environment.core
        self.sizes = {
            "observations": len(first),
            "qpos": len(core.data.qpos),
            "button_states": len(self._buttons()),
            "actions": self.action_space.shape[0],
        }
        self.observation_space = gymnasium.spaces.Box(
            -np.inf, np.inf, (sum(self.sizes.values()),), np.float64
        )

    def reset(self, *, seed: int) -> tuple[Array, dict[str, Any]]:
        """Start the episode that ``seed`` determines."""
        options = self._oracle.options(np.random.default_rng([seed, 1]))
        observation, info = self._environment.reset(seed=seed, options=options)
        with self._environment.own_randomness():
            info = self._oracle.reset(observation, info)
            return self._with_action(observation, info), {}

    def step(self, action: Array) -> tuple[Array, SupportsFloat, bool, bool, dict[str, Any]]:
        """Advance by one step. There is neither reward nor success: goals change all the time."""
        observation, _, terminated, truncated, info = self._environment.step(action)
        with self._environment.own_randomness():
            info = self._oracle.after_step(observation, info)
            return self._with_action(observation, info), 0.0, terminated, truncated, {}

    def close(self) -> None:
        """Free the simulation."""
        self._environment.close()

    def _buttons(self) -> Array:
        return np.asarray(getattr(self._environment.core, "_cur_button_states", ()), np.float64)

    def _with_action(self, observation: Array, info: dict[str, Any]) -> Array:
        action = np.clip(self._oracle.action(observation, info), -1.0, 1.0)
        return np.concatenate([observation, self._environment.core.data.qpos, self._buttons(), action])


class Follower:
    """The policy that takes the actions of the oracle, which are the last numbers of its observations."""

    def __init__(self, action_size: int) -> None:
        """Set the number of numbers of an action."""
        self._size = action_size

    def start(self, seeds: Sequence[int]) -> None:
        """Do nothing."""

    def act(self, observations: list[Array], running: list[int]) -> list[Array]:
        """Return the oracles' actions."""
        return [observation[-self._size :] for observation in observations]


class _Arm:
    """The oracles of a robot's arm: each pursues one goal, then a new one is drawn.

    ``play`` follows a plan with noise, ``noisy`` a closed loop with noise of a size of each episode's own, and random
    actions.
    """

    def __init__(self, name: DatasetName, environment: Any) -> None:
        self._core = environment.unwrapped
        self._noisy = name.kind == "noisy"
        self._random = _RANDOM[name.family] if self._noisy else 0.0
        self._stack = _STACK.get(name.environment.rpartition("-")[2], (0.5, 0.5))
        objects = {"cube": ["cube"], "scene": ["cube", "button", "drawer", "window"], "puzzle": ["button"]}
        style, title = ("markov", "Markov") if self._noisy else ("plan", "Plan")
        settings: dict[str, Any] = (
            {"min_norm": 0.4} if self._noisy else {"noise": _NOISE, "noise_smoothing": 0.5}
        )
        self._oracles: dict[str, Any] = {}
        for kind in objects[name.family]:
            own = {"gripper_always_closed": True} if name.family == "puzzle" else {}
            module = import_module(f"ogbench.manipspace.oracles.{style}.{kind}_{style}")
            oracle = getattr(module, f"{kind.title()}{title}Oracle")
            self._oracles[kind] = oracle(env=environment, **settings, **own)

    def options(self, generator: np.random.Generator) -> None:
        """Nothing: the environment draws the start."""

    def reset(self, observation: Array, info: dict[str, Any]) -> dict[str, Any]:
        self._scale = np.random.uniform(0.0, _NOISE) * np.array([1.0, 1.0, 1.0, 3.0, 10.0])
        self._p_stack = np.random.uniform(*self._stack)
        self._pursue(observation, info)
        return info

    def after_step(self, observation: Array, info: dict[str, Any]) -> dict[str, Any]:
        if self._oracle.done:
            observation, info = self._core.set_new_target(p_stack=self._p_stack)
            self._pursue(observation, info)
        return info

    def action(self, observation: Array, info: dict[str, Any]) -> Array:
        if self._random and np.random.uniform() < self._random:
            return np.random.uniform(-1.0, 1.0, 5)
        action = np.asarray(self._oracle.select_action(observation, info))
        return action + self._scale * np.random.normal(size=5) if self._noisy else action

    def _pursue(self, observation: Array, info: dict[str, Any]) -> None:
        self._oracle = self._oracles[info["privileged/target_task"]]
        self._oracle.reset(observation, info)


class _Point:
    """The oracle of a point in a maze, which goes from cell to cell, with noise.

    ``navigate`` pursues a new goal whenever it reached one; ``stitch`` reaches a goal four cells away and stays there.
    """

    def __init__(self, name: DatasetName, environment: Any) -> None:
        self._core = environment.unwrapped
        self._stitch = name.kind == "stitch"
        free = self._core.maze_map == 0
        self._cells = [tuple(map(int, cell)) for cell in np.argwhere(free)]

        def corridor(row: int, column: int) -> bool:
            vertical = free[row - 1, column], free[row + 1, column]
            horizontal = free[row, column - 1], free[row, column + 1]
            return (all(vertical) and not any(horizontal)) or (all(horizontal) and not any(vertical))

        self._goals = [cell for cell in self._cells if not corridor(*cell)]

    def options(self, generator: np.random.Generator) -> dict[str, Any]:
        """Start and goal, both cells."""
        start = self._cells[generator.integers(len(self._cells))]
        goals = self._goals
        if self._stitch:
            place = np.array(self._core.ij_to_xy(start))
            distances = self._core.get_oracle_subgoal(place, place)[1]
            goals = [cell for cell in self._cells if distances[cell] == _STITCH] or [start]
        return {"task_info": {"init_ij": start, "goal_ij": goals[generator.integers(len(goals))]}}

    def reset(self, observation: Array, info: dict[str, Any]) -> dict[str, Any]:
        return info

    def after_step(self, observation: Array, info: dict[str, Any]) -> dict[str, Any]:
        if info["success"] and not self._stitch:
            cell = self._goals[np.random.randint(len(self._goals))]
            self._core.set_goal(goal_xy=self._core.add_noise(self._core.ij_to_xy(cell)))
        return info

    def action(self, observation: Array, info: dict[str, Any]) -> Array:
        here = self._core.get_xy()
        way = self._core.get_oracle_subgoal(here, self._core.cur_goal_xy)[0] - here
        action: Array = way / (np.linalg.norm(way) + 1e-6) + np.random.normal(0.0, _MAZE_NOISE, 2)
        return action
