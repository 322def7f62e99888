"""Logs that are read block by block: a progress bar, and rows of named columns that become episodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cvl_pipeline.episodes.container import Rewards, Transitions
from cvl_pipeline.errors import InputError
from cvl_pipeline.io.pieces import Column
from cvl_pipeline.sources.steps import Steps, episodes_from_steps
from cvl_pipeline.training.progress import progress_bar

Array = NDArray[Any]

LARGE = 1 << 27
"""Size in bytes from which reading a log shows a progress bar."""


@contextmanager
def progress(description: str, total: int, size: int) -> Iterator[Callable[[int], None]]:
    """Show a progress bar if a log is large.

    Args:
        description: what is read.
        total: number of rows to read, summed over columns.
        size: bytes of the log.

    Returns:
        A function that is called with the number of rows that were read.
    """
    if size < LARGE:
        yield lambda rows: None
        return
    with progress_bar() as bar:
        task = bar.add_task(description, total=total)
        yield lambda rows: bar.advance(task, rows)


class Log:
    """A log that is filled block by block, and becomes episodes; it may be larger than memory.

    A block is any number of rows of named columns: those of an episode, or of a part of the log. Every block has the
    same columns, which are those of ``Steps``.
    """

    def __init__(self, source: str) -> None:
        """Start without rows.

        Args:
            source: name of the log in errors, such as a file.
        """
        self._source = source
        self._columns: dict[str, Column] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._columns["observations"]) if self._columns else 0

    def add(self, place: str | None = None, **columns: ArrayLike) -> None:
        """Add rows; they are copied.

        Args:
            place: name of the rows in errors, such as ``episode 7``; None: their numbers.
            columns: (M, ...) numbers by name; ``observations``, ``actions``, ``terminated`` and ``truncated`` are
                needed.

        Raises:
            InputError: a column is missing, unknown, or has another number of rows or another shape than the rest;
                values that are not numbers, or not finite; the disk is full.
        """
        place = f"{self._source}: {place or f'rows from {len(self)}'}"
        known = [field.name for field in fields(Steps) if field.name != "discrete"]
        needed = [*self._columns] or ["observations", "actions", "terminated", "truncated"]
        for name in columns:
            if name not in (self._columns or known):
                raise InputError(
                    f"{place}: column '{name}' is not one of {', '.join(self._columns or known)}"
                )
        for name in needed:
            if name not in columns:
                raise InputError(f"{place}: no column '{name}'; give {', '.join(needed)}")
        arrays = {name: self._checked(f"{place}, {name}", name, values) for name, values in columns.items()}
        counts = {name: len(array) for name, array in arrays.items()}
        for name, count in counts.items():
            if count != counts["observations"]:
                raise InputError(
                    f"{place}: {count} rows of {name}, but {counts['observations']} of observations; save the same "
                    "number"
                )
        for name, array in arrays.items():
            self._shapes.setdefault(name, array.shape[1:])
            self._columns.setdefault(name, Column()).append(array)

    def _checked(self, place: str, name: str, values: ArrayLike) -> Array:
        array = np.asarray(values)
        if array.dtype.kind not in "biuf" or array.ndim == 0:
            raise InputError(f"{place}: {array.dtype} of shape {array.shape}; give numbers, one row per step")
        like = self._shapes.get(name, array.shape[1:])
        if array.shape[1:] != like:
            raise InputError(
                f"{place}: rows of shape {array.shape[1:]} after rows of shape {like}; save the same in every row"
            )
        wrong = np.argwhere(~np.isfinite(array))
        if len(wrong):
            where = tuple(int(index) for index in wrong[0])
            raise InputError(
                f"{place}: {array[where]} at row {where[0]} (the first is 0) is not a finite number; repair that row"
            )
        return array

    def episodes(
        self,
        action_bounds: tuple[Array, Array] | None = None,
        *,
        discrete: bool = False,
        prefix: str = "",
        unneeded: str = "leave the column out",
    ) -> tuple[Transitions, Rewards]:
        """Split the log into episodes; see ``episodes_from_steps``.

        Raises:
            InputError: there are no rows, or a fault that only all rows together show.
        """
        if not len(self):
            raise InputError(f"{self._source}: no steps; log at least one")
        arrays: dict[str, Any] = {name: column.array() for name, column in self._columns.items()}
        steps = Steps(**arrays, discrete=discrete)
        return episodes_from_steps(steps, self._source, action_bounds, prefix=prefix, unneeded=unneeded)
