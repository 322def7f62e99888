"""Episodes from your own logs: HDF5, NPZ, Parquet or CSV, one row per step."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator

from cvl_pipeline.episodes.bounds import bound_actions
from cvl_pipeline.episodes.container import Rewards, Transitions
from cvl_pipeline.episodes.parameters import OutOfBounds
from cvl_pipeline.episodes.parts import Layout
from cvl_pipeline.episodes.validation import outside_bounds
from cvl_pipeline.errors import InputError
from cvl_pipeline.io.pieces import Column, by_block, first_where, slices
from cvl_pipeline.io.storage import shown
from cvl_pipeline.paths import expanded
from cvl_pipeline.schema import Floats, operational
from cvl_pipeline.sources.base import LocalPath, Source, SourceParameters
from cvl_pipeline.sources.columns import MOST_ACTIONS, Columns
from cvl_pipeline.sources.formats import open_contents
from cvl_pipeline.sources.hdf5 import log_files
from cvl_pipeline.sources.precision import numbers_or_images, single_precision
from cvl_pipeline.sources.progress import progress
from cvl_pipeline.sources.steps import Steps, bounds_of, episodes_from_steps, first_gap, one_hot, packed
from cvl_pipeline.sources.tables import Table, brief, place_of_row

logger = logging.getLogger(__name__)

Array = NDArray[Any]


def load_file(
    path: Path,
    columns: Columns,
    action_low: tuple[float, ...] | None = None,
    action_high: tuple[float, ...] | None = None,
    actions_out_of_bounds: OutOfBounds = "refuse",
) -> tuple[Transitions, Rewards]:
    """Read a log with one row per step. The suffix names the format: .hdf5, .h5, .npz, .parquet, .csv, .csv.gz.

    The file is one table of all episodes, or with ``columns.groups``, one group per episode.

    An episode ends where ``episode`` changes and after every row with a flag. An end without a flag is a
    truncation, also at the end of the file or group. See ``episodes_from_steps`` for the last step of an episode.

    Args:
        path: the file; nothing in it is ever unpickled.
        columns: names of the columns.
        action_low: (A,), the smallest action that the environment accepts; None: the smallest in the log.
        action_high: (A,), the largest action; None: the largest in the log.
        actions_out_of_bounds: see ``bound_actions``.

    Returns:
        The episodes and their rewards, which are all NaN if the log has none.

    Raises:
        InputError: a fault in the file, its columns or the bounds, with name, row and value.
    """
    path = expanded(path)
    ids = () if columns.episode is None else (columns.episode,)
    with open_contents(path, ids) as contents:
        table = Table(shown(path), contents)
        tables = [table] if columns.groups is None else table.groups(columns.groups)
        tables.sort(key=lambda part: part.held_out)  # the last episodes of a log are those that are held out
        _check_same_arrays(tables, columns)
        rows = sum(part.rows(columns) for part in tables)
        with progress(f"reading {shown(path)}", rows, path.stat().st_size) as advance:
            log = _read(tables, columns, advance)
    if columns.next_observations is not None:
        _check_continuity(log)
    steps = log.steps
    if columns.discrete:
        place = table.place("actions", columns.actions[0])
        steps = replace(steps, actions=_one_hot(steps.actions[:, 0], columns.action_count, place))
    log = replace(log, steps=steps)
    bounds = _action_bounds(log, table.file, action_low, action_high)
    if bounds is not None and actions_out_of_bounds == "refuse":
        _check_bounds(log, *bounds)
    transitions, rewards = episodes_from_steps(steps, table.file, bounds, prefix="dataset.columns.")
    held_out = sum(part.held_out for part in tables)
    if held_out and transitions.episodes == len(tables) > held_out:
        transitions = replace(transitions, held_out=torch.tensor(held_out))
    elif held_out:
        logger.warning(
            "%s: the marks of %d held-out groups are not used, because %s; held-out episodes are drawn at random",
            table.file, held_out,
            "all groups have one" if held_out == len(tables) else "not every group is one episode of the log",
        )  # fmt: skip
    return bound_actions(transitions, actions_out_of_bounds, table.file), rewards


@dataclass(frozen=True)
class _Log:
    """The steps of one or more tables, end to end.

    Attributes:
        steps: N steps.
        files: name of each table in errors.
        starts: (P,) int64, first row of each table.
    """

    steps: Steps
    files: list[str]
    starts: Array

    def locate(self, row: int) -> tuple[str, str]:
        """Names of a row's table, and of the row in it, for errors."""
        part = int(np.searchsorted(self.starts, row, side="right")) - 1
        return self.files[part], place_of_row(row - int(self.starts[part]))


