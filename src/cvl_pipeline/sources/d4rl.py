"""Episodes of D4RL's files, read without D4RL: neither gym nor mujoco_py is needed.

A file is HDF5 with one row per step in ``observations``, ``actions``, ``rewards`` and ``terminals``, in most
files ``timeouts``, and in some ``next_observations``; other arrays (``infos``, ``metadata``) are not read. The
meaning of flags and rewards differs between families of tasks. The programs that made the files and D4RL's
issues (numbers in brackets) define it:

* locomotion (halfcheetah, hopper, walker2d, ant) and adroit (pen, hammer, door, relocate): a terminal is a
  fall or a dropped object. A timeout is the last step of any other episode, such as a demonstration.
* antmaze: a terminal is a step that leads to the goal. The log goes on there, so terminals come in runs (199).
  Timeouts end episodes; most v0 files have them at the wrong steps (77), and v2 corrects them.
* maze2d: one endless walk. Timeouts mark the steps at which the walker took a new goal (85). There are no
  terminals. A step's reward is that of the state in which it starts (194).
* kitchen: no timeouts. A terminal is the last step of a demonstration, solved or not. A step's reward is the
  number of subtasks done in the state in which it starts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pooch
from numpy.typing import NDArray
from pydantic import Field, model_validator

from cvl_pipeline.environments.base import Environment
from cvl_pipeline.environments.d4rl_tasks import D4RL_TASKS, MAZE2D_STEPS
from cvl_pipeline.environments.gymnasium import GymnasiumEnvironment
from cvl_pipeline.episodes.container import Rewards, Transitions
from cvl_pipeline.errors import InputError, look_up, one_line
from cvl_pipeline.imports import package_file
from cvl_pipeline.io.pieces import Column, by_block, first_where, slices
from cvl_pipeline.io.storage import shown, unreadable
from cvl_pipeline.paths import expanded
from cvl_pipeline.schema import operational
from cvl_pipeline.sources.base import LocalPath, Source, SourceParameters, Task
from cvl_pipeline.sources.download import download
from cvl_pipeline.sources.hdf5 import HDF5, check_log, log_files, open_hdf5
from cvl_pipeline.sources.precision import check_finite, single_precision
from cvl_pipeline.sources.progress import progress
from cvl_pipeline.sources.steps import Steps, episodes_from_steps, first_gap

Floats = NDArray[np.float32]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Tables:
    """Tables of the installed package ``d4rl``, by dataset id.

    Attributes:
        urls: URL of the file.
        min_scores: undiscounted return of a random policy; some datasets have none.
        max_scores: undiscounted return of an expert.
    """

    urls: dict[str, str]
    min_scores: dict[str, float]
    max_scores: dict[str, float]


def read_tables() -> Tables:
    """Read the tables of the package ``d4rl`` without importing it.

    Raises:
        InputError: the package is not installed, or has another version.
    """
    infos = package_file("d4rl", "infos.py")
    if infos is None:
        raise InputError(
            "the package d4rl, which contains the datasets' URLs and reference scores, is not installed; run: "
            "pip install --no-deps d4rl==1.1 (a local file, dataset.path, loads without it)"
        )
    # The file is dictionaries, some of them filled by loops, so it has to be executed. It gets no builtins:
    # it needs none, and without them it cannot import anything.
    names: dict[str, Any] = {"__builtins__": {}}
    try:
        exec(compile(infos.read_text(encoding="utf-8"), "infos.py", "exec"), names)
        return Tables(*(dict(names[name]) for name in ("DATASET_URLS", "REF_MIN_SCORE", "REF_MAX_SCORE")))
    except Exception as error:  # any error of another version's file
        raise InputError(
            f"{shown(infos)}: not the tables of d4rl 1.1 ({error}); run: pip install --no-deps d4rl==1.1"
        ) from error


def normalised_score(dataset_id: str, undiscounted_return: float) -> float | None:
    """Return D4RL's score of a return: 0 for a random policy, 100 for an expert.

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
    """Return the file of a published dataset; download it into the cache folder if it is missing.

    Raises:
        InputError: D4RL has no such dataset, the package ``d4rl`` is not installed, or the download fails.
    """
    return download(look_up("D4RL dataset", dataset_id, read_tables().urls), cache)


