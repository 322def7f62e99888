"""File formats of user logs; files are opened without ever unpickling their contents."""

from __future__ import annotations

import errno
import io
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from cvl_pipeline.errors import InputError, one_line
from cvl_pipeline.io.storage import shown
from cvl_pipeline.sources.hdf5 import check_log, open_hdf5
from cvl_pipeline.sources.memory import GIB, allowed_bytes, array_bytes, too_large

Array = NDArray[Any]


def _no_fault(name: str) -> None:
    return None


class Contents(NamedTuple):
    """Contents of an open file."""

    noun: str  # the format's word for a column
    names: list[str]  # column names; a table may have the same name twice
    read: Callable[[str], Array]  # returns a column as stored
    size: Callable[[str], int]  # returns the bytes of a column in memory, before it is read
    groups: Sequence[str] = ()  # folders of columns, at any depth
    fault: Callable[[str], str | None] = _no_fault  # says why a column or a group cannot be read
    text: Callable[[str], Array] | None = (
        None  # returns a column of identifiers as text, as the file writes them
    )


@contextmanager
def open_contents(
    path: Path, ids: Collection[str] = (), memory_limit: float | None = None
) -> Iterator[Contents]:
    """Open a log by its suffix: .hdf5, .h5, .npz, .parquet, .csv or .csv.gz.

    Args:
        path: the file.
        ids: columns of identifiers.
        memory_limit: see ``check_memory``; CSV is read as a whole here.

    Raises:
        InputError: the file is missing, a folder, a pipe, empty or damaged, has an unknown suffix, or is CSV and too
            large.
    """
    suffix = next((known for known in OPENERS if path.name.lower().endswith(known)), None)
    check_log(path)
    if not path.exists():
        raise InputError(f"dataset.path: {shown(path)} does not exist")
    if suffix is None:
        raise InputError(
            f"dataset.path: {shown(path)} has an unknown suffix; it must end in one of {', '.join(OPENERS)}"
        )
    if path.stat().st_size == 0:
        raise InputError(f"dataset.path: {shown(path)} is empty")
    with ExitStack() as stack:
        with reading(shown(path)):
            contents = stack.enter_context(OPENERS[suffix](path, ids, memory_limit))
        yield contents


@contextmanager
def reading(place: str) -> Iterator[None]:
    """Convert every error while reading ``place``, a file or a column, into an InputError."""
    try:
        yield
    except InputError:
        raise
    except PermissionError as error:
        raise InputError(
            f"{place}: cannot be read ({os.strerror(errno.EACCES)}); make it readable for you"
        ) from error
    except Exception as error:  # a damaged file can raise any error of its library
        reason = one_line(error)
        if "allow_pickle" in reason:
            raise InputError(
                f"{place}: holds Python objects, which are never unpickled; save an array of numbers, such "
                "as numpy.asarray(values, dtype='float32')"
            ) from error
        raise InputError(
            f"{place}: cannot be read ({reason[:200]}); it is damaged, unreadable for you, or has another "
            "format than its suffix says: write it again"
        ) from error


@contextmanager
def _open_hdf5(path: Path, ids: Collection[str], memory_limit: float | None) -> Iterator[Contents]:
    with open_hdf5(path) as file:
        yield Contents("array", file.arrays, file.read, file.size, file.groups, file.fault)


@contextmanager
def _open_npz(path: Path, ids: Collection[str], memory_limit: float | None) -> Iterator[Contents]:
    # Not numpy.load: it reports every file that is not an archive as a pickle.
    with path.open("rb") as stream, np.lib.npyio.NpzFile(stream, allow_pickle=False) as file:

        def size(name: str) -> int:
            archive: Any = file.zip
            with archive.open(name if name in archive.namelist() else f"{name}.npy") as entry:
                version = np.lib.format.read_magic(entry)
                if version == (1, 0):
                    shape, _, dtype = np.lib.format.read_array_header_1_0(entry)
                else:
                    shape, _, dtype = np.lib.format.read_array_header_2_0(entry)
            return array_bytes(shape, dtype)

        yield Contents("array", list(file.files), file.__getitem__, size)


_BYTES = {"BOOLEAN": 4, "INT32": 4, "FLOAT": 4, "BYTE_ARRAY": 64}
"""Bytes in memory of a value of Parquet's types; of others 8."""


