"""Episodes from people's own logs: HDF5, NPZ, Parquet or CSV, one row a step."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray
from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from cvl_pipeline.errors import InputError, one_line
from cvl_pipeline.sources.steps import Steps, episodes_from_steps
from cvl_pipeline.storage import shown
from cvl_pipeline.training.parameters import Strict
from cvl_pipeline.trajectories.container import Rewards, Transitions

Array = NDArray[Any]
Read = Callable[[str], Array]

FLAGS = {"false": False, "0": False, "0.0": False, "true": True, "1": True, "1.0": True}
MOST_ACTIONS = 65536
"""Choices that discrete actions may have; larger codes are identifiers of something else."""
GAP = 1e-3
"""Share of a dimension's range by which a next observation may miss the row that follows it."""
LISTED = 30
"""Columns that an error lists at most."""


def _listed(value: Any) -> Any:
    if isinstance(value, str):
        return value.split()
    return [value] if isinstance(value, int) else value


Name = Annotated[str, Field(min_length=1)]
# Kedro's --params cannot carry a list: there, several names are one string with spaces between them.
Names = Annotated[tuple[Name, ...], BeforeValidator(_listed), Field(min_length=1)]


class Columns(Strict):
    """What a log calls its columns (Parquet, CSV) or arrays (HDF5, NPZ; ``group/array`` inside groups).

    Several names, and what a pattern such as ``obs_*`` matches (``obs_2`` before ``obs_10``), are laid side
    by side. A string is split at blanks.
    """

    model_config = ConfigDict(coerce_numbers_to_str=True)  # a column may be called 0

    observations: Names  # what the action of the row was chosen from
    actions: Names  # what was done then, as the environment executed it
    rewards: Name | None  # what the action of the row earned; null: the log has none
    successes: Name | None  # flag: the task counts as solved after the row; null: never
    terminated: Name | None  # flag: the world stopped after the row (a fall, a goal that ends the episode)
    truncated: Name | None  # flag: the episode's log stops after the row and the world did not (a time limit)
    episode: Name | None  # id of the episode, a number or text: another value starts another episode
    step: Name | None  # counts up by one within an episode; read only to check that no row is missing
    next_observations: Names | None  # what the row's action led to; null: the next row says it
    discrete: bool  # actions are numbers of choices, 0 to A - 1, in one column
    action_count: int | None = Field(ge=2, le=MOST_ACTIONS)  # A, if discrete; null: the largest logged + 1

    @model_validator(mode="after")
    def _fields_agree(self) -> Columns:
        if self.episode is None and self.terminated is None and self.truncated is None:
            raise ValueError("one of episode, terminated and truncated must say where episodes end")
        if self.terminated is not None and self.terminated == self.truncated:
            raise ValueError(
                f"terminated and truncated are both '{self.terminated}', but an episode ends by one of them"
            )
        if self.action_count is not None and not self.discrete:
            raise ValueError("action_count is for discrete actions; set it to null or discrete to true")
        return self

    def named(self) -> dict[str, tuple[str, ...]]:
        """The names that each field gives, fields that are null left out."""
        values = {field: getattr(self, field) for field in type(self).model_fields}
        return {
            field: (value,) if isinstance(value, str) else value
            for field, value in values.items()
            if isinstance(value, str | tuple)
        }


def load_file(
    path: Path,
    columns: Columns,
    action_low: tuple[float, ...] | None = None,
    action_high: tuple[float, ...] | None = None,
) -> tuple[Transitions, Rewards]:
    """Read a log that has one row a step, by its suffix: .hdf5, .h5, .npz, .parquet, .csv or .csv.gz.

    An episode ends where ``episode`` changes and after every row that is flagged; an end that no flag
    explains is a truncation, the end of the file too. What becomes of an episode's last step is told at
    ``episodes_from_steps``.

    Args:
        path: the file; nothing in it is ever unpickled.
        columns: what it calls things.
        action_low: (A,), the smallest action the environment accepts; of the log's own actions by default.
        action_high: (A,), the largest, likewise.

    Returns:
        The episodes and their rewards, which are all NaN where the log has none.

    Raises:
        InputError: whatever is wrong with the file, its columns or the bounds, by name, row and value.
    """
    with _open(path) as log:
        steps = _read_steps(log, columns)
    bounds = _action_bounds(log.file, steps, action_low, action_high)
    return episodes_from_steps(steps, log.file, bounds)