@dataclass(frozen=True)
class _Family:
    """Properties of a family of tasks that its files do not contain.

    Attributes:
        solved: smallest reward of a state in which the task is solved; infinite if rewards do not show it.
        needs_timeouts: some episodes end without a terminal.
        terminal_rows: the log goes on after a terminal, with more terminals.
        terminal_anyway: the last step of every episode is a terminal, solved or not.
        start_rewards: a step's reward is that of the state in which it starts, not of the state it leads to.
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
_ANT_JUMP = 5.0  # more than an ant can move in one step; D4RL's own check uses the same value


def load_d4rl(
    path: Path,
    dataset_id: str | None = None,
    success_reward: float | None = None,
) -> tuple[Transitions, Rewards]:
    """Read the episodes of a file in D4RL's format, published or your own.

    A terminal is a termination, a timeout a truncation, and a step with both a termination. The id defines the
    rest (see the module):

    * antmaze: the first terminal of a run ends the episode, as in the environment; the steps of the others are
      dropped.
    * kitchen: a terminal without success is a truncation.
    * maze2d and kitchen: rewards move one step back, so that they count on arrival. A last step that is kept
      although its next state is unknown keeps its own reward.
    * maze2d without any flag, in old files: episodes have the environment's length, as in D4RL. The walk goes
      on there, so these cuts are harmless; for other tasks they would join episodes.

    Args:
        path: the file.
        dataset_id: D4RL's name of the dataset, such as ``antmaze-umaze-v2``; None for your own log, whose
            rewards count on arrival.
        success_reward: smallest reward of a step that solves the task. None: the task's own, which is 1 in
            antmaze and in maze2d with sparse rewards, and 4 in kitchen; other tasks have none.

    Returns:
        The episodes and their rewards. Action bounds are -1 and 1, as in all of D4RL's tasks;
        ``dataset.actions_out_of_bounds`` says what becomes of actions beyond them.

    Raises:
        InputError: a missing, damaged or foreign file, a missing array or one of the wrong shape, flags that do
            not define where episodes end, next observations that are not those of the following row, or an id of an
            unknown family.
    """
    path = expanded(path)
    source, dataset_id = shown(path), dataset_id or ""
    family = _family(dataset_id)
    log = _read_log(path)
    terminated, truncated = log.terminals, _timeouts(log, dataset_id, source)
    rewards = log.rewards
    if family.start_rewards and log.next_observations is None:
        rewards = _on_arrival(rewards, terminated, truncated)
    if family.terminal_anyway:
        truncated = by_block(np.logical_or, truncated, terminated)
        terminated = by_block(lambda end, reward: end & (reward >= family.solved), terminated, rewards)
    if family.start_rewards and log.next_observations is None:
        # Where the last step of a truncated episode led is unknown, and so is its reward. The step is dropped.
        rewards = by_block(
            lambda reward, cut, end: np.where(cut & ~end, np.float32(np.nan), reward),
            rewards, truncated, terminated,
        )  # fmt: skip
        if not terminated[-1]:
            rewards[-1] = np.nan
    ignored = None
    if family.terminal_rows:
        _check_ant(log.observations, terminated, truncated, source)
        ignored = _after_terminal(terminated, truncated)
    if success_reward is None:
        success_reward = math.inf if "-dense-" in dataset_id else family.solved
    successes = None
    if math.isfinite(success_reward):
        successes = by_block(lambda reward: reward >= success_reward, rewards)
    steps = Steps(
        observations=log.observations,
        actions=log.actions,
        terminated=terminated,
        truncated=truncated,
        next_observations=log.next_observations,
        rewards=rewards,
        successes=successes,
        ignored=ignored,
    )
    following = log.next_observations
    # Other shapes are refused below.
    comparable = following is not None and following.shape == log.observations.shape
    if comparable and (gap := first_gap(steps)):
        raise InputError(
            f"{source}: next_observations are {gap.found:g} in row {gap.row}, dimension {gap.dimension}, but row "
            f"{gap.row + 1} starts from {gap.expected:g}; sort the steps of an episode by time, and set timeouts or "
            "terminals in its last row"
        )
    # All of D4RL's tasks take actions from -1 to 1, even if a log does not reach these bounds.
    high = np.ones(log.actions.shape[1], dtype=np.float32)
    unneeded = (
        "read it with dataset.source=files, dataset.columns.terminated=terminals, dataset.columns.truncated="
        f"{'null' if log.timeouts is None else 'timeouts'} and dataset.columns.rewards=null"
    )
    return episodes_from_steps(steps, source, (-high, high), unneeded=unneeded)


@dataclass(frozen=True)
class _Log:
    """Arrays of a file, N rows each."""

    observations: Floats
    actions: Floats
    rewards: Floats
    terminals: Flags
    timeouts: Flags | None
    next_observations: Floats | None


_ARRAYS = ("observations", "actions", "rewards", "terminals", "timeouts", "next_observations")


def _read_log(path: Path) -> _Log:
    source = shown(path)
    check_log(path)
    try:
        if not path.is_file():
            raise InputError(f"{source} is not a file; correct dataset.path, or put the file there")
        with open_hdf5(path) as file:
            rows = sum(shape[0] for shape in map(file.shape, _ARRAYS) if shape)
            with progress(f"reading {source}", rows, path.stat().st_size) as advance:
                log = _log(file, source, advance)
    except InputError:
        raise
    except PermissionError as error:
        raise unreadable(path, error) from error
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, MemoryError) as error:
        # The errors of h5py for a damaged file.
        raise InputError(
            f"{source} cannot be read as HDF5 ({one_line(error)}); if it is damaged or cut short, "
            "delete it and download it again"
        ) from error
    return log


def _log(file: HDF5, source: str, advance: Callable[[int], None]) -> _Log:
    read = _Reader(file, source, advance)
    observations = read.vectors("observations")
    return _Log(
        observations=observations,
        actions=read.vectors("actions"),
        rewards=read.rewards(),
        terminals=read.flags("terminals"),
        timeouts=read.flags("timeouts") if "timeouts" in file.arrays else None,
        next_observations=read.vectors("next_observations") if "next_observations" in file.arrays else None,
    )


@dataclass
class _Reader:
    """Reads the arrays of a file, all of which have as many rows as the first."""

    file: HDF5
    source: str
    advance: Callable[[int], None]
    count: int | None = None

    def vectors(self, name: str) -> Floats:
        """One vector per step, (N, K)."""
        values = self._array(name)
        if values.ndim != 2:
            raise InputError(
                f"{self.source}: {name} have shape {values.shape}, not (steps, dimensions); save one vector "
                "per step (images and discrete actions are not read from this format)"
            )
        check_finite(values, f"{self.source}: {name}")
        return values

    def rewards(self) -> Floats:
        """The rewards, (N,), all finite."""
        values = self.numbers("rewards")
        check_finite(
            values,
            f"{self.source}: rewards",
            "remove or repair that episode, or read the file with dataset.source=files and "
            "dataset.columns.rewards=null",
        )
        return values

    def numbers(self, name: str) -> Floats:
        """One number per step, (N,)."""
        values = self._array(name)
        # Replay buffers write (count, 1).
        if values.shape not in ((self.count,), (self.count, 1)):
            raise InputError(
                f"{self.source}: {name} have shape {values.shape}, not ({self.count},); give one number per step"
            )
        return values.reshape(len(values))

    def flags(self, name: str) -> Flags:
        """One flag per step, (N,) bool."""
        values = self.numbers(name)
        other = first_where(lambda part: (part != 0.0) & (part != 1.0), values)
        if other is not None:
            raise InputError(f"{self.source}: {name} have {values[other]:g} at step {other[0]}; use 0 or 1")
        return by_block(lambda part: part == 1.0, values)

    def _array(self, name: str) -> Floats:
        file, source = self.file, self.source
        fault = file.fault(name)
        if fault is not None:
            raise InputError(f"{source}: array '{name}': {fault}")
        node = file.array(name)
        if node is None:
            names = (
                ", ".join(sorted({name.partition("/")[0] for name in (*file.arrays, *file.groups)}))
                or "nothing"
            )
            raise InputError(
                f"{source}: no array '{name}', the file contains {names}; D4RL's format needs observations, "
                "actions, rewards and terminals"
            )
        if node.dtype.kind not in "biuf":
            raise InputError(f"{source}: {name} have type {node.dtype}; give numbers")
        if not node.shape:
            raise InputError(f"{source}: {name} have no rows; give one per step")
        if self.count is None:
            self.count = len(node)
        if len(node) != self.count:
            raise InputError(
                f"{source}: {len(node)} rows of {name}, but {self.count} of observations; give one of each per step"
            )
        if not len(node):
            raise InputError(f"{source}: {name} have no rows; give a file with at least one episode")
        column = Column()
        for block in file.blocks(name):
            column.append(block)
            self.advance(len(block))
        return single_precision(column.array(), f"{source}: {name}")


def _on_arrival(rewards: Floats, terminated: Flags, truncated: Flags) -> Floats:
    """Rewards of the states that steps lead to, (N,), from those of the states in which they start.

    The next row has it; the last step of an episode has no next row, and keeps its own.
    """
    result = Column()
    for rows in slices(rewards):
        after = rewards[rows.start + 1 : rows.stop + 1]
        if rows.stop == len(rewards):
            after = np.append(after, rewards[-1:])
        result.append(np.where(terminated[rows] | truncated[rows], rewards[rows], after))
    return result.array()


def _after_terminal(terminated: Flags, truncated: Flags) -> Flags:
    """Whether the row before each row, (N,), ended the episode with a terminal, and the row is one too."""
    ignored = Column()
    ignored.append(np.zeros(1, dtype=bool))
    for rows in slices(terminated[:-1]):
        after = terminated[rows.start + 1 : rows.stop + 1]
        ignored.append(after & terminated[rows] & ~truncated[rows])
    return ignored.array()


def _family(dataset_id: str) -> _Family:
    if not dataset_id:
        return _Family()
    return look_up("family of D4RL's datasets", dataset_id.removeprefix("bullet-").split("-")[0], _FAMILIES)


def _timeouts(log: _Log, dataset_id: str, source: str) -> Flags:
    timeouts = np.zeros(len(log.rewards), dtype=bool) if log.timeouts is None else log.timeouts
    flagged = bool(log.terminals.any() or timeouts.any())
    words = dataset_id.split("-")
    limits = [MAZE2D_STEPS[word] for word in words if word in MAZE2D_STEPS and "maze2d" in words]
    if not flagged and limits:
        ends = Column()
        for rows in slices(log.rewards):
            ends.append(np.arange(rows.start + 1, rows.stop + 1) % limits[0] == 0)
        return ends.array()
    if not flagged or (log.timeouts is None and _family(dataset_id).needs_timeouts):
        fault = "there are no timeouts" if log.timeouts is None else "no step is a timeout"
        raise InputError(
            f"{source}: {fault}{'' if flagged else ' and no step is a terminal'}, so the ends of episodes are "
            "unknown; download the file again if it is D4RL's, else write timeouts that are 1 at the last "
            "step of every episode"
        )
    return timeouts


def _check_ant(observations: Floats, terminated: Flags, truncated: Flags, source: str) -> None:
    count, first = 0, (0, 0.0)
    for rows in slices(observations[:-1]):
        moves = np.diff(observations[rows.start : rows.stop + 1, :2], axis=0)
        distances = np.linalg.norm(moves, axis=1)
        jumps = np.flatnonzero((distances > _ANT_JUMP) & ~terminated[rows] & ~truncated[rows])
        if len(jumps) and not count:
            first = rows.start + int(jumps[0]), float(distances[jumps[0]])
        count += len(jumps)
    if count:
        raise InputError(
            f"{source}: the ant jumps {first[1]:.1f} after step {first[0]} ({count} such steps), "
            "where neither a terminal nor a timeout ends the episode, as in D4RL's antmaze v0; use the v2 "
            "dataset of this maze, which has correct timeouts"
        )


SUCCESSORS = {
    "hopper": "Hopper-v5",
    "halfcheetah": "HalfCheetah-v5",
    "walker2d": "Walker2d-v5",
    "pen": "AdroitHandPen-v1",
    "hammer": "AdroitHandHammer-v1",
    "door": "AdroitHandDoor-v1",
    "relocate": "AdroitHandRelocate-v1",
}
"""Gymnasium's environments with the same observations and actions as D4RL's, by the first word of the id.