@contextmanager
def _open_parquet(path: Path, ids: Collection[str], memory_limit: float | None) -> Iterator[Contents]:
    with pyarrow.parquet.ParquetFile(path) as file:

        def read(name: str) -> Array:
            return _from_arrow(file.read(columns=[name]).column(name))

        @cache
        def sizes() -> Counter[str]:
            """Bytes of each column; one of vectors or structures is the sum of its parts, such as x.list.element."""
            found: Counter[str] = Counter()
            for group in map(file.metadata.row_group, range(file.metadata.num_row_groups)):
                for column in map(group.column, range(group.num_columns)):
                    parts = column.path_in_schema.split(".")
                    for end in range(1, len(parts) + 1):
                        found[".".join(parts[:end])] += column.num_values * _BYTES.get(
                            column.physical_type, 8
                        )
            return found

        yield Contents("column", file.schema_arrow.names, read, lambda name: sizes()[name])


class _Cells(io.RawIOBase):
    """A stream of CSV that counts cells and ends with an InputError beyond a number."""

    def __init__(self, stream: Any, place: str, allowed: float) -> None:
        self._stream, self._place, self._allowed = stream, place, allowed
        self._cells = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        block: bytes = self._stream.read(size)
        self._cells += block.count(b",") + block.count(b"\n")
        if self._cells * _CELL_BYTES > self._allowed:
            raise too_large(self._place, f"more than {self._allowed / GIB:.3g}", self._allowed)
        return block


_CELL_BYTES = 8


@contextmanager
def _open_csv(path: Path, ids: Collection[str], memory_limit: float | None) -> Iterator[Contents]:
    compression = "gzip" if path.name.lower().endswith(".gz") else None
    with pa.input_stream(str(path), compression=compression) as stream:
        header = pyarrow.csv.open_csv(stream).schema.names
    options = pyarrow.csv.ConvertOptions(
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,  # "NA" in quotes is text
        # Identifiers are text: 007 is not 7. As bytes, because any bytes can be an identifier.
        column_types={name: pa.binary() for name in header if name.strip() in ids},
    )
    with pa.input_stream(str(path), compression=compression) as stream:
        cells = _Cells(stream, shown(path), allowed_bytes(memory_limit))
        table = pyarrow.csv.read_csv(cells, convert_options=options)
    names = [name.strip() for name in table.column_names]  # spaces after a comma do not belong to the name

    def column(name: str) -> Any:
        return table.column(names.index(name))

    def texts(name: str) -> Any:
        if name in ids:
            return column(name).cast(pa.string())
        raw = table.column_names[names.index(name)]
        as_text = pyarrow.csv.ConvertOptions(include_columns=[raw], column_types={raw: pa.string()})
        with pa.input_stream(str(path), compression=compression) as stream:
            return pyarrow.csv.read_csv(stream, convert_options=as_text).column(0)

    def read(name: str) -> Array:
        values = _from_arrow(_inferred(column(name)) if name in ids else column(name))
        if values.dtype.kind == "f" and (abs(values) >= 2.0**63).any():
            _check_integers(texts(name).to_pylist(), f"{shown(path)}: column '{name}'")
        return values

    yield Contents(
        "column", names, read, lambda name: column(name).nbytes, text=lambda name: _from_arrow(column(name))
    )


def _inferred(column: Any) -> Any:
    """Return a column of bytes as numbers, if all of them are numbers."""
    for kind in (pa.int64(), pa.float64()):
        with suppress(pa.ArrowInvalid):
            return column.cast(pa.string()).cast(kind)
    return column


def _check_integers(texts: list[str | None], place: str) -> None:
    """Refuse integers that do not fit 64 bits, which were read as fractions, if two of them became the same."""
    integers = {int(text) for text in texts if text and re.fullmatch(r"\s*[+-]?[0-9]{1,300}\s*", text)}
    by_value: dict[float, int] = {}
    for integer in sorted(integers):
        other = by_value.setdefault(float(integer), integer)
        if other != integer:
            raise InputError(
                f"{place}: {other} and {integer} become the same number; subtract the smallest number, rescale the "
                "column, or leave it out if it is an id"
            )


def _from_arrow(column: Any) -> Array:
    return np.asarray(column.to_pandas())


OPENERS: dict[str, Callable[[Path, Collection[str], float | None], AbstractContextManager[Contents]]] = {
    ".hdf5": _open_hdf5,
    ".h5": _open_hdf5,
    ".npz": _open_npz,
    ".parquet": _open_parquet,
    ".csv": _open_csv,
    ".csv.gz": _open_csv,
}