def _check_same_arrays(tables: list[Table], columns: Columns) -> None:
    """Refuse groups in which a pattern matches different arrays: dimensions would change their meaning."""
    first = tables[0]
    for field in columns.named():
        expected = first.choose(field, columns)
        for table in tables[1:]:
            names = table.choose(field, columns)
            if names != expected:
                odd = sorted({*names} ^ {*expected})[0]
                raise InputError(
                    f"{table.file}: dataset.columns.{field} and {first.file} differ in '{odd}', which one of "
                    "them does not have; name arrays that every group has"
                )


Arrays = dict[tuple[str, str], Array]
"""Arrays by field of ``Steps``, and by part of the observations, or ``""``."""


def _read(tables: list[Table], columns: Columns, advance: Callable[[int], None]) -> _Log:
    """Read all tables, and put their steps end to end."""
    joined: dict[tuple[str, str], Column] = defaultdict(Column)
    files, starts, count = [table.file for table in tables], [], 0
    first: Arrays = {}
    for table in tables:
        table.advance = advance
        part = _read_steps(table, columns)
        first = first or part
        _check_alike(table.file, part, files[0], first)
        starts.append(count)
        count += len(part["actions", ""])
        if len(tables) > 1:  # a large table is not copied
            for key, values in part.items():
                joined[key].append(values)
    arrays = {key: column.array() for key, column in joined.items()} or first
    _check_large(tables)
    return _Log(_steps(arrays, columns, tables[0]), files, np.array(starts))


def _check_alike(file: str, part: Arrays, first_file: str, first: Arrays) -> None:
    """Refuse groups whose rows differ in their size from those of the first group."""
    if part.keys() - first.keys() or first.keys() - part.keys():
        ending = [
            "one row" if ("next_observations", name) in arrays else "no row"
            for arrays in (part, first)
            for name in [next(key[1] for key in arrays if key[0] == "observations")]
        ]
        raise InputError(
            f"{file}: dataset.columns.observations have {ending[0]} after the last action, but in {first_file} they "
            f"have {ending[1]} after the last action; save one more row of observations than of "
            "dataset.columns.actions in every group, or in none"
        )
    for field, name in first:
        if field in ("observations", "actions"):
            sizes = [_size(arrays[field, name]) for arrays in (part, first)]
            if sizes[0] != sizes[1]:
                raise InputError(
                    f"{file}: dataset.columns.{field} are {sizes[0]} per row, but {sizes[1]} "
                    f"in {first_file}; save the same arrays in every group"
                )


def _check_large(tables: list[Table]) -> None:
    """Compare integers from 2^53 on over all groups as stored: beside fractions, they are double precision."""
    for field, name in dict.fromkeys(key for table in tables for key in table.large):
        values = [table.large[field, name] for table in tables if (field, name) in table.large]
        single_precision(np.concatenate(values), tables[0].place(field, name))