The physics differs: MuJoCo's own bindings instead of mujoco_py 2.0, and version 5 of the tasks instead of 2. So
returns are close to D4RL's, but not equal. In maze2d, antmaze and kitchen, the observations changed too, so
``D4RL_TASKS`` reimplements D4RL's own tasks."""


class D4RL(Source):
    """A dataset in D4RL's format, published or your own."""

    class Parameters(SourceParameters):
        """The settings of ``d4rl``."""

        source: Literal["d4rl"] = Field("d4rl", description="A dataset in D4RL's HDF5 format.")
        task: Task | None = Field(
            "hopper-medium-v2",
            description="Id of the dataset. null: `path` is a log of your own in this format.",
        )
        path: LocalPath | None = operational(None, description="The file. null: it is downloaded and cached.")
        success_reward: float | None = Field(
            None, description="Smallest reward that counts as success. null: the task family's own, if any."
        )

        @model_validator(mode="after")
        def _is_somewhere(self) -> D4RL.Parameters:
            if self.path is None and self.task is None:
                raise ValueError(
                    "dataset.task is null: name a dataset of D4RL's, or your own file as dataset.path"
                )
            return self

        @property
        def label(self) -> str:
            """The file's name, or the task."""
            return Path(self.path).name if self.path else str(self.task)

    parameters: Parameters

    @property
    def _family(self) -> str:
        return (self.parameters.task or "").split("-")[0]

    def load(self, seed: int, workers: int | None) -> tuple[Transitions, Rewards]:
        """Read the file; download it first if it is missing."""
        p = self.parameters
        path = Path(p.path) if p.path else fetch_d4rl(str(p.task), Path(pooch.os_cache("d4rl")))
        return load_d4rl(path, p.task, p.success_reward)

    def make_environment(self, episode_steps: int | None = None) -> Callable[[], Environment] | None:
        """Return a factory of the environment's successor, or of D4RL's own task."""
        if self._family in SUCCESSORS:
            return partial(GymnasiumEnvironment, SUCCESSORS[self._family], episode_steps)
        if self._family in D4RL_TASKS:
            return partial(D4RL_TASKS[self._family], str(self.parameters.task), episode_steps)
        return None

    @property
    def environment_name(self) -> str:
        """The successor's id, or D4RL's."""
        return SUCCESSORS.get(self._family, self.parameters.label)

    def score(self, mean_return: float) -> float | None:
        """Return D4RL's normalised score."""
        with suppress(InputError):  # a local file with another name, or no tables
            return normalised_score(self.parameters.task or "", mean_return)
        return None

    def files(self) -> list[Path]:
        """The local file, and the files that its external links lead to."""
        return log_files(Path(self.parameters.path)) if self.parameters.path else []
