"""Running whole episodes, in lock-step batches and in parallel processes."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from cvl_pipeline.environments.base import SUCCESSES, Array, Environment
from cvl_pipeline.episodes.container import Rewards, Transitions
from cvl_pipeline.errors import InputError
from cvl_pipeline.training.processes import end_with_parent
from cvl_pipeline.training.progress import progress_bar

BATCH = 10
"""Episodes that one process steps together. A constant, not a setting: a batched policy's rounding
depends on the batch, so the batches must not depend on the number of processes."""


class Policy(Protocol):
    """Acts in several episodes at once."""

    def start(self, seeds: Sequence[int]) -> None:
        """Begin a batch of episodes with the given seeds."""

    def act(self, observations: list[Array], running: list[int]) -> list[Array]:
        """Actions for the observations of the episodes ``running`` (positions in the batch)."""


@dataclass
class Episode:
    """One recorded episode of T steps: T + 1 observations, T actions, rewards and success flags."""

    observations: list[Array] = field(default_factory=list)
    actions: list[Array] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    successes: list[bool] = field(default_factory=list)
    success_reported: bool = False
    terminated: bool = False
    truncated: bool = False


@dataclass(frozen=True)
class RolloutTask:
    """How a worker process makes its environments and its policy. Both factories must be importable."""

    make_environment: Callable[[], Environment]
    make_policy: Callable[[], Policy]


def run_episodes(
    task: RolloutTask, seeds: Sequence[int], *, workers: int | None, description: str
) -> list[Episode]:
    """Run one episode for every seed and return them in the order of the seeds.

    The same seeds give the same episodes whatever ``workers`` is: every episode depends on its own seed
    alone, and is stepped in the same batch.

    Args:
        task: factories of the environment and the policy.
        seeds: one an episode, non-negative.
        workers: processes; 1 runs in this one, None takes as many as there are cores.
        description: what the progress bar says.
    """
    batches = [list(seeds[i : i + BATCH]) for i in range(0, len(seeds), BATCH)]
    results: dict[int, list[Episode]] = {}
    processes = min(workers or available_cores(), len(batches))
    with progress_bar() as progress:
        bar = progress.add_task(description, total=len(seeds))
        if processes == 1:
            threads = torch.get_num_threads()
            torch.set_num_threads(1)  # as in a worker process: a policy's rounding may depend on it
            try:
                worker = _Worker(task)
                for index, batch in enumerate(batches):
                    results[index] = worker.run(batch)
                    progress.advance(bar, len(batch))
            finally:
                torch.set_num_threads(threads)
        else:
            # A fresh interpreter, not a fork: the parent's torch threads do not survive one.
            with ProcessPoolExecutor(
                processes,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_start_worker,
                initargs=(task,),
            ) as pool:
                pending: dict[Future[list[Episode]], int] = {
                    pool.submit(_run_in_worker, batch): index for index, batch in enumerate(batches)
                }
                try:
                    while pending:
                        done, _ = wait(pending, return_when=FIRST_COMPLETED)
                        for future in done:
                            index = pending.pop(future)
                            results[index] = future.result()
                            progress.advance(bar, len(batches[index]))
                except BrokenProcessPool as error:
                    raise InputError(
                        "a process that steps environments died, most likely for lack of memory; set "
                        "data_ingestion.workers or evaluation.workers lower"
                    ) from error
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
    return [episode for index in range(len(batches)) for episode in results[index]]


def available_cores() -> int:
    """Cores that this process may use, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Worker:
    """Keeps its environments between batches: building a simulation costs more than resetting it."""

    def __init__(self, task: RolloutTask) -> None:
        self._task = task
        self._environments: list[Environment] = []
        self._policy = task.make_policy()

    def run(self, seeds: Sequence[int]) -> list[Episode]:
        while len(self._environments) < len(seeds):
            self._environments.append(self._task.make_environment())
        episodes = [Episode() for _ in seeds]
        for episode, environment, seed in zip(episodes, self._environments, seeds, strict=False):
            observation, _ = environment.reset(seed=seed)
            episode.observations.append(observation)
        self._policy.start(seeds)
        running = list(range(len(seeds)))
        while running:
            actions = self._policy.act([episodes[i].observations[-1] for i in running], running)
            for i, action in zip(running, actions, strict=True):
                episode, environment = episodes[i], self._environments[i]
                executed = _executed(action, environment)
                observation, reward, terminated, truncated, info = environment.step(executed)
                episode.observations.append(observation)
                episode.actions.append(executed)
                episode.rewards.append(float(reward))
                success = next((info[name] for name in SUCCESSES if name in info), None)
                episode.successes.append(bool(success))
                episode.success_reported |= success is not None
                episode.terminated, episode.truncated = bool(terminated), bool(truncated)
            running = [i for i in running if not (episodes[i].terminated or episodes[i].truncated)]
        return episodes


def _executed(action: Array, environment: Environment) -> Array:
    """The action that the environment will take: within its bounds, one-hot where it is a choice."""
    space = environment.action_space
    if environment.discrete:
        executed: Array = np.eye(space.shape[0], dtype=np.float32)[int(np.argmax(action))]
    else:
        executed = np.clip(action, space.low, space.high).astype(np.float32)
    return executed


_worker: _Worker | None = None


def _start_worker(task: RolloutTask) -> None:
    global _worker
    end_with_parent()
    torch.set_num_threads(1)  # the processes are the parallelism
    _worker = _Worker(task)


def _run_in_worker(seeds: Sequence[int]) -> list[Episode]:
    assert _worker is not None
    return _worker.run(seeds)


def stack_episodes(episodes: Sequence[Episode], environment: Environment) -> tuple[Transitions, Rewards]:
    """Lay recorded episodes end to end in the container; the environment says what its actions are."""
    action_space = environment.action_space

    def joined(parts: list[list[Array]]) -> torch.Tensor:
        rows = np.concatenate([np.asarray(part) for part in parts])
        return torch.from_numpy(rows if rows.ndim == 4 else rows.astype(np.float32))

    lengths: NDArray[np.int64] = np.array([len(episode.actions) for episode in episodes], dtype=np.int64)
    transitions = Transitions(
        observations=joined([episode.observations for episode in episodes]),
        actions=joined([episode.actions for episode in episodes]),
        episode_starts=torch.from_numpy(np.concatenate([[0], lengths.cumsum()])),
        terminated=torch.tensor([episode.terminated for episode in episodes]),
        truncated=torch.tensor([episode.truncated for episode in episodes]),
        action_low=torch.from_numpy(np.asarray(action_space.low, dtype=np.float32)),
        action_high=torch.from_numpy(np.asarray(action_space.high, dtype=np.float32)),
        discrete=torch.tensor(environment.discrete),
    )
    rewards = Rewards(
        rewards=torch.tensor([r for episode in episodes for r in episode.rewards], dtype=torch.float32),
        successes=torch.tensor([s for episode in episodes for s in episode.successes]),
        success_reported=torch.tensor(any(episode.success_reported for episode in episodes)),
    )
    return transitions, rewards
