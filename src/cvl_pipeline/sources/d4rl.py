"""Episodes of D4RL's files, read without D4RL: neither gym nor mujoco_py is needed.

A file is HDF5 with one row a step in ``observations``, ``actions``, ``rewards`` and ``terminals``, in most
files ``timeouts``, and in some ``next_observations``; all else (``infos``, ``metadata``) is not read. What
flags and rewards mean differs between families of tasks and is told by the programs that made the files and
by D4RL's issues (numbers in brackets):

* locomotion (halfcheetah, hopper, walker2d, ant) and adroit (pen, hammer, door, relocate): a terminal is a
  fall or a dropped object, a timeout the last step of an episode that ends otherwise, such as a
  demonstration;
* antmaze: a terminal says that the step led to the goal, where the log goes on, so they come in rows (199);
  timeouts end episodes, in most v0 files at the wrong places (77), which v2 repairs;
* maze2d: one endless walk. Timeouts mark where the walker took a new goal (85), there is no terminal, and a
  step's reward is that of the state it started from (194);
* kitchen: no timeouts. A terminal is the last step of a demonstration, whether or not it solved the task, and
  a step's reward is the number of subtasks done in the state it started from.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import pooch
from numpy.typing import NDArray
from pydantic import Field

from cvl_pipeline.environments.base import Environment
from cvl_pipeline.environments.d4rl_tasks import D4RL_TASKS
from cvl_pipeline.environments.gymnasium import GymnasiumEnvironment
from cvl_pipeline.episodes.container import Rewards, Transitions
from cvl_pipeline.errors import InputError, look_up
from cvl_pipeline.imports import package_file
from cvl_pipeline.io.storage import shown
from cvl_pipeline.schema import operational
from cvl_pipeline.sources.base import LocalPath, Source, SourceParameters, Task
from cvl_pipeline.sources.download import download
from cvl_pipeline.sources.steps import Steps, episodes_from_steps

Floats = NDArray[np.float32]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Tables:
    """What the installed package ``d4rl`` says of its datasets, by their ids.

    Attributes:
        urls: where each one's file is.
        min_scores: undiscounted return of a random policy; some datasets have none.
        max_scores: that of an expert.
    """

    urls: dict[str, str]
    min_scores: dict[str, float]
    max_scores: dict[str, float]


def read_tables() -> Tables:
    """The tables of the package ``d4rl``, without importing it.

    Raises:
        InputError: it is not installed, or another version.
    """
    infos = package_file("d4rl", "infos.py")
    if infos is None:
        raise InputError(
            "the package d4rl, which knows the datasets' URLs and reference scores, is not installed; run: "
            "pip install --no-deps d4rl==1.1 (a local file, dataset.path, loads without it)"
        )
    # The file is dictionaries, some of them filled by loops, so it has to be executed. It gets no builtins:
    # it needs none, and without them it cannot import anything.
    names: dict[str, Any] = {"__builtins__": {}}
    try:
        exec(compile(infos.read_text(encoding="utf-8"), "infos.py", "exec"), names)
        return Tables(*(dict(names[name]) for name in ("DATASET_URLS", "REF_MIN_SCORE", "REF_MAX_SCORE")))
    except Exception as error:  # whatever another file does
        raise InputError(
            f"{shown(infos)}: not the tables of d4rl 1.1 ({error}); run: pip install --no-deps d4rl==1.1"
        ) from error


def normalised_score(dataset_id: str, undiscounted_return: float) -> float | None:
    """D4RL's score of a return: 0 for a random policy, 100 for an expert.

    Returns:
        The score, or None if D4RL has no reference for the dataset.

    Raises:
        InputError: D4RL has no such dataset, or the package ``d4rl`` is not installed.
    """
    tables = read_tables()
    look_up("D4RL dataset", dataset_id, tables.urls)
    if dataset_id not in tables.min_scores or dataset_id not in tables.max_scores:
        return None
    low, high = tables.min_scores[dataset_id], tables.max_scores[dataset_id]
    return 100.0 * (undiscounted_return - low) / (high - low)


def fetch_d4rl(dataset_id: str, cache: Path) -> Path:
    """The file of a published dataset, downloaded into the cache folder if it is not there.

    Raises:
        InputError: D4RL has no such dataset, the package ``d4rl`` is not installed, or the download fails.
    """
    return download(look_up("D4RL dataset", dataset_id, read_tables().urls), cache)


@dataclass(frozen=True)
class _Family:
    """What a file of these tasks does not say itself.

    Attributes:
        solved: smallest reward of a state in which the task is solved; infinite where rewards do not say.
        needs_timeouts: episodes also end where no terminal is.
        terminal_rows: the log goes on after a terminal, with more terminals.
        terminal_anyway: the last step of every episode is a terminal, solved or not.
        start_rewards: a step's reward is that of the state it started from, not of the one it led to.
    """

    solved: float = math.inf
    needs_timeouts: bool = False
    terminal_rows: bool = False
    terminal_anyway: bool = False
    start_rewards: bool = False


_LOCOMOTION = _ADROIT = _Family(needs_timeouts=True)
_FAMILIES = {
    "halfcheetah": _LOCOMOTION, "hopper": _LOCOMOTION, "walker2d": _LOCOMOTION, "ant": _LOCOMOTION,
    "pen": _ADROIT, "hammer": _ADROIT, "door": _ADROIT, "relocate": _ADROIT,
    "antmaze": _Family(solved=1.0, needs_timeouts=True, terminal_rows=True),
    "maze2d": _Family(solved=1.0, start_rewards=True),
    "kitchen": _Family(solved=4.0, start_rewards=True, terminal_anyway=True),
    "minigrid": _Family(), "flow": _Family(), "carla": _Family(),
}  # fmt: skip
_MAZE2D_STEPS = {"open": 150, "umaze": 300, "medium": 600, "large": 800}  # of D4RL's environments, an episode
_ANT_JUMP = 5.0  # a distance that no ant covers in a step; D4RL's own check of these files uses it too


def load_d4rl(
    path: Path, dataset_id: str | None = None, success_reward: float | None = None
) -> tuple[Transitions, Rewards]:
    """Episodes of a file in D4RL's format, published or one's own.

    A terminal ends an episode as a termination, a timeout as a truncation, a step with both as a termination.
    The id adds what the file does not say (see the module):

    * antmaze: of terminals in a row the first ends the episode, as it does in the environment, and the steps
      of the others are left out;
    * kitchen: a terminal where the task is not solved is a truncation;
    * maze2d and kitchen: rewards move one step back, so that they are counted on arrival. A last step that is
      kept although nobody knows where it led keeps its own reward;
    * maze2d without any flag, as in old files: cut at every limit of the environment's steps, as D4RL does.
      The walk goes on there, so these cuts are harmless; elsewhere they would join episodes.

    Args:
        path: the file.
        dataset_id: D4RL's name of the dataset, such as ``antmaze-umaze-v2``; None for a log of one's own,
            whose rewards are counted on arrival.
        success_reward: smallest reward of a step that solves the task. None takes the task's own: 1 in
            antmaze and in maze2d with sparse rewards, 4 in kitchen; no step solves any other task.

    Returns:
        The episodes, with action bounds -1 and 1 if all actions are within, else the log's own extremes, and
        their rewards.

    Raises:
        InputError: a missing, damaged or foreign file, a missing or ill-shaped array, flags that do not say
            where episodes end, or an id of no family of D4RL's.
    """
    source, dataset_id = shown(path), dataset_id or ""
    family = _family(dataset_id)
    log = _read_log(path)
    terminated, truncated = log.terminals, _timeouts(log, dataset_id, source)
    rewards = log.rewards
    if family.start_rewards and log.next_observations is None:
        # The reward of the state that a step led to is in the next row; behind an episode there is none.
        rewards = np.where(terminated | truncated, rewards, np.append(rewards[1:], rewards[-1:]))
    if family.terminal_anyway:
        truncated = truncated | terminated
        terminated = terminated & (rewards >= family.solved)
    rows = np.ones(len(rewards), dtype=bool)
    if family.terminal_rows:
        _check_ant(log.observations, terminated | truncated, source)
        rows[1:] = ~(terminated[1:] & terminated[:-1] & ~truncated[:-1])
    if success_reward is None:
        success_reward = math.inf if "-dense-" in dataset_id else family.solved
    steps = Steps(
        observations=log.observations[rows],
        actions=log.actions[rows],
        terminated=terminated[rows],
        truncated=truncated[rows],
        next_observations=None if log.next_observations is None else log.next_observations[rows],
        rewards=rewards[rows],
        successes=rewards[rows] >= success_reward if math.isfinite(success_reward) else None,
    )
    return episodes_from_steps(steps, source, _action_bounds(log.actions))


@dataclass(frozen=True)
class _Log:
    """The arrays of a file, N rows each."""

    observations: Floats
    actions: Floats
    rewards: Floats
    terminals: Flags
    timeouts: Flags | None
    next_observations: Floats | None


def _read_log(path: Path) -> _Log:
    source = shown(path)
    try:
        if not path.is_file():
            raise InputError(f"{source} is not a file; correct dataset.path, or put the file there")
        with h5py.File(path, "r") as file:
            log = _log(file, source)
    except InputError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, MemoryError) as error:
        # What h5py raises for a damaged file.
        raise InputError(
            f"{source} cannot be read as HDF5 ({' '.join(str(error).split())}); if it is damaged or cut "
            "short, delete it and download it again"
        ) from error
    if len(log.observations) == 0:
        raise InputError(f"{source}: observations have no row; give a file with at least one episode")
    return log


def _log(file: Any, source: str) -> _Log:
    observations = _vectors(file, "observations", source)
    count = len(observations)
    return _Log(
        observations=observations,
        actions=_vectors(file, "actions", source, count),
        rewards=_numbers(file, "rewards", source, count),
        terminals=_flags(file, "terminals", source, count),
        timeouts=_flags(file, "timeouts", source, count) if "timeouts" in file else None,
        next_observations=(
            _vectors(file, "next_observations", source, count) if "next_observations" in file else None
        ),
    )


def _vectors(file: Any, name: str, source: str, count: int | None = None) -> Floats:
    values = _array(file, name, source, count)
    if values.ndim != 2:
        raise InputError(
            f"{source}: {name} have shape {values.shape}, not (steps, dimensions); lay them out as one "
            "vector a step (images and discrete actions are not read from this format)"
        )
    return values


def _numbers(file: Any, name: str, source: str, count: int) -> Floats:
    values = _array(file, name, source, count)
    # Replay buffers write columns.
    if values.shape not in ((count,), (count, 1)):
        raise InputError(
            f"{source}: {name} have shape {values.shape}, not ({count},); give one number a step"
        )
    return values.reshape(count)


def _flags(file: Any, name: str, source: str, count: int) -> Flags:
    values = _numbers(file, name, source, count)
    other = (values != 0.0) & (values != 1.0)
    if other.any():
        step = int(other.argmax())
        raise InputError(f"{source}: {name} have {values[step]:g} at step {step}; they must be 0 or 1")
    return np.asarray(values == 1.0)


def _array(file: Any, name: str, source: str, count: int | None) -> Floats:
    node = file.get(name)
    if not isinstance(node, h5py.Dataset):
        found = ", ".join(sorted(map(str, file))) or "nothing at all"
        raise InputError(
            f"{source}: no array '{name}', but {found}; D4RL's format needs observations, actions, rewards "
            "and terminals"
        )
    if node.dtype.kind not in "biuf":
        raise InputError(f"{source}: {name} have type {node.dtype}; give numbers")
    if not node.shape:
        raise InputError(f"{source}: {name} have no rows; give one a step")
    if count is not None and len(node) != count:
        raise InputError(
            f"{source}: {len(node)} rows of {name}, but {count} of observations; give one of each a step"
        )
    with np.errstate(over="ignore"):  # infinite then, which validation refuses with its place
        values: Floats = np.asarray(node[()], dtype=np.float32)
    return values


def _family(dataset_id: str) -> _Family:
    if not dataset_id:
        return _Family()
    return look_up("family of D4RL's datasets", dataset_id.removeprefix("bullet-").split("-")[0], _FAMILIES)


def _timeouts(log: _Log, dataset_id: str, source: str) -> Flags:
    timeouts = np.zeros(len(log.rewards), dtype=bool) if log.timeouts is None else log.timeouts
    flagged = bool((log.terminals | timeouts).any())
    words = dataset_id.split("-")
    limits = [_MAZE2D_STEPS[word] for word in words if word in _MAZE2D_STEPS and "maze2d" in words]
    if not flagged and limits:
        return np.asarray(np.arange(1, len(timeouts) + 1) % limits[0] == 0)
    if not flagged or (log.timeouts is None and _family(dataset_id).needs_timeouts):
        found = "there are no timeouts" if log.timeouts is None else "no step is a timeout"
        raise InputError(
            f"{source}: {found}{'' if flagged else ' and no step is a terminal'}, so where episodes end is "
            "not known; download the file again if it is D4RL's, else write timeouts that are 1 at the last "
            "step of every episode"
        )
    return timeouts


def _check_ant(observations: Floats, ends: Flags, source: str) -> None:
    distances = np.linalg.norm(np.diff(observations[:, :2], axis=0), axis=1)
    jumps = np.flatnonzero((distances > _ANT_JUMP) & ~ends[:-1])
    if len(jumps):
        step = int(jumps[0])
        raise InputError(
            f"{source}: the ant jumps {distances[step]:.1f} after step {step} ({len(jumps)} such steps), "
            "where neither a terminal nor a timeout ends the episode, as in D4RL's antmaze v0; take the v2 "
            "dataset of this maze, whose timeouts are repaired"
        )


def _action_bounds(actions: Floats) -> tuple[Floats, Floats] | None:
    # All of D4RL's tasks take actions from -1 to 1, and a log need not reach either end. One that goes beyond
    # is of another task, of which its own extremes are all that is known.
    if not (np.abs(actions) <= 1.0).all():
        return None
    high = np.ones(actions.shape[1], dtype=np.float32)
    return -high, high


SUCCESSORS = {
    "hopper": "Hopper-v5",
    "halfcheetah": "HalfCheetah-v5",
    "walker2d": "Walker2d-v5",
    "pen": "AdroitHandPen-v1",
    "hammer": "AdroitHandHammer-v1",
    "door": "AdroitHandDoor-v1",
    "relocate": "AdroitHandRelocate-v1",
}
"""Gymnasium's environments with the observations and actions of D4RL's, by the first word of the id.

