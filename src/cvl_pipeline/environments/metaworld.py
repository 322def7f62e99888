"""Meta-World's tasks and their scripted policies."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, SupportsFloat

import gymnasium
import numpy as np

from cvl_pipeline.environments.base import Array, success_in
from cvl_pipeline.environments.metaworld_speed import faster
from cvl_pipeline.errors import InputError, unknown_name

if TYPE_CHECKING:
    from cvl_pipeline.environments.collection import Controller

BENCHMARKS = ("MT10", "MT50")
"""Meta-World's multi-task benchmarks."""

PAIRS = (
    ("door-open-v3", "door-close-v3"),
    ("drawer-open-v3", "drawer-close-v3"),
    ("window-open-v3", "window-close-v3"),
    ("faucet-open-v3", "faucet-close-v3"),
    ("door-lock-v3", "door-unlock-v3"),
    ("handle-press-v3", "handle-pull-v3"),
    ("handle-press-side-v3", "handle-pull-side-v3"),
    ("plate-slide-v3", "plate-slide-back-v3"),
    ("plate-slide-side-v3", "plate-slide-back-side-v3"),
    ("stick-push-v3", "stick-pull-v3"),
    ("assembly-v3", "disassemble-v3"),
)
"""Tasks that undo each other in the same scene."""

GOAL = slice(36, 39)
"""Position of the goal in an observation."""

GOALS = 32
"""Goals of a task that ``MetaWorldExpert.other_goal`` chooses among."""


class MetaWorldEnvironment(gymnasium.Env[Array, Array]):
    """One Meta-World task with a visible goal, and a new goal and object position in every episode.

    Meta-World's own ``gym.make`` samples fifty goals from the global NumPy generator and cycles through them, so
    an episode depends on all earlier ones. Here, the seed given to ``reset`` determines the whole episode. So
    collection gives the same bytes in any number of processes, and evaluation uses goals that collection never
    saw.

    Observations are 39 numbers (hand, gripper, objects, the same one step earlier, goal; metres). Actions are 4
    numbers in [-1, 1] (hand displacement and gripper effort). Rewards are in [0, 10].
    """

    def __init__(self, task: str, episode_steps: int) -> None:
        """Build the simulation.

        Args:
            task: one of ``metaworld_tasks()``, such as ``reach-v3``.
            episode_steps: number of steps after which an episode is truncated, at most 500.

        Raises:
            InputError: unknown task.
        """
        check_metaworld_task(task)  # before the import, because it explains a failed one
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS

        environment = faster(ALL_V3_ENVIRONMENTS[task])()
        # Meta-World's `set_task` would set these four fields from a pickled task description.
        environment._partially_observable = False
        environment._freeze_rand_vec = False
        environment.seeded_rand_vec = True
        environment._set_task_called = True
        # This space was cached while the goal was hidden; its bounds would clip the goal to zero.
        vars(environment).pop("sawyer_observation_space", None)
        self.simulation = environment  # for videos
        self._environment = environment
        self._episode_steps = episode_steps
        self._steps = 0
        self.discrete = False
        self.action_space: gymnasium.spaces.Box = gymnasium.spaces.Box(-1.0, 1.0, (4,), np.float32)
        self.observation_space: gymnasium.spaces.Box = environment.sawyer_observation_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Start the episode that ``seed`` determines, or the next one of the last seed."""
        if seed is not None:
            self._environment.seed(seed)
        self._steps = 0
        observation, info = self._environment.reset()
        return observation, info

    def step(self, action: Array) -> tuple[Array, SupportsFloat, bool, bool, dict[str, Any]]:
        """Advance by one control step, 0.0125 s of simulated time."""
        observation, reward, terminated, _, info = self._environment.step(action)
        self._steps += 1
        return observation, reward, terminated, self._steps >= self._episode_steps, info

    def close(self) -> None:
        """Free the simulation."""
        self._environment.close()


class MetaWorldGoals(MetaWorldEnvironment):
    """One Meta-World task that says what the goal looks like.

    ``info["goal"]`` of the reset is the first observation in which the scripted policy has solved the same episode, or
    its last one if it does not.
    """

    def __init__(
        self, task: str, episode_steps: int, observe: Callable[[Array], Array] | None = None
    ) -> None:
        """Build the simulation.

        Args:
            task: see ``MetaWorldEnvironment``.
            episode_steps: likewise.
            observe: makes the goal of a state, (39,), in which the simulation is; None: the goal is the state.
        """
        super().__init__(task, episode_steps)
        self._expert, self._observe = MetaWorldExpert(task), observe

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Start the episode that ``seed`` determines."""
        goal, info = super().reset(seed=seed)
        truncated = False
        while not (truncated or success_in(info)):
            goal, _, _, truncated, info = self.step(self._expert(goal.copy()))
        goal = self._observe(goal) if self._observe else goal
        observation, info = super().reset(seed=seed)
        return observation, {**info, "goal": goal}


