"""Size of a log in memory, known before it is read: a small compressed file can hold very large arrays."""

from __future__ import annotations

import logging
import math
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from cvl_pipeline.errors import InputError

logger = logging.getLogger(__name__)

GIB = 1 << 30
SHARE = 4
"""Reading a log takes up to this many times the memory of its arrays."""


def check_memory(place: str, size: int, limit: float | None) -> None:
    """Refuse arrays that are too large for the memory; log the size of large ones.

    Args:
        place: name of the log in errors.
        size: bytes of its arrays in memory.
        limit: largest size in GiB; None: a quarter of this machine's memory.

    Raises:
        InputError: the arrays are larger.
    """
    allowed = allowed_bytes(limit)
    if size > allowed:
        raise too_large(place, f"{size / GIB:.3g}", allowed)
    if size > GIB:
        logger.info("%s: its arrays take %.1f GiB of memory", place, size / GIB)


def array_bytes(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """Return the bytes of an array in memory: as single precision at least, apart from images."""
    if dtype.kind == "O":  # texts or vectors of any length: only the file has the lengths
        return math.prod(shape) * 64
    images = len(shape) == 4 and dtype == np.uint8
    return math.prod(shape) * (1 if images else max(dtype.itemsize, 4))


def too_large(place: str, size: str, allowed: float) -> InputError:
    """Create the error for arrays of a size, in GiB, beyond the allowed number of bytes."""
    return InputError(
        f"{place}: its arrays take {size} GiB of memory, and dataset.memory_limit is {allowed / GIB:.3g} GiB; name "
        "fewer columns, split the file, or set a larger dataset.memory_limit (reading takes up to "
        f"{SHARE} times as much)"
    )


def allowed_bytes(limit: float | None) -> float:
    """Return the largest size of a log in bytes, from the limit in GiB; None: a quarter of the memory."""
    return GIB * limit if limit is not None else _memory() / SHARE


def _memory() -> float:
    """Memory of this machine in bytes, or of its container; unlimited if the system does not say."""
    sizes = [float("inf")]
    with suppress(AttributeError, OSError, ValueError):
        sizes.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with suppress(OSError, ValueError):  # "max" if there is no limit
        sizes.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(sizes)