The physics is not the same: MuJoCo's own bindings instead of mujoco_py 2.0, and version 5 of the tasks instead of
2. So returns are near D4RL's, not equal to them. Where the observations themselves changed, in maze2d, antmaze and
kitchen, ``D4RL_TASKS`` reimplements D4RL's own tasks."""


class D4RL(Source):
    """A dataset in D4RL's format, published or your own."""

    class Parameters(SourceParameters):
        """The settings of ``d4rl``."""

        source: Literal["d4rl"] = Field("d4rl", description="A dataset in D4RL's HDF5 format.")
        task: Task = Field("hopper-medium-v2", description="Id of the dataset.")
        path: LocalPath = operational(None, description="The file. null: downloaded and cached.")
        success_reward: float | None = Field(
            None, description="Smallest reward that counts as success. null: the task family's own, if any."
        )

        @property
        def label(self) -> str:
            """The file's name, or the task."""
            return Path(self.path).name if self.path else self.task

    parameters: Parameters

    @property
    def _family(self) -> str:
        return self.parameters.task.split("-")[0]

    def load(self, seed: int, workers: int | None) -> tuple[Transitions, Rewards]:
        """Read the file, downloaded first if it is not there."""
        given = self.parameters
        path = Path(given.path) if given.path else fetch_d4rl(given.task, Path(pooch.os_cache("d4rl")))
        return load_d4rl(path, given.task, given.success_reward)

    def make_environment(self, episode_steps: int | None = None) -> Callable[[], Environment] | None:
        """Return a factory of the environment's successor, or of D4RL's own task."""
        if self._family in SUCCESSORS:
            return partial(GymnasiumEnvironment, SUCCESSORS[self._family], episode_steps)
        if self._family in D4RL_TASKS:
            return partial(D4RL_TASKS[self._family], self.parameters.task, episode_steps)
        return None

    @property
    def environment_name(self) -> str:
        """The successor's id, or D4RL's."""
        return SUCCESSORS.get(self._family, self.parameters.task)

    def score(self, mean_return: float) -> float | None:
        """Return D4RL's normalised score."""
        with suppress(InputError):  # a local file under a name of its own, or no tables
            return normalised_score(self.parameters.task, mean_return)
        return None

    def files(self) -> list[Path]:
        """The local file."""
        return [Path(self.parameters.path)] if self.parameters.path else []
