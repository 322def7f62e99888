"""Meta-World's multi-task benchmarks: the episode's seed selects the task, the observation contains it."""

from __future__ import annotations

from typing import Any, SupportsFloat

import gymnasium
import numpy as np

from cvl_pipeline.environments.base import Array, Environment
from cvl_pipeline.environments.collection import Controller, task_of_seed
from cvl_pipeline.environments.metaworld import MetaWorldEnvironment, MetaWorldExpert

OBSERVATION_SIZE = 39
"""Size of the observation of a single task."""


def benchmark_tasks(benchmark: str) -> tuple[str, ...]:
    """Names of the tasks of one of ``BENCHMARKS``, in Meta-World's order."""
    from metaworld import env_dict

    return tuple(getattr(env_dict, f"{benchmark}_V3"))


class MultiTaskEnvironment(Environment):
    """All tasks of a benchmark as one environment; each seed selects one task.

    Observations are the 39 numbers of a single task (see ``MetaWorldEnvironment``) and a one-hot vector of
    the task, (39 + K,) for K tasks. Actions and rewards are the task's.
    """

    def __init__(self, benchmark: str, episode_steps: int) -> None:
        """Look up the tasks; each simulation (0.2 s, 30 MB) is built when an episode first needs it.

        Args:
            benchmark: one of ``BENCHMARKS``.
            episode_steps: number of steps after which an episode is truncated, at most 500.
        """
        self._tasks = benchmark_tasks(benchmark)
        self._episode_steps = episode_steps
        self._built: dict[int, MetaWorldEnvironment] = {}
        self._task = 0
        self.discrete = False
        size = OBSERVATION_SIZE + len(self._tasks)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float64)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (4,), np.float32)

    @property
    def simulation(self) -> Any:
        """The simulation of the present episode's task, for videos."""
        return self._built[self._task].simulation

    def reset(self, *, seed: int) -> tuple[Array, dict[str, Any]]:
        """Start the episode of ``seed``, in the task that the seed selects."""
        self._task = task_of_seed(seed, len(self._tasks))
        if self._task not in self._built:
            self._built[self._task] = MetaWorldEnvironment(self._tasks[self._task], self._episode_steps)
        observation, info = self._built[self._task].reset(seed=seed)
        return self._with_task(observation), info

    def step(self, action: Array) -> tuple[Array, SupportsFloat, bool, bool, dict[str, Any]]:
        """Advance the episode's task by one control step."""
        observation, reward, terminated, truncated, info = self._built[self._task].step(action)
        return self._with_task(observation), reward, terminated, truncated, info

    def close(self) -> None:
        """Free all simulations."""
        for environment in self._built.values():
            environment.close()

    def _with_task(self, observation: Array) -> Array:
        one_hot = np.zeros(len(self._tasks))
        one_hot[self._task] = 1.0
        return np.concatenate([observation, one_hot])


class MultiTaskExpert:
    """The scripted policy of the task that the observation names."""

    def __init__(self, benchmark: str) -> None:
        """Look up the policies of all tasks of ``benchmark``, one of ``BENCHMARKS``."""
        self._experts = [MetaWorldExpert(task) for task in benchmark_tasks(benchmark)]

    def __call__(self, observation: Array) -> Array:
        """Return an action, (4,) in [-1, 1], for one observation, (39 + K,)."""
        single, one_hot = np.split(observation, [OBSERVATION_SIZE])
        return self._experts[int(one_hot.argmax())](single)

    def other_goal(self, observation: Array, generator: np.random.Generator) -> Controller:
        """Return a script for the scene of the observed task; see ``MetaWorldExpert.other_goal``."""
        single, one_hot = np.split(observation, [OBSERVATION_SIZE])
        act = self._experts[int(one_hot.argmax())].other_goal(single, generator)
        return lambda observation: act(observation[:OBSERVATION_SIZE])
