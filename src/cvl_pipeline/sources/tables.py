"""Access to the columns of an open log, with checks of every column."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cvl_pipeline.episodes.validation import check_channels_last
from cvl_pipeline.errors import InputError
from cvl_pipeline.io.pieces import Column, by_block
from cvl_pipeline.sources.columns import Columns
from cvl_pipeline.sources.formats import Contents, reading
from cvl_pipeline.sources.precision import DOUBLE, single_precision

Array = NDArray[Any]

FLAGS = {"false": False, "0": False, "0.0": False, "true": True, "1": True, "1.0": True}
PART, HELD_OUT = "cvl_part", "cvl_held_out"
COMPRESSED = (b"\x89PNG", b"\xff\xd8")
"""First bytes of PNG and JPEG."""
VALID = "mask/valid"
"""Array of the names of held-out groups, as robomimic writes it."""
"""Notes of a file that was exported: the name of the part that an array is, and that a group is held out."""
LISTED = 30
"""Maximum number of columns that an error lists."""


class Table:
    """The columns of an open file. Columns are checked when they are read; all methods raise InputError."""

    def __init__(
        self,
        file: str,
        contents: Contents,
        longer: str | None = None,
        advance: Callable[[int], None] = lambda rows: None,
        held_out: bool = False,
    ) -> None:
        """Wrap the contents of an open file.

        Args:
            file: name of the file in errors.
            contents: columns of the file.
            longer: field that may have one row more than the first column read.
            advance: called with the number of rows of each block that was read.
            held_out: whether the file says that its episode is held out from training.
        """
        self.file, self.advance, self.held_out = file, advance, held_out
        self._contents = contents
        self._noun, self._names = contents.noun, contents.names
        self._longer = longer
        self.large: dict[tuple[str, str], Array] = {}
        """In a group, integers from 2^53 on, (N, K) by field and name: as numbers of a matrix they may be rounded."""
        self._first: tuple[str, int] | None = None  # name and number of rows of the first column read

    def groups(self, pattern: str) -> list[Table]:
        """One table per group that matches the pattern, in natural order; names are paths within the group.

        A ``*`` matches within one part of a path. Observations may have one row more than the first column
        read.
        """
        pattern_parts = pattern.strip("/").split("/")
        depth = len(pattern_parts)
        matching = [
            group
            for group in self._contents.groups
            if len(parts := group.split("/")) == depth and all(map(fnmatchcase, parts, pattern_parts))
        ]
        if not matching:
            raise self._unknown("groups", pattern, "no group matches", self._contents.groups)
        for group in matching:
            fault = self._contents.fault(group)
            if fault is not None:
                raise InputError(f"{self.file}: group '{group}' (dataset.columns.groups): {fault}")
        names: dict[str, list[str]] = {group: [] for group in sorted(matching, key=_natural)}
        for name in self._names:
            parts = name.split("/")
            group = "/".join(parts[:depth])
            if group in names:
                names[group].append("/".join(parts[depth:]))
        valid = self._valid()
        return [self._within(group, inner, group.split("/")[-1] in valid) for group, inner in names.items()]

    def _valid(self) -> set[str]:
        """Names of held-out groups, if the file lists them."""
        if VALID not in self._names:
            return set()
        with reading(f"{self.file}, '{VALID}'"):
            fault = self._contents.fault(VALID)
            cells = [] if fault else [cell for block in self._contents.blocks(VALID) for cell in block.flat]
        if fault:
            raise InputError(f"{self.file}: array '{VALID}': {fault}")
        return {cell.decode(errors="replace") if isinstance(cell, bytes) else str(cell) for cell in cells}

    def _within(self, group: str, names: list[str], held_out: bool) -> Table:
        def inside(function: Callable[..., Any]) -> Callable[..., Any]:
            return lambda name, *more: function(f"{group}/{name}", *more)

        whole = self._contents
        contents = Contents(
            self._noun,
            names,
            inside(whole.blocks),
            inside(whole.shape),
            fault=inside(whole.fault),
            note=inside(whole.note),
        )
        file = f"{self.file}, group '{group}'"
        with reading(file):
            held_out = held_out or whole.note(group, HELD_OUT) is not None
        return Table(file, contents, "observations", self.advance, held_out)

    def place(self, field: str, name: str) -> str:
        """Name of a column in errors."""
        return f"{self.file}: {self._noun} '{name}' (dataset.columns.{field})"

    def choose(self, field: str, columns: Columns) -> list[str]:
        """Names of the columns of a field, with patterns resolved."""
        fields = columns.named()
        others = [(name, other) for other in fields if other != field for name in fields[other]]
        names = [name for given in fields[field] for name in self._resolve(field, given, others)]
        duplicate = next((name for name in names if names.count(name) > 1), None)
        if duplicate is not None:
            raise InputError(f"{self.place(field, duplicate)}: listed twice; name it once")
        return names

    def _resolve(self, field: str, given: str, others: list[tuple[str, str]]) -> list[str]:
        if given in self._names:
            return [given]
        if any(name.startswith(f"{given}/") for name in self._names):  # a folder: all that is in it
            given = f"{given}/*"
        if not any(sign in given for sign in "*?["):
            return [given]
        matches = sorted({name for name in self._names if fnmatchcase(name, given)}, key=_natural)
        if not matches:
            raise self._unknown(field, given, f"no {self._noun} matches", self._names)
        for name in matches:
            owner = next((by for other, by in others if name == other or fnmatchcase(name, other)), None)
            if owner is not None:
                raise InputError(
                    f"{self.place(field, given)}: takes '{name}' too, which is dataset.columns.{owner}; make "
                    "the pattern narrower, or list the names"
                )
        return matches

    def _unknown(self, field: str, name: str, what: str, known: Sequence[str]) -> InputError:
        if field != "groups" and (episodes := _numbered_groups(self._contents.groups)):
            pattern, first = episodes
            inside = [one.removeprefix(f"{first}/") for one in known if one.startswith(f"{first}/")]
            listed = ", ".join(sorted(inside, key=_natural)[:LISTED]) or "no array"
            return InputError(
                f"{self.file}: {what} '{name}' (dataset.columns.{field}); if each group '{pattern}' is an episode, set "
                f"dataset.columns.groups to '{pattern}', and name what a group contains: {listed}"
            )
        # A short form, such as obs of observations, says more than letters in common.
        tails = {one: one.rpartition("/")[2] for one in known}
        short = [one for one, tail in tails.items() if len(tail) > 2 and name.startswith(tail)]
        close = short[:3] or get_close_matches(name, known, n=3)
        near = f"did you mean {' or '.join(repr(one) for one in close)}? " if close else ""
        names = ", ".join(sorted(known, key=_natural)[:LISTED]) or "nothing"
        more = f" and {len(known) - LISTED} more" if len(known) > LISTED else ""
        optional = (
            "" if field in ("observations", "actions") else "; set null (None in Python) if the log has none"
        )
        return InputError(
            f"{self.file}: {what} '{name}' (dataset.columns.{field}); {near}there is {names}{more}{optional}"
        )

    def rows(self, columns: Columns) -> int:
        """Rows of all named columns together."""
        names = [name for field in columns.named() for name in self.choose(field, columns)]
        with reading(self.file):
            shapes = [self._contents.shape(name) for name in names if name in self._names]
        return sum(shape[0] for shape in shapes if shape)

    def observations(self, field: str, columns: Columns) -> dict[str, Array]:
        """The parts of observations by name, (N, K) numbers or (N, H, W, C) uint8 images.

        If the file names the parts, as an exported one does, each column is that part. If one of several columns has
        images, each column is a part, named by its path below the folder that all share, with dots. Otherwise, there is
        one part, ``""``: an image, or all columns side by side, as in ``matrix``.
        """
        names = self.choose(field, columns)
        with reading(self.file):
            images = any(len(self._contents.shape(name)) == 4 for name in names if name in self._names)
            noted = [self._contents.note(name, PART) for name in names]
        if all(isinstance(note, str) and note for note in noted) and len({*noted}) == len(names):
            labels = noted
        elif images:
            labels = [""] if len(names) == 1 else _labels(names)
        else:
            return {"": self.matrix(field, columns)}
        parts: dict[str, Array] = {}
        for label, name in zip(labels, names, strict=True):
            found = self._images(field, name)
            parts[label] = self._as_single(field, name) if found is None else found
            self._check_rows(field, name, len(parts[label]), (names[0], len(parts[labels[0]])))
        return parts

    def matrix(self, field: str, columns: Columns) -> Array:
        """All columns of a field side by side, (N, K).

        The numbers are float32; in a group, as stored, but checked to fit float32.
        """
        names = self.choose(field, columns)
        parts = [self._as_single(field, name) for name in names]
        for name, part in zip(names, parts, strict=True):  # only the longer field can differ here
            self._check_rows(field, name, len(part), (names[0], len(parts[0])))
        return parts[0] if len(parts) == 1 else by_block(lambda *block: np.concatenate(block, axis=1), *parts)

    def _images(self, field: str, name: str) -> Array | None:
        """A column of images, (N, H, W, C) uint8; None if it is something else."""
        with reading(f"{self.file}, '{name}'"):
            if name not in self._names or len(self._contents.shape(name)) != 4:
                return None
        images = Column()
        for _, block in self._cells(field, name):
            if block.dtype != np.uint8:
                return None
            check_channels_last(f"{self.place(field, name)}: images", block.shape[1:])
            images.append(block)
        return images.array()

    def single(self, field: str, name: str) -> Array:
        """A column of one number per row, (N,)."""
        values = self._as_single(field, name)
        if values.shape[1] != 1:
            raise InputError(f"{self.place(field, name)}: {values.shape[1]} numbers per row; it must be one")
        return values[:, 0]

    def _as_single(self, field: str, name: str) -> Array:
        fault = "is too large for single precision; rescale it"
        column = Column()
        for first, block in self._numbers(field, name):
            with np.errstate(over="ignore"):
                singles = block.astype(np.float32)
            self._refuse(np.isinf(singles), block, first, field, name, fault)
            column.append(block)
        wide = column.array()
        singles = single_precision(wide, self.place(field, name))
        if self._longer is None:
            return singles
        if wide.dtype.kind in "iu" and (int(wide.max()) >= DOUBLE or int(wide.min()) <= -DOUBLE):
            self.large[field, name] = wide
        return wide  # numbers of different groups are compared later

    def numbers(self, field: str, name: str) -> Array:
        """A column of finite numbers as stored, (N, K)."""
        column = Column()
        for _, block in self._numbers(field, name):
            column.append(block)
        return column.array()

    def _numbers(self, field: str, name: str) -> Iterator[tuple[int, Array]]:
        """First row and finite numbers as stored, (M, K), of each block of a column."""
        place = self.place(field, name)
        for first, values in self._cells(field, name):
            if values.dtype.kind in "OSU":
                raise self._no_number(values, first, place)
            if values.dtype.kind not in "biuf":
                raise InputError(f"{place}: holds {values.dtype}, not numbers; convert the column or omit it")
            if values.ndim > 2 or 0 in values.shape:
                shape = (self._contents.shape(name)[0], *values.shape[1:])
                episodes = ""
                if len(shape) == 3:
                    episodes = (
                        f". If these are {shape[0]} episodes of {shape[1]} steps, reshape every array to "
                        f"{shape[0] * shape[1]} rows, and flag the last row of each episode as truncated"
                    )
                raise InputError(
                    f"{place}: has shape {shape} and type {values.dtype}; a row must be one number, one "
                    f"vector (flatten it), or, in observations, one image, (height, width, channels) uint8{episodes}"
                )
            values = values.reshape(len(values), -1)
            if values.dtype == np.uint8 and values[0].tobytes().startswith(COMPRESSED):
                raise InputError(
                    f"{place}: holds compressed images, whose bytes are no numbers of a state; decode them, and save "
                    "pixels, (rows, height, width, channels) uint8"
                )
            self._refuse(
                ~np.isfinite(values), values, first, field, name, "is not a finite number; repair that row"
            )
            yield first, values

    def _refuse(self, bad: Array, values: Array, start: int, field: str, name: str, fault: str) -> None:
        """Raise InputError at the first bad value of a block, (M, K) both, which begins at row ``start``."""
        if bad.any():
            row, entry = np.argwhere(bad)[0]
            within = f", entry {entry}" if values.shape[1] > 1 else ""
            raise InputError(
                f"{self.place(field, name)}: {values[row, entry]} at {place_of_row(start + row)}{within} {fault}"
            )

    def _no_number(self, values: Array, first: int, place: str) -> InputError:
        missing = np.argwhere(pd.isna(values))
        if len(missing):
            return InputError(f"{place}: nothing at {place_of_row(first + missing[0, 0])}; repair that row")
        if isinstance(values.flat[0], np.ndarray):
            return InputError(f"{place}: a row is a list of lists; flatten it to one vector")
        width = max(1, values.size // len(values))
        wrong = next((index for index, cell in enumerate(values.flat) if not _is_number(cell)), None)
        if wrong is not None:
            return InputError(
                f"{place}: {brief(values.flat[wrong])} at {place_of_row(first + wrong // width)} is not a number; "
                "repair that row"
            )
        return InputError(f"{place}: holds text such as {brief(values.flat[0])}; save it as numbers")

    def flags(self, field: str, name: str) -> Array:
        """A column of flags, (N,) bool."""
        column = Column()
        for first, block in self._cells(field, name):
            codes, categories = self._categories(field, name, first, block)
            truths = [FLAGS.get(str(value).lower()) for value in categories]
            if None in truths:
                row = np.flatnonzero(codes == truths.index(None))[0]
                raise InputError(
                    f"{self.place(field, name)}: {brief(categories[codes[row]])} at {place_of_row(first + row)} is not "
                    "a flag; write 0 and 1, or false and true"
                )
            column.append(np.array(truths, dtype=bool)[codes])
        return column.array()

    def ids(self, field: str, name: str) -> tuple[Array, list[Any]]:
        """A column of identifiers: codes, (N,) int64, in order of appearance, and the identifiers.

        In a file of text, identifiers are text: 7, 07 and 7.0 are three of them.
        """
        column = Column()
        known: dict[Any, int] = {}
        by_text: dict[Any, Any] = {}
        for first, block in self._cells(field, name, self._contents.text):
            codes, ids = self._categories(field, name, first, block)
            for code, ident in enumerate(ids):
                if ident not in known:
                    fault = _fault_of_id(ident, block.dtype, by_text)
                    if fault:
                        row = place_of_row(first + np.flatnonzero(codes == code)[0])
                        raise InputError(f"{self.place(field, name)}: {brief(ident)} at {row} {fault}")
                    known[ident] = len(known)
            column.append(np.array([known[ident] for ident in ids], dtype=np.int64)[codes])
        return column.array(), list(known)

    def _categories(self, field: str, name: str, first: int, values: Array) -> tuple[Array, list[Any]]:
        """Codes of the values of a block, (M,) int64, in order of appearance, and the values."""
        place = self.place(field, name)
        if values.size != len(values):
            shape = (self._contents.shape(name)[0], *values.shape[1:])
            raise InputError(f"{place}: has shape {shape}; save one value per row")
        values = values.reshape(-1)
        values = values.astype(
            values.dtype.newbyteorder("="), copy=False
        )  # pandas takes no other order of bytes
        try:
            # Numbers are compared as they are; everything else as objects.
            numeric = values.dtype.kind in "biuf" and values.dtype != np.float16
            codes, categories = pd.factorize(values if numeric else values.astype(object))
        except TypeError:  # cells are not single values
            raise InputError(f"{place}: holds {brief(values[0])}; save one value per row") from None
        missing = np.flatnonzero(codes < 0)
        if len(missing):
            raise InputError(
                f"{place}: nothing at {place_of_row(first + missing[0])}; repair that row (in CSV, NA, null and nan "
                "mean nothing, unless they are in quotes)"
            )
        # Any bytes are text, and different bytes different text.
        return codes, [
            value.decode(errors="surrogateescape") if isinstance(value, bytes) else value
            for value in categories
        ]

    def _cells(
        self, field: str, name: str, read: Callable[[str], Iterator[Array]] | None = None
    ) -> Iterator[tuple[int, Array]]:
        """First row and values as stored of each block of a column, checked to have as many rows as the others."""
        if name not in self._names:
            raise self._unknown(field, name, f"no {self._noun}", self._names)
        place = self.place(field, name)
        if self._names.count(name) > 1:
            raise InputError(f"{place}: there are {self._names.count(name)} with that name; rename them")
        with reading(f"{self.file}, '{name}'"):
            fault = self._contents.fault(name)
            if fault is not None:
                raise InputError(f"{place}: {fault}")
            shape = self._contents.shape(name)
        if not shape:
            raise InputError(f"{place}: is a single value or empty; save one row per step")
        if shape[0] == 0:
            raise InputError(f"{place}: has no rows; log at least one step")
        self._first = self._first or (name, shape[0])
        if field != self._longer or shape[0] != self._first[1] + 1:
            self._check_rows(field, name, shape[0], self._first)
        first, like = 0, None
        blocks = (read or self._contents.blocks)(name)
        while True:
            with reading(f"{self.file}, '{name}'"):
                block = next(blocks, None)
            if block is None:
                return
            if not len(block):
                continue
            values = _stacked(block, place, first, like)
            like = like or values.shape[1:]
            yield first, values
            first += len(values)
            self.advance(len(values))

    def _check_rows(self, field: str, name: str, rows: int, other: tuple[str, int]) -> None:
        if rows != other[1]:
            more = f", and at most one more of dataset.columns.{self._longer}" if self._longer else ""
            raise InputError(
                f"{self.place(field, name)}: {rows} rows, but '{other[0]}' has {other[1]}; save one row per "
                f"step in each{more}"
            )


def _stacked(values: Array, place: str, first: int, like: tuple[int, ...] | None) -> Array:
    """Stack cells that are arrays into one array; return everything else unchanged.

    Args:
        values: a block of a column.
        place: name of the column.
        first: row of the log with which the block begins.
        like: shape of the cells of earlier blocks.
    """
    if values.dtype.kind != "O" or values.ndim > 1 or not isinstance(values[0], np.ndarray):
        return values
    like = like or values[0].shape
    for row, cell in enumerate(values):
        if np.shape(cell) != like:
            raise InputError(
                f"{place}: {np.size(cell)} values at {place_of_row(first + row)}, but {math.prod(like)} in the first; "
                "save the same number in every row"
            )
    return np.stack(values.tolist())


def _fault_of_id(ident: Any, dtype: np.dtype[Any], by_text: dict[Any, Any]) -> str:
    """Why an identifier, in a column of a type, cannot be one; ``by_text`` has those so far by their text."""
    bare = ident.strip() if isinstance(ident, str) else ident
    other = by_text.setdefault(bare, ident)
    if bare == "":
        return "is no identifier; repair that row"
    if isinstance(ident, str) and other != ident:
        return f"differs from {brief(other)} only in blanks; write both alike"
    if dtype.kind == "f" and abs(ident) >= 2.0 ** (np.finfo(dtype).nmant + 1):
        return f"is too large for {dtype}, in which other numbers are the same; save integers or text"
    return ""


def _is_number(cell: Any) -> bool:
    try:
        float(cell)
    except (TypeError, ValueError):
        return False
    return True


def brief(cell: Any) -> str:
    """Text of a cell in errors."""
    text = repr(cell.item() if isinstance(cell, np.generic) else cell)
    return text if len(text) <= 40 else f"{text[:40]}..."


def _numbered_groups(groups: Sequence[str]) -> tuple[str, str] | None:
    """Pattern of the most groups that differ in a last number alone, and the first of them; None without two such.

    ``data/demo_0`` and ``data/demo_1`` give ``data/demo_*`` and ``data/demo_0``.
    """
    patterns = {group: re.sub("[0-9]+$", "*", group) for group in groups if re.search("[0-9]$", group)}
    for pattern, count in Counter(patterns.values()).most_common(1):
        if count > 1:
            return pattern, min((group for group in patterns if patterns[group] == pattern), key=_natural)
    return None


def _natural(name: str) -> tuple[list[tuple[int, str]], str]:
    """Sorting key by which obs_2 comes before obs_10."""
    parts = enumerate(re.split("([0-9]+)", name))  # text and numbers in turn
    return [(int(part), "") if place % 2 else (-1, part) for place, part in parts], name


def _labels(names: list[str]) -> list[str]:
    """Names of parts: paths below the folder that all share, with dots, such as images.wrist."""
    paths = [re.split("[/.]", name) for name in names]
    shared = 0
    while all(len(path) > shared + 1 and path[shared] == paths[0][shared] for path in paths):
        shared += 1
    labels = [".".join(path[shared:]) for path in paths]
    return labels if len(set(labels)) == len(labels) else names


def place_of_row(index: int) -> str:
    """Name of a row in errors; it says that counting starts at 0."""
    return f"row {index} (the first is 0)"
