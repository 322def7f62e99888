"""Rollouts of whole episodes, in batches and in parallel processes."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, cached_property
from multiprocessing import forkserver
from multiprocessing.context import BaseContext
from multiprocessing.util import Finalize
from threading import Thread
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from cvl_pipeline.environments.base import Array, Environment, parts_of, success_in
from cvl_pipeline.episodes.container import Rewards, Transitions
from cvl_pipeline.errors import InputError
from cvl_pipeline.imports import user_code
from cvl_pipeline.schema import LONGEST_EPISODE
from cvl_pipeline.training.devices import available_cores
from cvl_pipeline.training.progress import progress_bar

BATCH = 10
"""Episodes that one process steps together. It is a constant because a policy's rounding depends on the batch,
and must not depend on the number of processes."""

PRELOADED = (
    "cvl_pipeline.environments.evaluation",
    "metaworld.env_dict",
    "metaworld.policies",
    "kedro.framework.cli",  # which every process of `kedro run` imports as its main module
)
"""Modules that are imported once for all worker processes, if this process uses their package. The user's own code is
not among them: it may change between two evaluations in a notebook."""


class Policy(Protocol):
    """A policy that acts in several episodes at once."""

    def start(self, seeds: Sequence[int]) -> None:
        """Start a batch of episodes with the given seeds."""

    def act(self, observations: list[Array], running: list[int]) -> list[Array]:
        """Return actions for the observations of the episodes ``running`` (positions in the batch)."""


@dataclass
class Episode:
    """One recorded episode of T steps: T + 1 observations, T actions, rewards and success flags.

    Success is reported if the environment said at the reset or at any step whether the task is solved; a step
    at which it says nothing counts as not solved.
    """

    observations: list[Array] = field(default_factory=list)
    actions: list[Array] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    successes: list[bool] = field(default_factory=list)
    success_reported: bool = False
    terminated: bool = False
    truncated: bool = False

    def __getstate__(self) -> dict[str, Any]:
        """Stack the steps: pickling one array takes a tenth of the time of many."""
        return vars(self) | {name: np.array(getattr(self, name)) for name in ("observations", "actions")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, observations=list(state["observations"]), actions=list(state["actions"]))


@dataclass(frozen=True)
class RolloutTask:
    """Factories of a worker's environments and policy. Other processes must be able to import both."""

    make_environment: Callable[[], Environment]
    make_policy: Callable[[], Policy]


def run_episodes(
    task: RolloutTask, seeds: Sequence[int], *, workers: int | None, description: str
) -> list[Episode]:
    """Run one episode per seed and return the episodes in the order of the seeds.

    The same seeds give the same episodes for any number of ``workers``: an episode depends only on its own seed
    and is always stepped in the same batch.

    Args:
        task: factories of the environment and the policy.
        seeds: one per episode, non-negative.
        workers: number of processes; 1: this process; None: one per core.
        description: text of the progress bar.

    Raises:
        InputError: an episode of more than LONGEST_EPISODE steps, or a process that died.
    """
    batches = [list(seeds[i : i + BATCH]) for i in range(0, len(seeds), BATCH)]
    results: dict[int, list[Episode]] = {}
    processes = min(workers or available_cores(), len(batches))
    with progress_bar() as progress:
        bar = progress.add_task(description, total=len(seeds))
        if processes == 1:
            threads = torch.get_num_threads()
            torch.set_num_threads(1)  # as in a worker process: a policy's rounding may depend on it
            worker = _Worker(task)
            try:
                for index, batch in enumerate(batches):
                    results[index] = worker.run(batch)
                    progress.advance(bar, len(batch))
            finally:
                torch.set_num_threads(threads)
                worker.close()
        else:
            with ProcessPoolExecutor(
                processes,
                mp_context=start_server(),
                initializer=_start_worker,
                # Pickled here, because multiprocessing would pass a policy's tensors as open files.
                initargs=(dict(os.environ), pickle.dumps(task)),
            ) as pool:
                pending: dict[Future[list[Episode]], int] = {
                    pool.submit(_run_in_worker, batch): index for index, batch in enumerate(batches)
                }
                try:
                    for future in as_completed(pending):
                        index = pending[future]
                        results[index] = future.result()
                        progress.advance(bar, len(batches[index]))
                except BrokenProcessPool as error:
                    raise InputError(
                        "a process that steps environments died: memory ran out, or a script of yours starts "
                        'processes outside of `if __name__ == "__main__":`; lower data_ingestion.workers or '
                        "evaluation.workers (in Python: workers=1)"
                    ) from error
                except BaseException:
                    for future in pending:  # leaving the pool waits for all that is not cancelled
                        future.cancel()
                    raise
    return [episode for index in range(len(batches)) for episode in results[index]]


