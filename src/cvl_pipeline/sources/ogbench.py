"""OGBench's datasets (Park et al. 2025): published files, files of your own, or episodes collected here.

A file is NPZ with one row per state: an episode of T steps has T + 1 rows of ``observations``, ``actions`` and
``terminals``, of which the last terminal is 1 and the last action leads nowhere. ``qpos`` and, of scenes and puzzles,
``button_states`` are the simulation's state in each row, from which the rewards of a single task follow.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pooch
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator

from cvl_pipeline.environments.base import Environment
from cvl_pipeline.environments.ogbench import (
    GOALS,
    KINDS,
    DatasetName,
    Follower,
    OGBenchEnvironment,
    OGBenchGoals,
    OracleEnvironment,
    task_rewards,
)
from cvl_pipeline.episodes.container import Rewards, Transitions
from cvl_pipeline.errors import InputError
from cvl_pipeline.io.pieces import Column, by_block, slices
from cvl_pipeline.io.storage import shown
from cvl_pipeline.paths import expanded
from cvl_pipeline.schema import LONGEST_EPISODE, MOST_EPISODES, operational
from cvl_pipeline.sources.base import LocalPath, Source, SourceParameters, Task
from cvl_pipeline.sources.download import download_as_seen_first
from cvl_pipeline.sources.formats import Contents, open_contents, reading
from cvl_pipeline.sources.precision import check_finite, single_precision
from cvl_pipeline.sources.progress import progress

if TYPE_CHECKING:
    Array = NDArray[Any]

logger = logging.getLogger(__name__)

URL = "https://rail.eecs.berkeley.edu/datasets/ogbench"
"""Folder of the published files. OGBench publishes no checksums."""
HELD_OUT = "-val"
"""End of the name of the file with held-out episodes."""
STATES = ("qpos", "button_states")
"""Arrays that rewards follow from."""


class OGBench(Source):
    """A dataset of OGBench: its published file, a file of yours in its format, or one collected by its oracles."""

    class Parameters(SourceParameters):
        """The settings of ``ogbench``."""

        source: Literal["ogbench"] = Field(
            "ogbench", description="A dataset of OGBench, published or collected by its scripted oracles."
        )
        task: Task = Field(
            "cube-single-play-singletask-v0",
            description="Name of the dataset. With `-singletask` or `-singletask-task<1 to 5>` it has rewards; "
            "without, it has none, and policies are evaluated over goals (`evaluation.goals`).",
        )
        path: LocalPath | None = operational(
            None,
            description="An NPZ file, or a folder that holds the published one; episodes of a second file, `-val`, are "
            "held out. null: both are downloaded and cached.",
        )
        collect: bool = Field(
            False,
            description="Collect the episodes here, instead of downloading them: with `play` and `noisy` of `cube`, "
            "`scene` and `puzzle`, and `navigate` and `stitch` of `pointmaze`.",
        )
        episodes: int = Field(
            100,
            ge=2,
            le=MOST_EPISODES,
            description="Episodes to collect. OGBench: 1000, or 5000 of `stitch`.",
        )
        episode_steps: int = Field(
            1000,
            ge=1,
            le=LONGEST_EPISODE,
            description="Length of a collected episode. OGBench: 1000, or 200 of `stitch`.",
        )

        @model_validator(mode="after")
        def _one_origin(self) -> OGBench.Parameters:
            if self.collect and self.path is not None:
                raise ValueError(
                    "dataset.collect is true, but dataset.path names a file: set one of them to null"
                )
            return self

        @property
        def label(self) -> str:
            """The task."""
            return self.task

    parameters: Parameters

    @property
    def _name(self) -> DatasetName:
        return DatasetName.parse(self.parameters.task)

    def load(self, seed: int, workers: int | None) -> tuple[Transitions, Rewards]:
        """Read the files, downloading them if they are missing, or collect the episodes."""
        name = self._name
        if self.parameters.collect:
            return self._collect(name, seed, workers)
        return load_ogbench(self._paths(name, download=True), name)

    def _paths(self, name: DatasetName, download: bool) -> list[Path]:
        """The file, and that of the held-out episodes if there is one."""
        if self.parameters.path is None:
            if not download:
                return []
            cache = Path(pooch.os_cache("ogbench"))
            return [download_as_seen_first(f"{URL}/{name.file}{end}.npz", cache) for end in ("", HELD_OUT)]
        path = expanded(Path(self.parameters.path))
        path = path / f"{name.file}.npz" if path.is_dir() else path
        second = path.with_name(f"{path.stem}{HELD_OUT}.npz")
        return [path, second] if second.exists() else [path]

    def _collect(self, name: DatasetName, seed: int, workers: int | None) -> tuple[Transitions, Rewards]:
        from cvl_pipeline.environments.collection import episode_seeds
        from cvl_pipeline.environments.rollouts import RolloutTask, run_episodes

        p = self.parameters
        kinds = KINDS.get(name.family, ())
        if name.images or name.kind not in kinds:
            raise InputError(
                f"dataset.collect: the installed OGBench has no oracle that collects '{name.file}'"
                + (f"; for {name.family}, it has {' and '.join(kinds)}" if kinds and not name.images else "")
                + "; download it (dataset.collect=false), or choose another dataset.task"
            )
        make = partial(OracleEnvironment, name, p.episode_steps)
        with closing(make()) as environment:
            sizes = environment.sizes
        episodes = run_episodes(
            RolloutTask(make, partial(Follower, sizes["actions"])),
            episode_seeds(seed, "collection", p.episodes),
            workers=workers,
            description=f"Collecting {name.file}",
        )
        rows = np.concatenate([episode.observations for episode in episodes]).astype(np.float32)
        ends = np.cumsum(list(sizes.values()))
        parts = dict(zip(sizes, np.split(rows, ends[:-1], axis=1), strict=True))
        lengths = [len(episode.actions) for episode in episodes]
        actions = np.concatenate([episode.actions for episode in episodes])
        parts["observations"] = np.ascontiguousarray(parts["observations"])
        if not sizes["button_states"]:
            del parts["button_states"]
        return _episodes(parts, actions, lengths, name)

    def make_environment(self, episode_steps: int | None = None) -> Callable[[], Environment] | None:
        """Return a factory of the environment with the single task; None without one."""
        name = self._name
        return partial(OGBenchEnvironment, name.environment_id, episode_steps) if name.single else None

    def make_goal_environment(self, episode_steps: int | None = None) -> Callable[[], Environment]:
        """Return a factory of the environment with five goals."""
        return partial(OGBenchGoals, f"{self._name.environment}-v0", episode_steps)

    @property
    def goals(self) -> tuple[str, ...]:
        """OGBench's five."""
        return GOALS

    @property
    def has_rewards(self) -> bool:
        """Whether the name has a single task."""
        return bool(self._name.single)

    @property
    def environment_name(self) -> str:
        """The id of the environment."""
        return self._name.environment_id

    def files(self) -> list[Path]:
        """The local files."""
        return self._paths(self._name, download=False)


