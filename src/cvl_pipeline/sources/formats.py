"""File formats of user logs; files are opened without ever unpickling their contents."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from cvl_pipeline.errors import InputError, one_line
from cvl_pipeline.io.storage import shown

Array = NDArray[Any]


class Contents(NamedTuple):
    """Contents of an open file."""

    noun: str  # the format's word for a column
    names: list[str]  # column names; a table may have the same name twice
    read: Callable[[str], Array]  # returns a column as stored
    groups: Sequence[str] = ()  # folders of columns, at any depth


@contextmanager
def open_contents(path: Path) -> Iterator[Contents]:
    """Open a log by its suffix: .hdf5, .h5, .npz, .parquet, .csv or .csv.gz.

    Raises:
        InputError: the file is missing, a folder, empty or damaged, or has an unknown suffix.
    """
    suffix = next((known for known in OPENERS if path.name.lower().endswith(known)), None)
    if not path.exists():
        raise InputError(f"dataset.path: {shown(path)} does not exist")
    if not path.is_file():
        raise InputError(f"dataset.path: {shown(path)} is a folder; name one file in it")
    if suffix is None:
        raise InputError(
            f"dataset.path: {shown(path)} has an unknown suffix; it must end in one of {', '.join(OPENERS)}"
        )
    if path.stat().st_size == 0:
        raise InputError(f"dataset.path: {shown(path)} is empty")
    with ExitStack() as stack:
        with reading(shown(path)):
            contents = stack.enter_context(OPENERS[suffix](path))
        yield contents


@contextmanager
def reading(place: str) -> Iterator[None]:
    """Convert every error while reading ``place``, a file or a column, into an InputError."""
    try:
        yield
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
def _open_hdf5(path: Path) -> Iterator[Contents]:
    with h5py.File(path, "r") as file:
        names: list[str] = []
        groups: list[str] = []

        def note(name: str | bytes, item: object) -> None:
            # h5py gives a name that is not UTF-8 as bytes; no parameter can select it.
            if isinstance(name, str):
                (names if isinstance(item, h5py.Dataset) else groups).append(name)

        file.visititems(note)

        def read(name: str) -> Array:
            text = h5py.check_string_dtype(file[name].dtype) is not None
            values: Array = (file[name].asstr() if text else file[name])[()]
            return values

        yield Contents("array", names, read, groups)


@contextmanager
def _open_npz(path: Path) -> Iterator[Contents]:
    # Not numpy.load: it reports every file that is not an archive as a pickle.
    with path.open("rb") as stream, np.lib.npyio.NpzFile(stream, allow_pickle=False) as file:
        yield Contents("array", list(file.files), file.__getitem__)


@contextmanager
def _open_parquet(path: Path) -> Iterator[Contents]:
    with pyarrow.parquet.ParquetFile(path) as file:

        def read(name: str) -> Array:
            return _from_arrow(file.read(columns=[name]).column(name))

        yield Contents("column", file.schema_arrow.names, read)


@contextmanager
def _open_csv(path: Path) -> Iterator[Contents]:
    compression = "gzip" if path.name.lower().endswith(".gz") else None
    options = pyarrow.csv.ConvertOptions(strings_can_be_null=True)
    with pa.input_stream(str(path), compression=compression) as stream:
        table = pyarrow.csv.read_csv(stream, convert_options=options)
    names = [name.strip() for name in table.column_names]  # spaces after a comma do not belong to the name
    yield Contents("column", names, lambda name: _from_arrow(table.column(names.index(name))))


def _from_arrow(column: Any) -> Array:
    return np.asarray(column.to_pandas())


OPENERS: dict[str, Callable[[Path], AbstractContextManager[Contents]]] = {
    ".hdf5": _open_hdf5,
    ".h5": _open_hdf5,
    ".npz": _open_npz,
    ".parquet": _open_parquet,
    ".csv": _open_csv,
    ".csv.gz": _open_csv,
}
