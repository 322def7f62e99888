"""File formats of user logs; files are opened without ever unpickling their contents."""

from __future__ import annotations

import errno
import math
import mmap
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
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
from cvl_pipeline.io.pieces import BLOCK_BYTES, Column, block_rows, slices, temporary_file, writing
from cvl_pipeline.io.storage import shown
from cvl_pipeline.sources.hdf5 import check_log, open_hdf5

Array = NDArray[Any]


def _no_fault(name: str) -> None:
    return None


def _no_note(name: str, attribute: str) -> None:
    return None


class Contents(NamedTuple):
    """Contents of an open file."""

    noun: str  # the format's word for a column
    names: list[str]  # column names; a table may have the same name twice
    blocks: Callable[[str], Iterator[Array]]  # reads a column as stored, block by block
    shape: Callable[
        [str], tuple[int, ...]
    ]  # of a column: rows and, if the format says, those of a cell; () if single
    groups: Sequence[str] = ()  # folders of columns, at any depth
    fault: Callable[[str], str | None] = _no_fault  # says why a column or a group cannot be read
    note: Callable[[str, str], Any] = _no_note  # attribute of a column or a group, by name; None without it
    text: Callable[[str], Iterator[Array]] | None = (
        None  # reads a column of identifiers as text, as the file writes them
    )