# --- What the rows mean -----------------------------------------------------------------------------------


def _read_steps(log: _Log, columns: Columns) -> Steps:
    observations = log.matrix("observations", columns)
    following = log.matrix("next_observations", columns) if columns.next_observations else None
    actions = _one_hot(log, columns) if columns.discrete else log.matrix("actions", columns)
    terminated, truncated = _ends(log, columns, len(observations))
    ends = terminated | truncated
    if columns.step is not None:
        _check_steps(log, columns.step, ends)
    if following is not None:
        _check_continuity(log, observations, following, ends)
    return Steps(
        observations=observations,
        actions=actions,
        terminated=terminated,
        truncated=truncated,
        next_observations=following,
        rewards=None if columns.rewards is None else log.single("rewards", columns.rewards),
        successes=None if columns.successes is None else log.flags("successes", columns.successes),
        discrete=columns.discrete,
    )


def _one_hot(log: _Log, columns: Columns) -> Array:
    names = log.choose("actions", columns)
    codes = log.numbers("actions", names[0])
    place = log.place("actions", names[0])
    if len(names) > 1 or codes.shape[1] > 1:
        raise InputError(
            f"{place}: {max(len(names), codes.shape[1])} numbers a row, but a discrete action is one; "
            "name the one column of codes, or set dataset.columns.discrete=false if actions are vectors"
        )
    if codes.dtype.kind == "f":
        raise InputError(
            f"{place}: {codes[0, 0]} at {_row(0)} is stored as {codes.dtype}; save the codes of discrete "
            "actions as integers from 0 on"
        )
    codes = codes[:, 0].astype(np.int64)
    limit = columns.action_count or MOST_ACTIONS
    outside = np.flatnonzero((codes < 0) | (codes >= limit))
    if len(outside):
        raise InputError(
            f"{place}: {codes[outside[0]]} at {_row(outside[0])} is no code of an action, 0 to {limit - 1}; "
            "number the actions from 0 on, and see dataset.columns.action_count"
        )
    count = columns.action_count or int(codes.max()) + 1
    if count < 2:
        raise InputError(
            f"{place}: every action is 0, which leaves nothing to choose; say how many there are with "
            "dataset.columns.action_count"
        )
    result = np.zeros((len(codes), count), dtype=np.float32)
    result[np.arange(len(codes)), codes] = 1.0
    return result


def _ends(log: _Log, columns: Columns, count: int) -> tuple[Array, Array]:
    """Flags of termination and truncation, (N,) bool each, with those that the episode ids imply."""
    none = np.zeros(count, dtype=bool)
    terminated = none if columns.terminated is None else log.flags("terminated", columns.terminated)
    truncated = none if columns.truncated is None else log.flags("truncated", columns.truncated)
    if columns.episode is None:
        return terminated, truncated
    codes, ids = log.categories("episode", columns.episode)
    place = log.place("episode", columns.episode)
    changes = codes[1:] != codes[:-1]
    # Codes count up as ids appear, so that one that returns lies below what came before it.
    returns = np.flatnonzero(codes < np.maximum.accumulate(codes))
    if len(returns):
        raise InputError(
            f"{place}: {_brief(ids[codes[returns[0]]])} returns at {_row(returns[0])} after another episode; "
            "sort the rows by episode and time, and give every episode an id of its own"
        )
    within = np.flatnonzero((terminated | truncated)[:-1] & ~changes)
    if len(within):
        field = "terminated" if terminated[within[0]] else "truncated"
        raise InputError(
            f"{log.place(field, str(getattr(columns, field)))}: set at {_row(within[0])}, but episode "
            f"{_brief(ids[codes[within[0]]])} of '{columns.episode}' goes on after it; set the flag in the "
            "last row of an episode alone, or give what follows another id"
        )
    return terminated, truncated | np.append(changes, False)


