"""Arrays that are made block by block: those of more than a megabyte are temporary files, mapped into memory.

The system takes pages of a mapped file back when memory runs short, so arrays may be larger than memory. The files have
no name: nothing is left of them when the arrays are gone, also after a crash.
"""

from __future__ import annotations

import math
import os
import tempfile
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from cvl_pipeline.errors import InputError
from cvl_pipeline.io.storage import refusal, shown

Array = NDArray[Any]

BLOCK_BYTES = 1 << 22
"""Largest size of the blocks in which arrays are read, checked and converted."""
BLOCK_ROWS = 1 << 17
"""Most rows of such a block, because rows of one byte may become eight."""
IN_MEMORY = 1 << 20
"""Size in bytes from which a column is a file."""


def scratch() -> Path:
    """Folder of temporary files: ``TMPDIR``, else /var/tmp, because /tmp is often in memory."""
    lasting = Path("/var/tmp")
    if "TMPDIR" not in os.environ and os.access(lasting, os.W_OK):
        return lasting
    return Path(tempfile.gettempdir())


def temporary_file() -> IO[bytes]:
    """Open a new file without a name; see ``writing``."""
    with writing():
        return tempfile.TemporaryFile(dir=scratch(), buffering=1 << 20)


@contextmanager
def writing() -> Iterator[None]:
    """Convert the errors of writing to a temporary file.

    Raises:
        InputError: the disk is full, or refuses the file.
    """
    try:
        yield
    except OSError as error:
        raise InputError(
            f"cannot write temporary files to {shown(scratch())} (set TMPDIR for another folder): {refusal(error)}"
        ) from error


def block_rows(shape: tuple[int, ...], itemsize: int) -> int:
    """Rows of a block of an array."""
    size = itemsize * math.prod(shape[1:])
    return max(1, min(BLOCK_ROWS, BLOCK_BYTES // max(1, size)))


def slices(*arrays: Any) -> Iterator[slice]:
    """Rows of the arrays block by block; arrays have the same length, and the one with the longest rows decides."""
    count = len(arrays[0])
    rows = min(block_rows(array.shape, array.dtype.itemsize) for array in arrays)
    for first in range(0, count, rows):
        yield slice(first, min(first + rows, count))


def by_block(function: Callable[..., Array], *arrays: Any) -> Array:
    """Apply a function of rows to arrays of the same length, block by block."""
    column = Column()
    for rows in slices(*arrays):
        column.append(function(*(array[rows] for array in arrays)))
    return column.array()


def first_where(fault: Callable[..., Array], *arrays: Any) -> tuple[int, ...] | None:
    """Index of the first entry at which a function of rows is true; None if there is none."""
    for rows in slices(*arrays):
        bad = fault(*(array[rows] for array in arrays))
        if bad.any():
            row, *rest = (int(index) for index in np.argwhere(bad)[0])
            return (rows.start + row, *rest)
    return None


class Column:
    """One array that grows by blocks of rows; it is a temporary file from ``IN_MEMORY`` bytes on.

    Blocks of different types become the type that holds both, as in ``numpy.concatenate``.
    """

    def __init__(self) -> None:
        """Start without rows."""
        self._blocks: list[Array] = []
        self._file: IO[bytes] | None = None
        self._rows = self._bytes = 0
        self._dtype: np.dtype[Any] | None = None
        self._shape: tuple[int, ...] = ()

    def __len__(self) -> int:
        """Number of rows."""
        return self._rows

    def append(self, rows: Array) -> None:
        """Add rows, which are copied.

        Args:
            rows: (M, ...) numbers; all blocks have the same shape but for M.

        Raises:
            InputError: the disk is full, or refuses the file.
        """
        if self._dtype is None:
            self._dtype, self._shape = rows.dtype, rows.shape[1:]
        if rows.shape[1:] != self._shape:
            raise ValueError(f"rows of shape {rows.shape[1:]} after rows of shape {self._shape}")
        if rows.dtype != self._dtype:
            common = np.result_type(rows.dtype, self._dtype)
            if common != self._dtype:
                self._convert(common)
        self._add(np.array(rows, dtype=self._dtype, order="C"))
        self._rows += len(rows)

    def array(self) -> Array:
        """All rows; changes of a mapped array stay in memory, not in the file."""
        if self._dtype is None:
            return np.empty(0)
        if self._file is None:
            if len(self._blocks) != 1:
                self._blocks = [np.concatenate(self._blocks)]
            return self._blocks[0]
        with writing():
            self._file.flush()
        mapped = np.memmap(self._file, self._dtype, "c", shape=(self._rows, *self._shape))
        return mapped.view(np.ndarray)

    def _convert(self, dtype: np.dtype[Any]) -> None:
        before = self.array() if self._rows else None
        self._blocks, self._file, self._bytes, self._dtype = [], None, 0, dtype
        if before is not None:
            for rows in slices(before):
                self._add(before[rows].astype(dtype))

    def _add(self, rows: Array) -> None:
        self._bytes += rows.nbytes
        if self._file is None and self._bytes <= IN_MEMORY:
            self._blocks.append(rows)
            return
        if self._file is None:
            self._file = temporary_file()
            weakref.finalize(self, self._file.close)  # arrays keep their mapping
        waiting, self._blocks = [*self._blocks, rows], []
        with writing():
            for block in waiting:
                self._file.write(block.reshape(-1).view(np.uint8).data)