def metaworld_tasks() -> list[str]:
    """Names of the Meta-World tasks, sorted."""
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    return sorted(ALL_V3_ENVIRONMENTS)


def check_metaworld_task(task: str, benchmarks: tuple[str, ...] = ()) -> None:
    """Raise InputError, naming the nearest tasks, unless Meta-World is installed and has ``task``.

    Args:
        task: a name.
        benchmarks: other valid names.
    """
    try:
        tasks = [*metaworld_tasks(), *benchmarks]
    except ModuleNotFoundError as error:
        raise InputError(
            f"dataset.task '{task}' needs Meta-World: pip install 'cvl-pipeline[metaworld]'"
        ) from error
    if task not in tasks:
        raise unknown_name("Meta-World task", task, tasks)


class MetaWorldExpert:
    """The scripted policy that Meta-World ships for a task."""

    def __init__(self, task: str) -> None:
        """Look up the policy of ``task``; raise InputError if the task is unknown."""
        check_metaworld_task(task)
        from metaworld.policies import ENV_POLICY_MAP

        self._task = task
        factory: Any = ENV_POLICY_MAP[task]  # declared as the abstract base class
        self._policy = factory()
        # A hint for the author of the script, at every other step. One filter, because catching takes a third of the
        # time of an action.
        warnings.filterwarnings("ignore", r"Constant\(s\) may be too high")

    def __call__(self, observation: Array) -> Array:
        """Return an action for one observation, clipped to [-1, 1]."""
        action: Array = self._policy.get_action(observation).clip(-1.0, 1.0)
        return action

    def other_goal(self, observation: Array, generator: np.random.Generator) -> Controller:
        """Return a script for the same scene with a goal that is not the episode's.

        The script is the task's own, that of the task that undoes it (see ``PAIRS``), or the one of ``reach-v3``, which
        moves the hand. Many scripts, such as that of ``door-open-v3``, do not read the goal, so another goal alone
        would change nothing.
        """
        scripts = _scripts(self._task)
        task = scripts[generator.integers(len(scripts))]
        expert = self if task == self._task else MetaWorldExpert(task)
        goal = _goals(task)[generator.integers(GOALS)]

        def act(observation: Array) -> Array:
            observation = observation.copy()
            observation[GOAL] = goal
            return expert(observation)

        return act


def _scripts(task: str) -> list[str]:
    """Tasks whose scripts act in the scene of ``task``: the task itself first."""
    undoing = [other for pair in PAIRS if task in pair for other in pair if other != task]
    return list(dict.fromkeys([task, *undoing, "reach-v3"]))


@cache
def _goals(task: str) -> Array:
    """Goals of a task, (GOALS, 3). Even seeds: evaluation uses the odd ones (see ``episode_seeds``)."""
    environment = MetaWorldEnvironment(task, 1)
    goals = np.stack([environment.reset(seed=2 * index)[0][GOAL] for index in range(GOALS)])
    environment.close()
    return goals
