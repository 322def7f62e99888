"""Conversion of logged numbers to single precision, in which the pipeline computes."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cvl_pipeline.errors import InputError

Array = NDArray[Any]

EXACT = 2.0**24
"""Single precision stores every integer up to this one."""
DOUBLE = 2.0**53
"""Double precision stores every integer up to this one. All larger numbers are whole, also measured ones."""
COARSE = 2.0**20
"""A column is checked for merged numbers if its range is fewer steps of single precision than this."""

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
    with np.errstate(over="ignore"):
        singles: Array = np.asarray(values, dtype=np.float32)
    if (
        values.dtype.kind == "b"
        or values.dtype.itemsize <= 2
        or values.dtype == np.float32
        or not values.size
    ):
        return singles
    lost = np.isinf(singles) & np.isfinite(values)
    if lost.any():
        index = tuple(int(i) for i in np.argwhere(lost)[0])
        where = f"row {index[0]}" + "".join(f", dimension {i}" for i in index[1:])
        raise InputError(f"{place}: {values[index]} at {where} is too large for single precision; rescale it")
    columns, rounded = values.reshape(len(values), -1), singles.reshape(len(values), -1)
    for column in np.flatnonzero(_suspicious(columns, rounded)):
        where = place if columns.shape[1] == 1 else f"{place}, dimension {column}"
        _check_merging(columns[:, column], rounded[:, column], where)
    return singles


def _suspicious(columns: Array, singles: Array) -> NDArray[np.bool_]:
    """Whether each column, (N, K), may have numbers that merge, (K,): the cheap part of the check."""
    smallest, greatest = columns.min(0), columns.max(0)
    low, high = smallest.astype(np.float64), greatest.astype(np.float64)
    largest = np.maximum(abs(low), abs(high))
    suspicious = largest > EXACT
    if columns.dtype.kind == "f":
        steps = np.maximum(largest * 2.0**-23, 2.0**-149)
        with np.errstate(over="ignore", invalid="ignore"):
            suspicious |= high - low < COARSE * steps
        # One number far from the rest makes the range large, but neighbours still merge.
        differ = columns[1:] != columns[:-1]
        merge = differ & (singles[1:] == singles[:-1])
        suspicious |= 4 * merge.sum(0) > differ.sum(0)
    # Constant columns cannot merge, and validation refuses NaN and infinity.
    return np.asarray(suspicious & (smallest < greatest) & np.isfinite(largest))


def _check_merging(values: Array, singles: Array, place: str) -> None:
    low, high = values.min(), values.max()
    whole = values.dtype.kind in "iu"
    largest = max(abs(low), abs(high))
    if not whole and largest > EXACT:
        whole = bool((values == np.rint(values)).all())
    different, left = len(np.unique(values)), len(np.unique(singles))
    certain = values.dtype.kind in "iu" or largest <= DOUBLE
    if left == different or not ((whole and certain) or 2 * left < different):
        return
    fault = f"{place}: {different} different numbers from {low} to {high} become {left} in single precision"
    fix = "subtract the smallest number, rescale the column, or leave it out if it is an id or a time"
    if whole:
        raise InputError(f"{fault}; {fix}")
    logger.warning(f"{fault}; {fix}")