class _Worker:
    """Runs batches of episodes; reuses its environments, because building a simulation is slow."""

    def __init__(self, task: RolloutTask) -> None:
        self._task = task
        self._environments: list[Environment] = []

    @cached_property
    def _policy(self) -> Policy:
        return self._task.make_policy()

    @user_code()
    def run(self, seeds: Sequence[int]) -> list[Episode]:
        while len(self._environments) < len(seeds):
            self._environments.append(self._task.make_environment())
        episodes = [Episode() for _ in seeds]
        for episode, environment, seed in zip(episodes, self._environments, seeds, strict=False):
            observation, info = environment.reset(seed=seed)
            episode.observations.append(np.array(observation))  # the environment may write into its own
            episode.success_reported = success_in(info) is not None
        self._policy.start(seeds)
        running = list(range(len(seeds)))
        while running:
            actions = self._policy.act([episodes[i].observations[-1] for i in running], running)
            for i, action in zip(running, actions, strict=True):
                episode, environment = episodes[i], self._environments[i]
                executed = _executed(action, environment)
                observation, reward, terminated, truncated, info = environment.step(executed)
                episode.observations.append(np.array(observation))
                episode.actions.append(executed)
                episode.rewards.append(float(reward))
                success = success_in(info)
                episode.successes.append(bool(success))
                episode.success_reported |= success is not None
                episode.terminated, episode.truncated = bool(terminated), bool(truncated)
            running = [i for i in running if not (episodes[i].terminated or episodes[i].truncated)]
            if running and len(episodes[running[0]].actions) >= LONGEST_EPISODE:
                raise InputError(
                    f"an episode did not end within {LONGEST_EPISODE} steps: its environment has no time limit; set "
                    "evaluation.episode_steps (dataset.episode_steps where the dataset is collected in it), or "
                    "truncate episodes in the environment's own step"
                )
        return episodes

    @user_code()
    def close(self) -> None:
        """Free the environments."""
        while self._environments:
            self._environments.pop().close()


def _executed(action: Array, environment: Environment) -> Array:
    """Return the action that the environment executes: clipped to its bounds, or one-hot if discrete."""
    space = environment.action_space
    if environment.discrete:
        executed: Array = np.eye(space.shape[0], dtype=np.float32)[int(np.argmax(action))]
    else:
        executed = np.clip(action, space.low, space.high).astype(np.float32)
    return executed


def start_server() -> BaseContext:
    """Start the process that worker processes are forked from, unless it runs, and return how to start them.

    It imports what all of them need, and then waits. It has no threads, whereas torch's threads in this process would
    not survive a fork. Without such a server, every worker is a fresh process.
    """
    if sys.platform == "linux":
        with suppress(OSError):  # its socket cannot be made, such as in a temporary folder with a long path
            used = [name for name in PRELOADED if name.partition(".")[0] in sys.modules]
            multiprocessing.set_forkserver_preload(used)  # without effect if the server runs
            forkserver.ensure_running()
            return multiprocessing.get_context("forkserver")
    return multiprocessing.get_context("spawn")


_task = b""


def _start_worker(variables: Mapping[str, str], task: bytes) -> None:
    global _task
    Thread(target=_end_with_parent, daemon=True).start()
    os.environ.update(variables)  # the server has those of its own start
    torch.set_num_threads(1)  # one thread per process
    _task = task


def _end_with_parent() -> None:
    """End this process when its parent ends for any reason: kill -9 must leave no worker behind."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@cache
def _this_worker() -> _Worker:
    worker = _Worker(pickle.loads(_task))  # noqa: S301 (the parent's own bytes)
    Finalize(worker, worker.close, exitpriority=0)  # when the process ends
    return worker


def _run_in_worker(seeds: Sequence[int]) -> list[Episode]:
    return _this_worker().run(seeds)


def stack_episodes(episodes: Sequence[Episode], environment: Environment) -> tuple[Transitions, Rewards]:
    """Concatenate recorded episodes in the container; the environment defines the action space."""
    action_space, layout = environment.action_space, parts_of(environment)

    def joined(parts: list[list[Array]], packed: bool = False) -> torch.Tensor:
        rows = np.concatenate([np.asarray(part) for part in parts])
        return torch.from_numpy(rows if packed or rows.ndim == 4 else rows.astype(np.float32))

    lengths: NDArray[np.int64] = np.array([len(episode.actions) for episode in episodes], dtype=np.int64)
    transitions = Transitions(
        observations=joined([episode.observations for episode in episodes], layout is not None),
        actions=joined([episode.actions for episode in episodes]),
        episode_starts=torch.from_numpy(np.concatenate([[0], lengths.cumsum()])),
        terminated=torch.tensor([episode.terminated for episode in episodes]),
        truncated=torch.tensor([episode.truncated for episode in episodes]),
        action_low=torch.from_numpy(np.asarray(action_space.low, dtype=np.float32)),
        action_high=torch.from_numpy(np.asarray(action_space.high, dtype=np.float32)),
        discrete=torch.tensor(environment.discrete),
        parts=layout,
    )
    rewards = Rewards(
        rewards=torch.tensor([r for episode in episodes for r in episode.rewards], dtype=torch.float32),
        successes=torch.tensor([s for episode in episodes for s in episode.successes]),
        success_reported=torch.tensor(any(episode.success_reported for episode in episodes)),
    )
    return transitions, rewards
