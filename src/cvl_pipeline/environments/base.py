"""Environments that episodes are collected in and policies are evaluated in."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from contextlib import redirect_stderr, suppress
from typing import Any, Protocol, SupportsFloat

import gymnasium
import numpy as np
from numpy.typing import NDArray

from cvl_pipeline.errors import InputError, unknown_name

Array = NDArray[Any]


class Environment(Protocol):
    """What rollouts need of an environment: Gymnasium's interface with a seed for every episode."""

    observation_space: gymnasium.spaces.Box  # (O,)
    action_space: gymnasium.spaces.Box  # (A,)
    discrete: bool  # actions are one-hot vectors

    def reset(self, *, seed: int) -> tuple[Array, dict[str, Any]]:
        """Start the episode that ``seed`` determines."""

    def step(self, action: Array) -> tuple[Array, SupportsFloat, bool, bool, dict[str, Any]]:
        """Gymnasium's step; ``info["success"]`` is truthy where the task counts as solved."""

    def close(self) -> None:
        """Give back what the simulation holds."""


class MetaWorldEnvironment(gymnasium.Env[Array, Array]):
    """One Meta-World task with the goal visible and a fresh goal and object position every episode.

    Meta-World's own ``gym.make`` draws fifty goals from the global NumPy generator and cycles through
    them, so an episode depends on every episode before it. Here the seed given to ``reset`` determines
    the whole episode, whatever the environment did before: the basis of collection that gives the same
    bytes in any number of processes, and of evaluation on goals that collection never saw.

    Observations are 39 numbers (hand, gripper, objects, the same one step earlier, goal; metres),
    actions 4 numbers in [-1, 1] (hand displacement and gripper effort), rewards lie in [0, 10].
    """

    def __init__(self, task: str, episode_steps: int) -> None:
        """Build the simulation.

        Args:
            task: one of ``metaworld_tasks()``, such as ``reach-v3``.
            episode_steps: length after which the episode is truncated, at most 500.

        Raises:
            InputError: unknown task.
        """
        check_metaworld_task(task)  # before the import, whose failure it explains
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS

        environment = ALL_V3_ENVIRONMENTS[task]()
        # The four fields that Meta-World's `set_task` would set from a pickled task description.
        environment._partially_observable = False
        environment._freeze_rand_vec = False
        environment.seeded_rand_vec = True
        environment._set_task_called = True
        # Cached while the goal was still hidden, with bounds that would clip the goal to zero.
        vars(environment).pop("sawyer_observation_space", None)
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
        self._environment.close()  # type: ignore[no-untyped-call]


