"""Conversion of logged numbers to single precision, in which the pipeline computes."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cvl_pipeline.errors import InputError
from cvl_pipeline.io.pieces import Column, first_where, slices

Array = NDArray[Any]

EXACT = 2.0**24
"""Single precision stores every integer up to this one."""
DOUBLE = 2.0**53
"""Double precision stores every integer up to this one. All larger numbers are whole, also measured ones."""
COARSE = 2.0**20
"""A column is checked for merged numbers if its range is fewer steps of single precision than this."""
COUNTED = 1 << 22
"""Numbers that are compared with each other at the same time."""

logger = logging.getLogger(__name__)


def single_precision(values: Array, place: str) -> Array:
    """Convert numbers to float32 unless that changes what they say.

    Rounding is fine, also of large numbers; but different numbers that become the same are not, such as ids or
    timestamps. The rule, for each column:

    * Whole numbers beyond 2^24 are refused if two different ones become the same; floating-point numbers beyond
      2^53, which are always whole, only if more than half of the different numbers merge.
    * Fractions get a warning if more than half of the different numbers merge, as in times in seconds since 1970.

    Args:
        values: (N,) or (N, K) numbers; NaN and infinity are passed on.
        place: name of the array or the column in messages.

    Returns:
        The same shape, float32; the same array if it is float32 already.

    Raises:
        InputError: values that are not numbers, a finite number too large for single precision, or whole numbers
            that merge.
    """
    if values.dtype.kind not in "biuf":
        raise InputError(f"{place}: {values.dtype}, not numbers; save integers or floating-point numbers")
    if values.dtype == np.float32:
        return values
    exact = values.dtype.kind == "b" or values.dtype.itemsize <= 2
    column, range_ = Column(), _Range()
    for rows in slices(values):
        part = values[rows]
        with np.errstate(over="ignore"):
            singles = part.astype(np.float32)
        if not exact:
            _check_size(part, singles, rows.start, place)
            range_.add(part.reshape(len(part), -1), singles.reshape(len(part), -1))
        column.append(singles)
    result = column.array().reshape(values.shape)
    if exact or not values.size:
        return result
    columns, rounded = values.reshape(len(values), -1), result.reshape(len(values), -1)
    for index in np.flatnonzero(range_.suspicious()):
        where = place if columns.shape[1] == 1 else f"{place}, dimension {index}"
        _check_merging(columns[:, index], rounded[:, index], where)
    return result


def check_finite(values: Array, place: str, fix: str = "remove or repair that episode") -> None:
    """Raise InputError, with the row of the log and the fix, unless all numbers, (N, ...), are finite."""
    unknown = first_where(lambda part: ~np.isfinite(part), values)
    if unknown is not None:
        raise InputError(f"{place} have {values[unknown]} in row {unknown[0]}; {fix}")


def numbers_or_images(values: Array, place: str) -> Array:
    """Numbers in single precision, see ``single_precision``; images, (N, H, W, C) uint8, as they are."""
    return values if values.ndim == 4 else single_precision(values, place)


def _check_size(values: Array, singles: Array, first: int, place: str) -> None:
    """Raise InputError if a finite number of a block, which begins at row ``first``, has become infinite."""
    lost = np.isinf(singles) & np.isfinite(values)
    if lost.any():
        row, *rest = index = tuple(int(i) for i in np.argwhere(lost)[0])
        where = f"row {first + row}" + "".join(f", dimension {i}" for i in rest)
        raise InputError(f"{place}: {values[index]} at {where} is too large for single precision; rescale it")


class _Range:
    """What rows, added block by block, say about columns with numbers that may merge: the cheap part of the check."""

    def __init__(self) -> None:
        self._smallest: Array | None = None
        self._greatest: Array | None = None
        self._last: tuple[Array, Array] | None = None
        self._differ = self._merge = np.zeros(())

    def add(self, columns: Array, singles: Array) -> None:
        """Add (M, K) numbers, and the same in single precision."""
        if not len(columns):
            return
        low, high = columns.min(0), columns.max(0)
        self._smallest = low if self._smallest is None else np.minimum(low, self._smallest)
        self._greatest = high if self._greatest is None else np.maximum(high, self._greatest)
        if columns.dtype.kind != "f":
            return
        # One number far from the rest makes the range large, but neighbours still merge.
        differ = columns[1:] != columns[:-1]
        merge = differ & (singles[1:] == singles[:-1])
        self._differ, self._merge = self._differ + differ.sum(0), self._merge + merge.sum(0)
        if self._last is not None:
            changed = columns[0] != self._last[0]
            self._differ = self._differ + changed
            self._merge = self._merge + (changed & (singles[0] == self._last[1]))
        self._last = columns[-1].copy(), singles[-1].copy()

    def suspicious(self) -> NDArray[np.bool_]:
        """Whether each column may have numbers that merge, (K,)."""
        assert self._smallest is not None
        assert self._greatest is not None
        low, high = self._smallest.astype(np.float64), self._greatest.astype(np.float64)
        largest = np.maximum(abs(low), abs(high))
        suspicious = largest > EXACT
        if self._smallest.dtype.kind == "f":
            steps = np.maximum(largest * 2.0**-23, 2.0**-149)
            with np.errstate(over="ignore", invalid="ignore"):
                suspicious |= high - low < COARSE * steps
            suspicious |= 4 * self._merge > self._differ
        # Constant columns cannot merge, and validation refuses NaN and infinity.
        return np.asarray(suspicious & (self._smallest < self._greatest) & np.isfinite(largest))


def _check_merging(values: Array, singles: Array, place: str) -> None:
    low, high = values.min(), values.max()
    whole = values.dtype.kind in "iu"
    largest = max(abs(low), abs(high))
    if not whole and largest > EXACT:
        whole = first_where(lambda part: part != np.rint(part), values) is None
    different, left = _different(values), _different(singles)
    certain = values.dtype.kind in "iu" or largest <= DOUBLE
    if left == different or not ((whole and certain) or 2 * left < different):
        return
    fault = f"{place}: {different} different numbers from {low} to {high} become {left} in single precision"
    fix = "subtract the smallest number, rescale the column, or leave it out if it is an id or a time"
    if whole:
        raise InputError(f"{fault}; {fix}")
    logger.warning(f"{fault}; {fix}")


def _different(values: Array) -> int:
    """How many different numbers there are, counted in parts that hold up to about ``COUNTED`` of them."""
    parts = -(-len(values) // COUNTED)
    if parts <= 1:
        return len(np.unique(values))
    count = 0
    for part in range(parts):
        found = np.empty(0, values.dtype)
        for rows in slices(values):
            block = np.ascontiguousarray(values[rows])
            # Equal numbers are in the same part, also 0 and -0.
            code = (block.astype(np.float64) + 0.0).view(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
            found = np.union1d(found, block[(code >> np.uint64(32)) % np.uint64(parts) == part])
        count += len(found)
    return count