def _check_steps(log: _Log, name: str, ends: Array) -> None:
    """Refuse a log that skips, repeats or mixes up steps within an episode."""
    count = log.single("step", name, dtype=np.float64)
    wrong = np.flatnonzero((np.diff(count) != 1) & ~ends[:-1]) + 1
    if len(wrong):
        row = wrong[0]
        raise InputError(
            f"{log.place('step', name)}: {count[row]:g} at {_row(row)} after {count[row - 1]:g}, within an "
            "episode; sort the rows by time, and mark where an episode ends or rows are missing"
        )


def _check_continuity(log: _Log, observations: Array, following: Array, ends: Array) -> None:
    """Refuse a log whose rows do not follow each other, such as a shuffled replay buffer."""
    if following.shape != observations.shape:
        raise InputError(
            f"{log.file}: dataset.columns.next_observations are {following.shape[1]} numbers a row and "
            f"dataset.columns.observations {observations.shape[1]}; they must be the same ones"
        )
    rows = np.flatnonzero(~ends[:-1])
    spread = np.subtract(observations.max(0), observations.min(0), dtype=np.float64)
    gaps = np.abs(np.subtract(following[rows], observations[rows + 1], dtype=np.float64))
    broken = np.argwhere(gaps > GAP * spread)
    if len(broken):
        row, dimension = rows[broken[0, 0]], broken[0, 1]
        raise InputError(
            f"{log.file}: dataset.columns.next_observations is {following[row, dimension]:g} at {_row(row)}, "
            f"dimension {dimension}, but the row after it starts from {observations[row + 1, dimension]:g}; "
            "keep the rows of an episode in the order of time, and mark where one ends"
        )


def _action_bounds(
    file: str, steps: Steps, low: tuple[float, ...] | None, high: tuple[float, ...] | None
) -> tuple[Array, Array] | None:
    """Smallest and largest action, (A,) each; None leaves them to the kind of the actions."""
    actions: Array = steps.actions
    size = actions.shape[1]
    if steps.discrete:
        if low is not None or high is not None:
            raise InputError("dataset.action_low and action_high: discrete actions have none; give null")
        return None
    for name, given in (("action_low", low), ("action_high", high)):
        if given is not None and len(given) != size:
            raise InputError(
                f"dataset.{name}: {len(given)} numbers, but the actions of {file} have {size} dimensions; "
                "give one for each, or null"
            )
    lowest = actions.min(0) if low is None else np.array(low, dtype=np.float32)
    highest = actions.max(0) if high is None else np.array(high, dtype=np.float32)
    crossed = np.flatnonzero(lowest > highest)
    if low is not None and high is not None and len(crossed):
        i = crossed[0]
        raise InputError(
            f"dataset.action_low: {low[i]:g} in dimension {i} lies above action_high, {high[i]:g}"
        )
    outside = np.argwhere((actions < lowest) | (actions > highest))
    if len(outside):
        row, i = outside[0]
        raise InputError(
            f"{file}: action {actions[row, i]:g} at {_row(row)}, dimension {i}, lies outside "
            f"[{lowest[i]:g}, {highest[i]:g}] of dataset.action_low and action_high; log actions as the "
            "environment executed them"
        )
    return lowest, highest


def _row(index: int) -> str:
    return f"row {index} (the first is 0)"


# --- What the cells hold ----------------------------------------------------------------------------------