@contextmanager
def open_contents(path: Path, ids: Collection[str] = ()) -> Iterator[Contents]:
    """Open a log by its suffix: .hdf5, .h5, .npz, .parquet, .csv or .csv.gz.

    Args:
        path: the file.
        ids: columns of identifiers.

    Raises:
        InputError: the file is missing, a folder, a pipe, empty or damaged, or has an unknown suffix.
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
            contents = stack.enter_context(OPENERS[suffix](path, ids))
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
def _open_hdf5(path: Path, ids: Collection[str]) -> Iterator[Contents]:
    with open_hdf5(path) as file:
        yield Contents("array", file.arrays, file.blocks, file.shape, file.groups, file.fault, file.attribute)


@contextmanager
def _open_npz(path: Path, ids: Collection[str]) -> Iterator[Contents]:
    # Not numpy.load: it reports every file that is not an archive as a pickle.
    with path.open("rb") as stream, np.lib.npyio.NpzFile(stream, allow_pickle=False) as file:
        archive: Any = file.zip

        @contextmanager
        def opened(name: str) -> Iterator[tuple[Any, tuple[int, ...], bool, np.dtype[Any]]]:
            with archive.open(name if name in archive.namelist() else f"{name}.npy") as entry:
                version = np.lib.format.read_magic(entry)
                header = np.lib.format
                read = header.read_array_header_1_0 if version == (1, 0) else header.read_array_header_2_0
                yield entry, *read(entry)

        def shape(name: str) -> tuple[int, ...]:
            with opened(name) as (_, found, _, _):
                return found

        def blocks(name: str) -> Iterator[Array]:
            with opened(name) as (entry, whole, by_column, dtype):
                if dtype.hasobject:
                    raise ValueError("Python objects cannot be loaded when allow_pickle=False")
                if not by_column:
                    rows = block_rows(whole, dtype.itemsize)
                    for first in range(0, whole[0], rows):
                        yield _from_bytes(entry, (min(rows, whole[0] - first), *whole[1:]), dtype)
                    return
                column = Column()
                flat = math.prod(whole)
                for first in range(0, flat, BLOCK_BYTES):
                    column.append(_from_bytes(entry, (min(BLOCK_BYTES, flat - first),), dtype))
            values = column.array().reshape(whole, order="F")
            yield from (values[part] for part in slices(values))

        yield Contents("array", list(file.files), blocks, shape)


def _from_bytes(entry: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    size = math.prod(shape) * dtype.itemsize
    data = entry.read(size)
    if len(data) != size:
        raise ValueError(f"{size - len(data)} bytes are missing")
    return np.frombuffer(data, dtype).reshape(shape)


@contextmanager
def _open_parquet(path: Path, ids: Collection[str]) -> Iterator[Contents]:
    # Pages are read one by one: a group of rows may be as large as the file.
    with pyarrow.parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
        count = file.metadata.num_rows

        @cache
        def sizes() -> Counter[str]:
            """Numbers of each column; one of vectors or structures is the sum of its parts, such as x.list.element."""
            found: Counter[str] = Counter()
            for group in map(file.metadata.row_group, range(file.metadata.num_row_groups)):
                for column in map(group.column, range(group.num_columns)):
                    parts = column.path_in_schema.split(".")
                    for end in range(1, len(parts) + 1):
                        found[".".join(parts[:end])] += column.num_values
            return found

        def blocks(name: str) -> Iterator[Array]:
            width = -(-sizes()[name] // max(1, count))
            for batch in file.iter_batches(block_rows((count, width), 8), columns=[name], use_threads=False):
                yield _from_arrow(batch.column(name))

        yield Contents("column", file.schema_arrow.names, blocks, lambda name: (count,))


CSV_BYTES = 1 << 22
"""Size of the blocks in which a file of text is parsed."""
QUOTED_BYTES = 1 << 26
"""Size of a quoted cell, at most."""
QUOTED = re.compile(rb'"(?<![^,\r\n]")[^"]*(?:""[^"]*)*(?:"|\Z)')
"""A quoted cell, in which two quotes stand for one, and which may not be closed yet."""
BREAK_IN_QUOTES = re.compile(rb'"(?<![^,\r\n]")[^"\r\n]*(?:""[^"\r\n]*)*[\r\n]')
"""What every quoted cell with a line break matches, and hardly anything else."""


@contextmanager
def _open_csv(path: Path, ids: Collection[str]) -> Iterator[Contents]:
    """Parse a file once, block by block, and keep its tables in a temporary file, one after the other."""
    options = pyarrow.csv.ConvertOptions(
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,  # "NA" in quotes is text
    )
    raw: list[str] = []
    places: list[int] = []
    count = 0
    with temporary_file() as file:
        for table in _parsed(path, options, ids):
            raw = table.column_names
            count += len(table)
            places.append(file.tell())
            with writing(), pa.ipc.new_stream(file, table.schema) as writer:
                writer.write_table(table)
        with writing():
            file.flush()
        data = pa.py_buffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    names = [name.strip() for name in raw]  # spaces after a comma do not belong to the name

    def columns(name: str) -> Iterator[Any]:
        for place in places:
            with pa.ipc.open_stream(data.slice(place)) as reader:
                yield reader.read_all().column(names.index(name))

    def check(name: str) -> None:
        """Refuse integers of the whole column that become the same fraction."""
        if name in ids:
            texts = (column.cast(pa.string()) for column in columns(name))
        else:
            column_name = raw[names.index(name)]
            as_text = pyarrow.csv.ConvertOptions(
                include_columns=[column_name], column_types={column_name: pa.string()}
            )
            texts = (table.column(0) for table in _parsed(path, as_text))
        cells = (cell for column in texts for cell in column.to_pylist())
        _check_integers(cells, f"{shown(path)}: column '{name}'")

    def blocks(name: str) -> Iterator[Array]:
        checked = False
        for column in columns(name):
            values = _from_arrow(_inferred(column) if name in ids else column)
            if not checked and values.dtype.kind == "f" and (abs(values) >= 2.0**63).any():
                check(name)
                checked = True
            yield values

    def text(name: str) -> Iterator[Array]:
        return map(_from_arrow, columns(name))

    yield Contents("column", names, blocks, lambda name: (count,), text=text)


def _parsed(path: Path, options: Any, ids: Collection[str] = ()) -> Iterator[Any]:
    """Tables of the rows of a file, block by block; the type of a column may differ between them."""
    names: list[str] | None = None
    for block in _lines(path):
        first = names is None
        quoted = _breaks_in_quotes(block)  # otherwise, parsing is faster
        parsing = pyarrow.csv.ParseOptions(newlines_in_values=quoted)
        size = len(block) + 1 if quoted else None
        if names is None:
            opened = pyarrow.csv.open_csv(
                pa.BufferReader(block), pyarrow.csv.ReadOptions(block_size=size), parsing
            )
            names = list(opened.schema.names)
            # Identifiers are text: 007 is not 7. As bytes, because any bytes can be an identifier.
            types = {name: pa.binary() for name in names if name.strip() in ids}
            options.column_types = {**options.column_types, **types}
        table = pyarrow.csv.read_csv(
            pa.BufferReader(block),
            read_options=pyarrow.csv.ReadOptions(column_names=None if first else names, block_size=size),
            parse_options=parsing,
            convert_options=options,
        )
        if first or len(table):
            yield table


def _lines(path: Path) -> Iterator[bytes]:
    """Whole lines of a file, block by block."""
    compression = "gzip" if path.name.lower().endswith(".gz") else None
    rest = b""
    with pa.input_stream(str(path), compression=compression) as stream:
        while block := stream.read(CSV_BYTES):
            rest += block
            end = _end_of_lines(rest)
            if not end and len(rest) > QUOTED_BYTES and _breaks_in_quotes(rest):
                raise InputError(
                    f"{shown(path)}: a quote is not closed within {QUOTED_BYTES >> 20} MiB; close or remove it"
                )
            if end and len(rest) >= CSV_BYTES:
                yield rest[:end]
                rest = rest[end:]
    if rest:
        yield rest


def _breaks_in_quotes(text: bytes) -> bool:
    return b'"' in text and BREAK_IN_QUOTES.search(text) is not None


def _end_of_lines(text: bytes) -> int:
    """Length of the whole lines with which a text begins; line breaks within quotes end no line."""
    if _breaks_in_quotes(text):
        text = QUOTED.sub(lambda cell: b"_" * len(cell[0]), text)
    return text.rfind(b"\n") + 1 or text.rfind(b"\r", 0, len(text) - 1) + 1


def _inferred(column: Any) -> Any:
    """Return a column of bytes as numbers, if all of them are numbers."""
    for kind in (pa.int64(), pa.float64()):
        with suppress(pa.ArrowInvalid):
            return column.cast(pa.string()).cast(kind)
    return column


def _check_integers(texts: Iterable[str | None], place: str) -> None:
    """Refuse integers that do not fit 64 bits, which were read as fractions, if two of them became the same."""
    by_value: dict[float, int] = {}
    for text in texts:
        if not text or not re.fullmatch(r"\s*[+-]?[0-9]{1,300}\s*", text):
            continue
        integer = int(text)
        other = by_value.setdefault(float(integer), integer)
        if other != integer:
            other, integer = sorted((other, integer))
            raise InputError(
                f"{place}: {other} and {integer} become the same number; subtract the smallest number, rescale the "
                "column, or leave it out if it is an id"
            )


def _from_arrow(column: Any) -> Array:
    return np.asarray(column.to_pandas())


OPENERS: dict[str, Callable[[Path, Collection[str]], AbstractContextManager[Contents]]] = {
    ".hdf5": _open_hdf5,
    ".h5": _open_hdf5,
    ".npz": _open_npz,
    ".parquet": _open_parquet,
    ".csv": _open_csv,
    ".csv.gz": _open_csv,
}