def _steps(arrays: Arrays, columns: Columns, table: Table) -> Steps:
    """Steps in single precision, compared over all groups, with packed observations if they have parts."""

    def single(field: str, name: str = "") -> Array | None:
        values = arrays.get((field, name))
        return None if values is None else numbers_or_images(values, _place(table.file, field, name))

    def parts(field: str) -> tuple[Array | None, Layout | None]:
        found = {name: single(field, name) for other, name in arrays if other == field}
        return packed(found, table.file) if found else (None, None)  # type: ignore[arg-type]

    observations, layout = parts("observations")
    actions = arrays["actions", ""] if columns.discrete else single("actions")
    assert observations is not None
    assert actions is not None
    return Steps(
        observations=observations,
        actions=actions,
        terminated=arrays["terminated", ""],
        truncated=arrays["truncated", ""],
        next_observations=parts("next_observations")[0],
        rewards=single("rewards"),
        successes=arrays.get(("successes", "")),
        discrete=columns.discrete,
        parts=layout,
    )


def _place(file: str, field: str, part: str) -> str:
    return f"{file}: dataset.columns.{field}" + f", part '{part}'" * bool(part)


def _size(values: Array) -> str:
    return f"{values.shape[1]} numbers" if values.ndim == 2 else f"images {values.shape[1:]}"


def _read_steps(table: Table, columns: Columns) -> Arrays:
    """Arrays of one table, with discrete actions as codes, (N, 1)."""
    actions = _codes(table, columns) if columns.discrete else table.matrix("actions", columns)
    observations = table.observations("observations", columns)
    following = table.observations("next_observations", columns) if columns.next_observations else {}
    lengths = {name: len(values) for name, values in observations.items()}
    if max(lengths.values()) > len(actions):
        if following:
            raise InputError(
                f"{table.file}: dataset.columns.observations has {max(lengths.values())} rows and "
                f"dataset.columns.actions {len(actions)}, so they already contain the next observations; "
                "set dataset.columns.next_observations to null (None in Python)"
            )
        following = {name: values[1:] for name, values in observations.items()}
        observations = {name: values[:-1] for name, values in observations.items()}
    if following and following.keys() != observations.keys():
        odd = sorted(following.keys() ^ observations.keys())[0]
        raise InputError(
            f"{table.file}: dataset.columns.next_observations and dataset.columns.observations differ in part '{odd}', "
            "which one of them does not have; name the same parts in both"
        )
    for name, values in following.items():
        if values.shape != observations[name].shape:
            raise InputError(
                f"{_place(table.file, 'next_observations', name)} are {_size(values)} per row and "
                f"dataset.columns.observations {_size(observations[name])}; give both the same size"
            )
    terminated, truncated = _ends(table, columns, len(actions))
    if columns.step is not None:
        _check_steps(table, columns.step, terminated, truncated)
    arrays: Arrays = {("observations", name): values for name, values in observations.items()}
    arrays |= {("next_observations", name): following[name] for name in observations if following}
    arrays |= {("actions", ""): actions, ("terminated", ""): terminated, ("truncated", ""): truncated}
    if columns.rewards is not None:
        arrays["rewards", ""] = table.single("rewards", columns.rewards)
    if columns.successes is not None:
        arrays["successes", ""] = table.flags("successes", columns.successes)
    return arrays


def _codes(table: Table, columns: Columns) -> Array:
    """Codes of discrete actions, (N, 1) int64."""
    names = table.choose("actions", columns)
    codes = table.numbers("actions", names[0])
    place = table.place("actions", names[0])
    if len(names) > 1 or codes.shape[1] > 1:
        raise InputError(
            f"{place}: {max(len(names), codes.shape[1])} numbers per row, but a discrete action is one; "
            "name the one column of codes, or set dataset.columns.discrete=false if actions are vectors"
        )
    if codes.dtype.kind == "f":
        raise InputError(
            f"{place}: {codes[0, 0]} at {place_of_row(0)} is stored as {codes.dtype}; save the codes of "
            "discrete actions as integers from 0"
        )
    limit = columns.action_count or MOST_ACTIONS
    outside = first_where(lambda part: (part < 0) | (part >= limit), codes)
    if outside is not None:
        raise InputError(
            f"{place}: {codes[outside]} at {place_of_row(outside[0])} is not an action code, 0 to "
            f"{limit - 1}; number the actions from 0, and see dataset.columns.action_count"
        )
    return by_block(lambda part: part.astype(np.int64), codes)