class _Log:
    """An open file: which columns it has, and each of them checked."""

    def __init__(self, path: Path, noun: str, names: list[str], read: Read) -> None:
        self.file = shown(path)
        self._path = path
        self._noun = noun
        self._names = names
        self._read = read
        self._first: tuple[str, int] | None = None  # name and rows of what was read first

    def place(self, field: str, name: str) -> str:
        """How errors name a column."""
        return f"{self.file}: {self._noun} '{name}' (dataset.columns.{field})"

    def choose(self, field: str, columns: Columns) -> list[str]:
        """The names that a field stands for, patterns resolved."""
        named = columns.named()
        others = [(name, other) for other in named if other != field for name in named[other]]
        chosen = [name for given in named[field] for name in self._resolve(field, given, others)]
        twice = next((name for name in chosen if chosen.count(name) > 1), None)
        if twice is not None:
            raise InputError(f"{self.place(field, twice)}: taken twice; name it once")
        return chosen

    def _resolve(self, field: str, given: str, others: list[tuple[str, str]]) -> list[str]:
        if given in self._names or not any(sign in given for sign in "*?["):
            return [given]
        found = sorted({name for name in self._names if fnmatchcase(name, given)}, key=_natural)
        if not found:
            raise self._unknown(field, given, "no column matches")
        for name in found:
            taken = next((by for other, by in others if name == other or fnmatchcase(name, other)), None)
            if taken is not None:
                raise InputError(
                    f"{self.place(field, given)}: takes '{name}' too, which is dataset.columns.{taken}; make "
                    "the pattern narrower, or list the names"
                )
        return found

    def _unknown(self, field: str, name: str, what: str) -> InputError:
        close = get_close_matches(name, self._names, n=3)
        near = f"did you mean {' or '.join(repr(one) for one in close)}? " if close else ""
        known = ", ".join(sorted(self._names, key=_natural)[:LISTED]) or "nothing"
        more = f" and {len(self._names) - LISTED} more" if len(self._names) > LISTED else ""
        optional = "" if field in ("observations", "actions") else "; null if the log has none"
        what = what.replace("column", self._noun)
        return InputError(
            f"{self.file}: {what} '{name}' (dataset.columns.{field}); {near}there is {known}{more}{optional}"
        )

    def matrix(self, field: str, columns: Columns) -> Array:
        """All columns of a field side by side, (N, K) float32."""
        names = self.choose(field, columns)
        return np.concatenate([self._as(field, name, np.float32) for name in names], axis=1)

    def single(self, field: str, name: str, dtype: type[np.floating[Any]] = np.float32) -> Array:
        """A column of one number a row, (N,)."""
        values = self._as(field, name, dtype)
        if values.shape[1] != 1:
            raise InputError(f"{self.place(field, name)}: {values.shape[1]} numbers a row; it must be one")
        return values[:, 0]

    def _as(self, field: str, name: str, dtype: type[np.floating[Any]]) -> Array:
        wide = self.numbers(field, name)
        with np.errstate(over="ignore"):
            values = wide.astype(dtype)
        self._refuse(np.isinf(values), wide, field, name, "is too large for single precision; rescale it")
        return values

    def numbers(self, field: str, name: str) -> Array:
        """A column of finite numbers as they are stored, (N, K)."""
        values = self._cells(field, name)
        place = self.place(field, name)
        if values.dtype.kind in "OSU":
            raise self._no_number(values, place)
        if values.dtype.kind not in "biuf":
            raise InputError(f"{place}: holds {values.dtype}, not numbers; convert it or leave it out")
        if values.ndim > 2 or 0 in values.shape:
            raise InputError(
                f"{place}: has shape {values.shape}; a row must be one number or one vector: flatten it"
            )
        values = values.reshape(len(values), -1)
        self._refuse(~np.isfinite(values), values, field, name, "is no finite number; repair that row")
        return values

    def _refuse(self, bad: Array, values: Array, field: str, name: str, fault: str) -> None:
        """Raise InputError at the first bad value, if there is any; (N, K) both."""
        if bad.any():
            row, entry = np.argwhere(bad)[0]
            within = f", entry {entry}" if values.shape[1] > 1 else ""
            raise InputError(
                f"{self.place(field, name)}: {values[row, entry]} at {_row(row)}{within} {fault}"
            )

    def _no_number(self, values: Array, place: str) -> InputError:
        missing = np.argwhere(pd.isna(values))
        if len(missing):
            return InputError(f"{place}: nothing at {_row(missing[0, 0])}; repair that row")
        width = max(1, values.size // len(values))
        wrong = next((index for index, cell in enumerate(values.flat) if not _is_number(cell)), None)
        if wrong is not None:
            return InputError(f"{place}: {_brief(values.flat[wrong])} at {_row(wrong // width)} is no number")
        return InputError(f"{place}: holds text such as {_brief(values.flat[0])}; save it as numbers")

    def flags(self, field: str, name: str) -> Array:
        """A column of flags, (N,) bool."""
        codes, found = self.categories(field, name)
        truths = [FLAGS.get(str(value).lower()) for value in found]
        if None in truths:
            row = np.flatnonzero(codes == truths.index(None))[0]
            raise InputError(
                f"{self.place(field, name)}: {_brief(found[codes[row]])} at {_row(row)} is no flag; write 0 "
                "and 1, or false and true"
            )
        return np.array(truths, dtype=bool)[codes]

    def categories(self, field: str, name: str) -> tuple[Array, list[Any]]:
        """A column of one value a row: codes, (N,) int64, that count up as values appear, and the values."""
        values = self._cells(field, name)
        place = self.place(field, name)
        if values.size != len(values):
            raise InputError(f"{place}: has shape {values.shape}; one value a row is needed")
        values = np.char.decode(values, errors="replace") if values.dtype.kind == "S" else values
        try:
            codes, found = pd.factorize(values.reshape(-1).astype(object))
        except TypeError:  # cells that are no single values
            raise InputError(f"{place}: holds {_brief(values.flat[0])}; one value a row is needed") from None
        missing = np.flatnonzero(codes < 0)
        if len(missing):
            raise InputError(f"{place}: nothing at {_row(missing[0])}; repair that row")
        return codes, list(found)

    def _cells(self, field: str, name: str) -> Array:
        """A column as it is stored, with a row for every row of the others."""
        if name not in self._names:
            raise self._unknown(field, name, "no column")
        place = self.place(field, name)
        if self._names.count(name) > 1:
            raise InputError(f"{place}: there are {self._names.count(name)} of that name; rename them")
        with _reading(self._path, name):
            values = self._read(name)
        if not isinstance(values, np.ndarray) or values.ndim == 0:
            raise InputError(f"{place}: is a single value or empty; one row a step is needed")
        if len(values) == 0:
            raise InputError(f"{place}: has no row; log at least one step")
        other, rows = self._first = self._first or (name, len(values))
        if len(values) != rows:
            raise InputError(f"{place}: {len(values)} rows, but '{other}' has {rows}; one row a step in each")
        return _stacked(values, place)


def _stacked(values: Array, place: str) -> Array:
    """Cells that are themselves arrays as one array; everything else as it is."""
    if values.dtype.kind != "O" or values.ndim > 1 or not isinstance(values[0], np.ndarray):
        return values
    for row, cell in enumerate(values):
        if np.shape(cell) != values[0].shape:
            raise InputError(
                f"{place}: {np.size(cell)} values at {_row(row)}, but {values[0].size} in the first; every "
                "row needs the same number"
            )
    return np.stack(values.tolist())


def _is_number(cell: Any) -> bool:
    try:
        float(cell)
    except (TypeError, ValueError):
        return False
    return True


def _brief(cell: Any) -> str:
    text = repr(cell.item() if isinstance(cell, np.generic) else cell)
    return text if len(text) <= 40 else f"{text[:40]}..."


def _natural(name: str) -> tuple[list[tuple[int, str]], str]:
    """Sorting key by which obs_2 comes before obs_10."""
    parts = enumerate(re.split("([0-9]+)", name))  # text and numbers in turn
    return [(int(part), "") if place % 2 else (-1, part) for place, part in parts], name


# --- What the file is -------------------------------------------------------------------------------------


@contextmanager
def _open(path: Path) -> Iterator[_Log]:
    suffix = next((known for known in OPENERS if path.name.lower().endswith(known)), None)
    if not path.exists():
        raise InputError(f"dataset.path: {shown(path)} does not exist")
    if not path.is_file():
        raise InputError(f"dataset.path: {shown(path)} is a folder; name one file in it")
    if suffix is None:
        raise InputError(
            f"dataset.path: {shown(path)} is of an unknown kind; it must end in one of {', '.join(OPENERS)}"
        )
    if path.stat().st_size == 0:
        raise InputError(f"dataset.path: {shown(path)} is empty")
    noun, opener = OPENERS[suffix]
    with ExitStack() as stack:
        with _reading(path):
            names, read = stack.enter_context(opener(path))
        yield _Log(path, noun, names, read)


@contextmanager
def _reading(path: Path, name: str | None = None) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # what is damaged may fail in any way, deep in a library
        reason = one_line(error)
        where = f", '{name}'" if name else ""
        if "allow_pickle" in reason:
            raise InputError(
                f"{shown(path)}{where}: holds Python objects, which are never unpickled; save an array of "
                "numbers, such as numpy.asarray(values, dtype='float32')"
            ) from error
        raise InputError(
            f"{shown(path)}{where}: cannot be read ({reason[:200]}); it is damaged, closed to you, or not "
            "what its suffix says: write it again"
        ) from error


@contextmanager
def _open_hdf5(path: Path) -> Iterator[tuple[list[str], Read]]:
    with h5py.File(path, "r") as file:
        names: list[str] = []

        def note(name: str | bytes, item: object) -> None:
            # A name that is no UTF-8 comes as bytes; nobody can ask for it.
            if isinstance(item, h5py.Dataset) and isinstance(name, str):
                names.append(name)

        file.visititems(note)

        def read(name: str) -> Array:
            text = h5py.check_string_dtype(file[name].dtype) is not None
            values: Array = (file[name].asstr() if text else file[name])[()]
            return values

        yield names, read


@contextmanager
def _open_npz(path: Path) -> Iterator[tuple[list[str], Read]]:
    # Not numpy.load, which takes whatever is no archive for a pickle and says so.
    with path.open("rb") as stream, np.lib.npyio.NpzFile(stream, allow_pickle=False) as file:
        yield list(file.files), file.__getitem__


@contextmanager
def _open_parquet(path: Path) -> Iterator[tuple[list[str], Read]]:
    with pyarrow.parquet.ParquetFile(path) as file:
        yield file.schema_arrow.names, lambda name: _from_arrow(file.read(columns=[name]).column(name))


@contextmanager
def _open_csv(path: Path) -> Iterator[tuple[list[str], Read]]:
    compression = "gzip" if path.name.lower().endswith(".gz") else None
    options = pyarrow.csv.ConvertOptions(strings_can_be_null=True)
    with pa.input_stream(str(path), compression=compression) as stream:
        table = pyarrow.csv.read_csv(stream, convert_options=options)
    names = [name.strip() for name in table.column_names]  # a blank after a comma is no part of a name
    yield names, lambda name: _from_arrow(table.column(names.index(name)))


def _from_arrow(column: Any) -> Array:
    return np.asarray(column.to_pandas())


Opener = Callable[[Path], Any]
OPENERS: dict[str, tuple[str, Opener]] = {
    ".hdf5": ("array", _open_hdf5),
    ".h5": ("array", _open_hdf5),
    ".npz": ("array", _open_npz),
    ".parquet": ("column", _open_parquet),
    ".csv": ("column", _open_csv),
    ".csv.gz": ("column", _open_csv),
}