def load_ogbench(paths: Sequence[Path], name: DatasetName) -> tuple[Transitions, Rewards]:
    """Read the episodes of files in OGBench's format.

    No episode ends in the world: all are truncated. A single task gives rewards on arrival: OGBench's are those of the
    state in which a step starts, so the last row of an episode has one, too.

    Args:
        paths: the file, and if there is one that of the held-out episodes.
        name: of the dataset.

    Returns:
        The episodes and their rewards, all NaN without a single task. Action bounds are -1 and 1.

    Raises:
        InputError: a missing, damaged or foreign file, a missing array or one of the wrong shape, or flags that do not
            define episodes.
    """
    fields = ("observations", "actions", "terminals", *(STATES if name.single else ()))
    files = []
    for path in paths:
        with open_contents(path) as contents, reading(shown(path)):
            present = [field for field in fields if field in contents.names]
            files.append(_read(contents, path, present))
    for field in fields if len(files) > 1 else ():
        shapes = [file[field].shape[1:] if field in file else None for file in files]
        if shapes[0] != shapes[1]:
            sizes = ["are missing" if shape is None else f"have shape {shape} per row" for shape in shapes]
            raise InputError(
                f"{shown(paths[1])}: {field} {sizes[1]}, but in {shown(paths[0])} they {sizes[0]}; take both files "
                "from the same dataset"
            )
    joined = {field: _joined([file[field] for file in files]) for field in files[0]}
    lengths = [_lengths(file["terminals"], shown(path)) for file, path in zip(files, paths, strict=True)]
    leads = joined.pop("terminals") == 0.0
    actions = by_block(lambda rows, leads: rows[leads], joined.pop("actions"), leads)
    steps = [length for part in lengths for length in part]
    held_out = len(lengths[1]) if len(lengths) > 1 else 0
    try:
        transitions, rewards = _episodes(joined, actions, steps, name, held_out)
    except InputError as error:
        raise InputError(f"{shown(paths[0])}: {error}") from None
    return transitions, rewards


def _joined(arrays: Sequence[Array]) -> Array:
    """Arrays end to end; a single one is not copied."""
    if len(arrays) == 1:
        return arrays[0]
    column = Column()
    for array in arrays:
        for rows in slices(array):
            column.append(array[rows])
    return column.array()