def _one_hot(codes: Array, count: int | None, place: str) -> Array:
    """Actions as one-hot vectors, (N, count) float32, from their codes, (N,)."""
    size = count or int(codes.max()) + 1
    if size < 2:
        raise InputError(
            f"{place}: every action is 0, so there is nothing to choose; give the number of actions in "
            "dataset.columns.action_count"
        )
    return one_hot(codes, size)


def _ends(table: Table, columns: Columns, count: int) -> tuple[Array, Array]:
    """Flags of termination and truncation, (N,) bool each, including the ends that episode ids imply."""
    none = np.zeros(count, dtype=bool)
    terminated = none if columns.terminated is None else table.flags("terminated", columns.terminated)
    truncated = none if columns.truncated is None else table.flags("truncated", columns.truncated)
    if columns.groups is not None:
        return terminated, _end_of_group(table, columns, terminated, truncated)
    if columns.episode is None:
        return terminated, truncated
    codes, ids = table.ids("episode", columns.episode)
    place = table.place("episode", columns.episode)
    # New ids get increasing codes, so the first id that returns has a smaller code than the row before it.
    returns = first_where(np.less, codes[1:], codes[:-1])
    if returns is not None:
        row = returns[0] + 1
        raise InputError(
            f"{place}: {brief(ids[codes[row]])} returns at {place_of_row(row)} after another "
            "episode; sort the rows by episode and time, and give every episode its own id"
        )
    within = first_where(
        lambda first, second, before, after: (first | second) & (before == after),
        terminated[:-1], truncated[:-1], codes[:-1], codes[1:],
    )  # fmt: skip
    if within is not None:
        field = "terminated" if terminated[within[0]] else "truncated"
        raise InputError(
            f"{table.place(field, str(getattr(columns, field)))}: set at {place_of_row(within[0])}, but "
            f"episode {brief(ids[codes[within[0]]])} of '{columns.episode}' goes on after it; set the flag "
            "only in the last row of an episode, or give the following rows another id"
        )
    ends = Column()
    for rows in slices(codes[:-1]):
        ends.append(truncated[rows] | (codes[rows] != codes[rows.start + 1 : rows.stop + 1]))
    ends.append(truncated[-1:])
    return terminated, ends.array()


def _end_of_group(table: Table, columns: Columns, terminated: Array, truncated: Array) -> Array:
    """Flags of truncation, (N,) bool, for a group, which is one episode."""
    within = np.flatnonzero((terminated | truncated)[:-1])
    if len(within):
        field = "terminated" if terminated[within[0]] else "truncated"
        raise InputError(
            f"{table.place(field, str(getattr(columns, field)))}: set at {place_of_row(within[0])}, but the "
            "group, which is one episode, goes on after it; set the flag only in the last row, or "
            f"dataset.columns.{field} to null (None in Python)"
        )
    return np.append(truncated[:-1], not terminated[-1])


def _check_steps(table: Table, name: str, terminated: Array, truncated: Array) -> None:
    """Refuse a log with missing, repeated or misplaced steps within an episode."""
    count = table.numbers("step", name)
    if count.shape[1] != 1:
        raise InputError(f"{table.place('step', name)}: {count.shape[1]} numbers per row; it must be one")
    count = count[:, 0] if count.dtype.kind != "b" else count[:, 0].astype(np.int8)

    def broken(before: Array, after: Array, *ends: Array) -> Array:
        # As stored: double precision cannot count beyond 2^53. Compared first, because integers wrap around.
        return np.asarray(~((after > before) & (after - before == 1)) & ~np.logical_or(*ends))

    wrong = first_where(broken, count[:-1], count[1:], terminated[:-1], truncated[:-1])
    if wrong is not None:
        row = wrong[0] + 1
        raise InputError(
            f"{table.place('step', name)}: {brief(count[row])} at {place_of_row(row)} after {brief(count[row - 1])}, "
            "within an episode; sort the rows by time, and flag the ends of episodes and the rows before gaps"
        )


