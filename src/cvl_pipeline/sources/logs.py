"""Logs that are read block by block: a progress bar, and rows of named columns that become episodes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cvl_pipeline.episodes.container import Rewards, Transitions
from cvl_pipeline.errors import InputError
from cvl_pipeline.io.pieces import Column, first_where
from cvl_pipeline.sources.precision import numbers_or_images
from cvl_pipeline.sources.steps import Steps, episodes_from_steps, packed
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
        self._columns: dict[tuple[str, str], Column] = {}
        self._shapes: dict[tuple[str, str], tuple[int, ...]] = {}
        self._count = 0

    def __len__(self) -> int:
        """Number of rows."""
        return self._count

    def add(self, place: str | None = None, **columns: ArrayLike | Mapping[str, ArrayLike]) -> None:
        """Add rows; they are copied.

        Args:
            place: name of the rows in errors, such as ``episode 7``; None: their numbers.
            columns: (M, ...) numbers by name; ``observations``, ``actions``, ``terminated`` and ``truncated`` are
                needed. ``observations`` and ``next_observations`` of several parts are arrays by name of the part.

        Raises:
            InputError: a column is missing, unknown, or has another number of rows or another shape than the rest;
                values that are not numbers, or not finite; the disk is full.
        """
        place = f"{self._source}: {place or f'rows from {len(self)}'}"
        given: dict[tuple[str, str], ArrayLike] = {}
        for name, values in columns.items():
            parts = values if isinstance(values, Mapping) else {"": values}
            given |= {(name, part): array for part, array in parts.items()}
        self._check_names(given, place)
        arrays = {key: self._checked(f"{place}, {_label(key)}", key, values) for key, values in given.items()}
        (first, count), *others = ((key, len(array)) for key, array in arrays.items())
        for key, rows in others:
            if rows != count:
                raise InputError(
                    f"{place}: {rows} rows of {_label(key)}, but {count} of {_label(first)}; save the same number"
                )
        for key, array in arrays.items():
            self._shapes.setdefault(key, array.shape[1:])
            self._columns.setdefault(key, Column()).append(array)
        self._count += count

    def _check_names(self, given: Iterable[tuple[str, str]], place: str) -> None:
        names = [field.name for field in fields(Steps) if field.name not in ("discrete", "parts")]
        needed = {("observations", ""), ("actions", ""), ("terminated", ""), ("truncated", "")}
        for key in given:
            fits = key in self._columns if self._columns else key[0] in names
            if not fits:
                known = ", ".join(map(_label, self._columns)) or ", ".join(names)
                raise InputError(f"{place}: column '{_label(key)}' is not one of {known}")
        fields_given = {name for name, _ in given}
        for key in self._columns or sorted(needed):
            if key not in given and (self._columns or key[0] not in fields_given):
                raise InputError(f"{place}: no column '{_label(key)}'; give it, as in the other rows")

    def _checked(self, place: str, key: tuple[str, str], values: ArrayLike) -> Array:
        array = np.asarray(values)
        if array.dtype.kind not in "biuf" or array.ndim == 0:
            raise InputError(f"{place}: {array.dtype} of shape {array.shape}; give numbers, one row per step")
        like = self._shapes.get(key, array.shape[1:])
        if array.shape[1:] != like:
            raise InputError(
                f"{place}: rows of shape {array.shape[1:]} after rows of shape {like}; save the same in every row"
            )
        wrong = first_where(lambda part: ~np.isfinite(part), array) if array.dtype.kind == "f" else None
        if wrong is not None:
            raise InputError(
                f"{place}: {array[wrong]} at row {wrong[0]} (the first is 0) is not a finite number; repair that row"
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
        arrays: dict[str, Any] = {}
        layout = None
        for name in dict.fromkeys(name for name, _ in self._columns):
            parts = {part: column.array() for (other, part), column in self._columns.items() if other == name}
            if list(parts) == [""]:
                arrays[name] = parts[""]
                continue
            single = {
                part: numbers_or_images(values, f"{self._source}: {name}, part '{part}'")
                for part, values in parts.items()
            }
            arrays[name], layout = packed(single, self._source)
        steps = Steps(**arrays, discrete=discrete, parts=layout)
        return episodes_from_steps(steps, self._source, action_bounds, prefix=prefix, unneeded=unneeded)


def _label(key: tuple[str, str]) -> str:
    """Name of a column in errors."""
    return f"{key[0]}, part '{key[1]}'" if key[1] else key[0]