def _read(contents: Contents, path: Path, present: Sequence[str]) -> dict[str, Array]:
    """Return the arrays of a file, read block by block, after a check of their shapes."""
    place = shown(path)
    for field in ("observations", "actions", "terminals"):
        if field not in present:
            raise InputError(
                f"{place}: no array '{field}', the file contains {', '.join(sorted(contents.names)) or 'nothing'}; "
                "OGBench's format needs observations, actions and terminals"
            )
    for field in present:
        fault = contents.fault(field)
        if fault is None and not contents.shape(field):
            fault = "is a single value or empty; save one row per state"
        if fault is not None:
            raise InputError(f"{place}: array '{field}': {fault}")
    arrays: dict[str, Array] = {}
    rows = sum(shape[0] for shape in map(contents.shape, present) if shape)
    with progress(f"reading {place}", rows, path.stat().st_size) as advance:
        for field in present:
            column = Column()
            for block in contents.blocks(field):
                column.append(block)
                advance(len(block))
            arrays[field] = column.array() if len(column) else np.empty(contents.shape(field))
    for field, values in arrays.items():
        if values.dtype.kind not in "biuf":
            raise InputError(f"{place}: {field} have type {values.dtype}; give numbers")
        if field != "observations" or values.dtype != np.uint8:
            arrays[field] = single_precision(values, f"{place}: {field}")
            check_finite(arrays[field], f"{place}: {field}")
    observations, actions, terminals = (arrays[name] for name in ("observations", "actions", "terminals"))
    if observations.ndim not in (2, 4) or (observations.ndim == 4) != (observations.dtype == np.uint8):
        raise InputError(
            f"{place}: observations have shape {observations.shape} and type {observations.dtype}; give one vector per "
            "row, or images, (rows, height, width, channels) uint8"
        )
    if actions.ndim != 2:
        raise InputError(
            f"{place}: actions have shape {actions.shape}, not (rows, dimensions); give one vector per row "
            "(discrete actions, as in powderworld, are not read)"
        )
    for field, values in arrays.items():
        if len(values) != len(observations):
            raise InputError(
                f"{place}: {len(values)} rows of {field}, but {len(observations)} of observations; give one of each "
                "per row"
            )
    if terminals.ndim != 1:
        raise InputError(f"{place}: terminals have shape {terminals.shape}; give one flag per row")
    return arrays


def _lengths(terminals: Array, place: str) -> list[int]:
    """Steps of the episodes, which end with a terminal row."""
    other = (terminals != 0.0) & (terminals != 1.0)
    if other.any():
        row = int(other.argmax())
        raise InputError(f"{place}: terminals have {terminals[row]:g} in row {row}; use 0 or 1")
    if not len(terminals) or terminals[-1] != 1.0:
        raise InputError(
            f"{place}: the last of {len(terminals)} terminals is not 1, so the last episode is cut short; download the "
            "file again, or set the last terminal of every episode"
        )
    ends = np.flatnonzero(terminals == 1.0)
    steps = np.diff(ends, prepend=-1) - 1  # an episode of T steps has T + 1 rows
    if (steps < 1).any():
        row = int(ends[(steps < 1).argmax()])
        raise InputError(
            f"{place}: the episode that ends in row {row} has no step: it needs at least two rows; "
            "leave it out, and set only the last terminal of every episode"
        )
    return [int(count) for count in steps]


def _episodes(
    arrays: dict[str, Array], actions: Array, lengths: Sequence[int], name: DatasetName, held_out: int = 0
) -> tuple[Transitions, Rewards]:
    """Put episodes into the container, with the rewards of the single task if there is one.

    Args:
        arrays: ``observations`` and STATES, one row per state.
        actions: (N, A), one row per step.
        lengths: steps of the episodes.
        name: of the dataset.
        held_out: number of the last episodes that are held out.
    """
    starts = np.concatenate([[0], np.cumsum(lengths)])
    count, high = len(lengths), torch.ones(actions.shape[1])
    transitions = Transitions(
        observations=torch.from_numpy(arrays["observations"]),
        actions=torch.from_numpy(np.ascontiguousarray(actions)),
        episode_starts=torch.from_numpy(starts),
        terminated=torch.zeros(count, dtype=torch.bool),
        truncated=torch.ones(count, dtype=torch.bool),
        action_low=-high,
        action_high=high,
        held_out=torch.tensor(held_out),
    )
    if not name.single:
        rewards, solved = np.full(len(actions), np.nan, np.float32), np.zeros(len(actions), dtype=bool)
    else:
        arrives = np.ones(len(actions) + count, dtype=bool)
        arrives[starts[:-1] + np.arange(count)] = False
        states = {field: arrays[field] for field in STATES if field in arrays}
        rewards, solved = (labels[arrives] for labels in task_rewards(name, states))
        logger.info(
            "%s: the task is solved after %d of %d steps", name.environment_id, solved.sum(), len(solved)
        )
    return transitions, Rewards(
        torch.from_numpy(rewards), torch.from_numpy(solved), success_reported=torch.tensor(bool(name.single))
    )