class GymnasiumEnvironment(gymnasium.Env[Array, Array]):
    """Any registered Gymnasium environment with numeric observations or images, as rollouts need it.

    Observations are laid flat by ``gymnasium.spaces.flatten``, those of a dictionary entry by entry in the
    order of its space; images, (H, W, C) uint8, stay as they are. Discrete actions are one-hot vectors here,
    as they are in the episode container; the environment gets the index of the largest entry.
    ``info["success"]`` is the environment's own, or of Gymnasium-Robotics' kitchen, which lists tasks
    instead, whether all of them have been completed.
    """

    def __init__(
        self,
        environment_id: str,
        episode_steps: int | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Make the environment.

        Args:
            environment_id: such as ``CartPole-v1``.
            episode_steps: steps after which an episode is truncated; None keeps the registered number.
            settings: arguments of the environment itself; None keeps the registered ones.

        Raises:
            InputError: unknown id, or spaces other than numeric observations and bounded vector or discrete
                actions.
        """
        register_installed()
        try:
            environment = gymnasium.make(environment_id, max_episode_steps=episode_steps, **(settings or {}))
        except (gymnasium.error.Error, ImportError, TypeError) as error:  # an id may name a module
            raise InputError(
                f"Gymnasium environment '{environment_id}': {' '.join(str(error).split())}"
            ) from error
        spaces = (environment.observation_space, environment.action_space)
        self.discrete = isinstance(spaces[1], gymnasium.spaces.Discrete)
        self._images = is_image_space(spaces[0])
        flat: gymnasium.Space[Any] | None = spaces[0]
        if not self._images:
            flat = gymnasium.spaces.flatten_space(spaces[0]) if spaces[0].is_np_flattenable else None
        if not isinstance(flat, gymnasium.spaces.Box):
            raise InputError(
                f"Gymnasium environment '{environment_id}': observations are {spaces[0]}, neither numbers "
                "that make one vector nor an image, (height, width, channels) uint8"
            )
        self._first_action = 0
        if isinstance(spaces[1], gymnasium.spaces.Discrete):
            self._first_action = int(spaces[1].start)
            one_hot = gymnasium.spaces.Box(0.0, 1.0, (int(spaces[1].n),), np.float32)
            self.action_space: gymnasium.spaces.Box = one_hot
        elif isinstance(spaces[1], gymnasium.spaces.Box) and len(spaces[1].shape) == 1:
            if not spaces[1].is_bounded():
                raise InputError(
                    f"Gymnasium environment '{environment_id}': actions are {spaces[1]}, not bounded"
                )
            self.action_space = spaces[1]
        else:
            raise InputError(
                f"Gymnasium environment '{environment_id}': actions are {spaces[1]}, neither a vector nor "
                "discrete"
            )
        self._environment = environment
        self._space = spaces[0]
        self.observation_space: gymnasium.spaces.Box = flat

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Start an episode; the seed determines it."""
        observation, info = self._environment.reset(seed=seed)
        return self._flat(observation), info

    def step(self, action: Array) -> tuple[Array, SupportsFloat, bool, bool, dict[str, Any]]:
        """Gymnasium's step."""
        executed = int(np.argmax(action)) + self._first_action if self.discrete else action
        with warnings.catch_warnings():
            # Gymnasium warns of environments that fill one array for ever; `_flat` copies it.
            warnings.filterwarnings("ignore", message=".*share an object")
            observation, reward, terminated, truncated, info = self._environment.step(executed)
        if "episode_task_completions" in info:
            completed = set(info["tasks_to_complete"]) <= set(info["episode_task_completions"])
            info = {"success": completed, **info}
        return self._flat(observation), reward, terminated, truncated, info

    def close(self) -> None:
        """Free the environment."""
        self._environment.close()

    def _flat(self, observation: Any) -> Array:
        flat = observation if self._images else gymnasium.spaces.flatten(self._space, observation)
        return np.array(flat)  # a copy: of a vector, `flatten` returns the vector itself


def is_image_space(space: gymnasium.Space[Any]) -> bool:
    """Whether observations are images, (H, W, C) uint8."""
    return isinstance(space, gymnasium.spaces.Box) and len(space.shape) == 3 and space.dtype == np.uint8


def register_installed() -> None:
    """Make the ids of Gymnasium-Robotics known, if it is installed: importing it is what registers them."""
    # It prints a notice of Adroit's old versions, whoever asks for whatever, in every process.
    with redirect_stderr(io.StringIO()), suppress(ModuleNotFoundError):
        import gymnasium_robotics  # noqa: F401


BENCHMARKS = ("MT10", "MT50")
"""Meta-World's benchmarks of several tasks that one policy is to solve."""


def metaworld_tasks() -> list[str]:
    """Names of the Meta-World tasks, sorted."""
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    return sorted(ALL_V3_ENVIRONMENTS)


def check_metaworld_task(task: str, benchmarks: tuple[str, ...] = ()) -> None:
    """Raise InputError, naming the nearest tasks, unless Meta-World is installed and has ``task``.

    Args:
        task: a name.
        benchmarks: that are known too.
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
        """Look up the policy of ``task``; raises InputError on an unknown one."""
        check_metaworld_task(task)
        from metaworld.policies import ENV_POLICY_MAP

        factory: Any = ENV_POLICY_MAP[task]  # declared as the abstract base class
        self._policy = factory()

    def __call__(self, observation: Array) -> Array:
        """Action for one observation, clipped to [-1, 1]."""
        with warnings.catch_warnings():
            # "Constant(s) may be too high": a remark to the author of the script, on every other step.
            warnings.simplefilter("ignore")
            action = self._policy.get_action(observation)
        return np.asarray(np.clip(action, -1.0, 1.0))