def _check_continuity(log: _Log) -> None:
    """Refuse a log whose rows do not follow each other, such as a shuffled replay buffer."""
    gap = first_gap(log.steps)
    if gap is None:
        return
    file, place = log.locate(gap.row)
    where = _place(file, "next_observations", gap.part)
    fix = "sort the rows of an episode by time, and flag its last row"
    if gap.dimension is None:
        raise InputError(f"{where} at {place} is not the image that the row after it starts from; {fix}")
    raise InputError(
        f"{where} is {gap.found:g} at {place}, dimension {gap.dimension}, but the row after it starts from "
        f"{gap.expected:g}; {fix}"
    )


def _action_bounds(
    log: _Log, file: str, low: tuple[float, ...] | None, high: tuple[float, ...] | None
) -> tuple[Array, Array] | None:
    """Smallest and largest action, (A,) each; None for discrete actions."""
    actions: Array = log.steps.actions
    size = actions.shape[1]
    if log.steps.discrete:
        if low is not None or high is not None:
            raise InputError(
                "dataset.action_low and action_high: discrete actions have no bounds; set both to null (None in Python)"
            )
        return None
    for name, bound in (("action_low", low), ("action_high", high)):
        if bound is not None and len(bound) != size:
            raise InputError(
                f"dataset.{name}: {len(bound)} numbers, but the actions of {file} have {size} dimensions; "
                "give one number per dimension, or null (None in Python)"
            )
    lowest, highest = bounds_of(
        actions, *(None if bound is None else np.array(bound, dtype=np.float32) for bound in (low, high))
    )
    crossed = np.flatnonzero(lowest > highest)
    if len(crossed):
        i = crossed[0]
        raise InputError(
            f"dataset.action_low: {lowest[i]:g} in dimension {i} is above action_high, {highest[i]:g}"
        )
    return lowest, highest


def _check_bounds(log: _Log, low: Array, high: Array) -> None:
    """Refuse actions beyond the bounds by their table and row, which are no longer known in episodes."""
    found = outside_bounds(*(torch.from_numpy(values) for values in (log.steps.actions, low, high)))
    if found is None:
        return
    file, place = log.locate(found.row)
    raise InputError(
        f"{file}: action {found.value:g} at {place}, dimension {found.dimension}, is outside "
        f"[{found.low:g}, {found.high:g}], dataset.action_low and action_high; "
        + found.remedy("dataset.actions_out_of_bounds")
    )


class Files(Source):
    """Your own log: HDF5, NPZ, Parquet or CSV, one row per step."""

    class Parameters(SourceParameters):
        """The settings of ``files``."""

        source: Literal["files"] = Field("files", description="Your own log, one row per step.")
        path: LocalPath | None = operational(None, description="The file. Its suffix names the format.")
        columns: Columns = Field(Columns(), description="The names of the log's columns.")
        action_low: Floats | None = Field(
            None, description="Smallest action of each dimension. null: the smallest in the log."
        )
        action_high: Floats | None = Field(
            None, description="Largest action of each dimension. null: the largest in the log."
        )

        @model_validator(mode="after")
        def _path_is_given(self) -> Files.Parameters:
            if self.path is None:
                raise ValueError("dataset.path is null: dataset.source files needs the path of your log")
            return self

    parameters: Parameters

    def load(self, seed: int, workers: int | None) -> tuple[Transitions, Rewards]:
        """Read the file."""
        p = self.parameters
        assert p.path is not None  # checked with the parameters
        return load_file(Path(p.path), p.columns, p.action_low, p.action_high, p.actions_out_of_bounds)

    @property
    def has_rewards(self) -> bool:
        """Whether a column of rewards is named."""
        return self.parameters.columns.rewards is not None

    def files(self) -> list[Path]:
        """The file, and the files that its external links lead to."""
        if self.parameters.path is None:
            return []
        return log_files(Path(self.parameters.path))
