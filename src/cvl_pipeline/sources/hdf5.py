"""HDF5 files, opened so that every value is from the file, or from a file that ``HDF5.files`` lists.

HDF5 can take values from other files in three ways. External links lead to arrays of other HDF5 files: they are
followed here, and never by the library, which looks for the files in several places. External storage makes any
file an array, and a virtual array takes missing parts of other files as zeros: neither is read.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from cvl_pipeline.errors import InputError, one_line
from cvl_pipeline.io.pieces import Column, block_rows, slices
from cvl_pipeline.io.storage import kind_at, shown

Array = NDArray[Any]

MOST_LINKS = 32
"""Links that may lead to one another, as for symbolic links of a file system."""
MOST_NAMES = 1_000_000
"""Names that links to groups give the members of these groups, and that can multiply without end."""
MOST_OPEN = 64
"""Files that are open at the same time; systems allow 256 to 1024 per process, including PyTorch's."""
LARGE = 1 << 23
"""Bytes of a row of chunks from which an array is read by columns."""
COPY = "save the values themselves, such as with h5py: new[name] = old[name][()]"


class _FaultyLinkError(Exception):
    """A link that leads nowhere; the message says why."""


class _Node(NamedTuple):
    """Place of an array or a group, without links. An open object would take memory: 80 KB for a chunked array."""

    file: Path
    path: str  # "" for the root
    kind: int  # h5py.h5i.GROUP, DATASET or DATATYPE


@contextmanager
def open_hdf5(path: Path) -> Iterator[HDF5]:
    """Open a file to read.

    Raises:
        InputError: links give the file too many names.
        OSError: the file is not HDF5, damaged or unreadable; h5py raises other exceptions too.
    """
    file = HDF5(path)
    try:
        file.list_names()
        yield file
    finally:
        file.close()


def check_log(path: Path) -> None:
    """Raise InputError if a log is something other than a file; a missing one passes."""
    kind = kind_at(path)
    if kind not in ("file", None):
        raise InputError(
            f"dataset.path: {shown(path)} is a {kind}; name one file{' in it' * (kind == 'folder')}"
        )


def log_files(path: Path) -> list[Path]:
    """Return a log, and if it is HDF5 all files that its external links lead to, directly or not.

    A log that cannot be read is alone in the list: reading it gives the reason. A link is left out if the system
    refuses to say what is there, such as for a name that is too long: reading its array gives the reason.

    Raises:
        InputError: it is something other than a file.
    """
    check_log(path)
    files, known = [path], {path}
    for file in files:  # grows
        with suppress(Exception):  # a damaged file can raise any error of its library
            if kind_at(file) == "file" and h5py.is_hdf5(file):
                files += [linked for linked in _linked(file) if linked not in known]
                known.update(files[len(known) :])
    return files


def _linked(path: Path) -> list[Path]:
    """Files of all external links of a file."""
    names: list[bytes] = []
    with h5py.File(path, "r") as file:
        links = file.id.links
        links.visit(
            lambda name, info: names.append(name) if info.type == h5py.h5l.TYPE_EXTERNAL else None, info=True
        )
        places = dict.fromkeys(_place(path, os.fsdecode(links.get_val(name)[0])) for name in names)
    return list(filter(_can_be_asked, places))


def _can_be_asked(path: Path) -> bool:
    try:
        kind_at(path)
    except InputError:
        return False
    return True


def _place(path: Path, linked: str) -> Path:
    """File of an external link, which is relative to the folder of the file that has the link."""
    place = path.parent / linked
    # Not Path.exists, which raises for a name that is too long or a folder that cannot be searched.
    if not os.path.exists(place):  # noqa: PTH110
        beside = path.resolve().parent / linked  # the file may be reached through a symbolic link
        return beside if os.path.exists(beside) else place  # noqa: PTH110
    return place


class HDF5:
    """The arrays and groups of an open file, through soft, hard and external links.

    At most ``MOST_OPEN`` files are open at a time, so that an index may link to any number of files.

    Attributes:
        arrays: names of all arrays; links that lead nowhere are both here and in ``groups``.
        groups: names of all groups.
        files: the file and those of its external links, missing ones too, in order.
    """

    def __init__(self, path: Path) -> None:
        """Open nothing yet."""
        self._path = path
        self._open: dict[Path, h5py.File] = {}  # the file used last is at the end
        self._first: dict[Path, Path] = {path.resolve(): path}  # of each file, the path by which it is opened
        self._faults: dict[str, str] = {}
        self._arrays: dict[str, _Node] = {}
        self._groups: dict[str, _Node] = {}
        self.arrays: list[str] = []
        self.groups: list[str] = []
        self.files: dict[Path, None] = {path: None}

    def list_names(self) -> None:
        """Fill the attributes.

        Raises:
            InputError: links give the file too many names.
            OSError: the file is not HDF5, damaged or unreadable; h5py raises other exceptions too.
        """
        root = _Node(self._path, "", h5py.h5i.GROUP)
        pending = [("", root, {self._identity(root)})]
        listed: set[tuple[Path, int]] = set()
        further = 0
        while pending:
            prefix, group, above = pending.pop()
            members = list(h5py.Group(self._opened(group)))
            if self._identity(group) in listed:  # the names of the first time are all in the file
                further += len(members)
            listed.add(self._identity(group))
            for name in members:
                if not isinstance(name, str):  # not UTF-8: no parameter can select it
                    continue
                whole = f"{prefix}{name}"
                try:
                    item = self._child(group, name, 0)
                except _FaultyLinkError as error:
                    self._faults[whole] = str(error)
                    self.arrays.append(whole)
                    self.groups.append(whole)
                    continue
                if item.kind == h5py.h5i.DATASET:
                    self.arrays.append(whole)
                    self._arrays[whole] = item
                elif item.kind == h5py.h5i.GROUP:
                    self.groups.append(whole)
                    self._groups[whole] = item
                    identity = self._identity(item)
                    if identity not in above:  # a group within itself has no end
                        pending.append((f"{whole}/", item, above | {identity}))
            if further > MOST_NAMES:
                raise InputError(
                    f"{shown(self._path)}: links give its arrays and groups more than {MOST_NAMES} names "
                    "besides their own; save every array and every group under one name"
                )

    def close(self) -> None:
        """Close all files."""
        while self._open:
            self._open.popitem()[1].close()

    def _file(self, path: Path) -> h5py.File:
        """Return an open file, and close the one that was not used for longest if there are too many."""
        file = self._open.pop(path, None)
        if file is None:
            while len(self._open) >= MOST_OPEN:
                self._open.pop(next(iter(self._open))).close()
            file = h5py.File(path, "r")
        self._open[path] = file
        return file

    def _opened(self, node: _Node) -> Any:
        """Open an array or a group; the result is invalid once its file is closed."""
        return h5py.h5o.open(self._file(node.file).id, node.path.encode() or b"/")

    def _identity(self, group: _Node) -> tuple[Path, int]:
        return group.file, h5py.h5o.get_info(self._opened(group)).addr

    def _link(self, group: _Node, name: str) -> Any:
        """Return the link of a member of a group; None if there is none."""
        return self._file(group.file).get(f"{group.path}/{name}", getlink=True)

    def _child(self, group: _Node, name: str, links: int) -> _Node:
        """Return a member of a group; raise _FaultyLinkError if it is a link that leads nowhere."""
        link = self._link(group, name)
        if isinstance(link, h5py.HardLink):
            item = _Node(group.file, f"{group.path}/{name}", h5py.h5i.BADID)
            return item._replace(kind=h5py.h5i.get_type(self._opened(item)))
        if link is None:
            raise _FaultyLinkError(
                "it is listed, but not in the file, which is damaged; write the file again"
            )
        if links == MOST_LINKS:
            raise _FaultyLinkError(f"its links lead to one another, more than {MOST_LINKS} times; {COPY}")
        if isinstance(link, h5py.ExternalLink):
            start = self._external(group, link)
        else:
            start = group._replace(path="") if link.path.startswith("/") else group
        return self._walk(start, link.path, links + 1)

    def _walk(self, node: _Node, path: str, links: int) -> _Node:
        for part in path.split("/"):
            if part in ("", "."):
                continue
            if node.kind != h5py.h5i.GROUP or self._link(node, part) is None:
                raise _FaultyLinkError(
                    f"it is a link to '{path}', which {shown(node.file)} does not have; correct the link"
                )
            node = self._child(node, part, links)
        return node

    def _external(self, group: _Node, link: Any) -> _Node:
        """Return the root of the file of an external link."""
        path = _place(group.file, link.filename)
        self.files[path] = None
        try:
            kind = kind_at(path)
        except InputError as error:
            raise _FaultyLinkError(f"it is in another file: {error}") from error
        if kind != "file":
            fault = "does not exist" if kind is None else f"is a {kind}, not a file"
            raise _FaultyLinkError(
                f"it is a link to the file {shown(path)}, which {fault}; put the file there"
            )
        first = self._first.setdefault(path.resolve(), path)
        try:
            self._file(first)
        except Exception as error:  # a damaged file can raise any error
            raise _FaultyLinkError(
                f"it is a link to the file {shown(path)}, which cannot be read ({one_line(error)}); write that "
                "file again"
            ) from error
        return _Node(first, "", h5py.h5i.GROUP)

    def fault(self, name: str) -> str | None:
        """Return why an array or a group cannot be read, and the fix; None if it can be."""
        array = self.array(name)
        return self._faults.get(name) if array is None else _fault(array)

    def array(self, name: str) -> h5py.Dataset | None:
        """Return an array that is not read yet; None if there is none of that name.

        Use it at once: other arrays may close its file.
        """
        node = self._arrays.get(name)
        return None if node is None else h5py.Dataset(self._opened(node))

    def attribute(self, name: str, attribute: str) -> Any:
        """Return an attribute of an array or a group; None if there is none of that name."""
        node = self._arrays.get(name) or self._groups.get(name)
        return None if node is None else h5py.HLObject(self._opened(node)).attrs.get(attribute)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of an array; () for a single value, or none."""
        item = self.array(name)
        return () if item is None or item.shape is None else tuple(item.shape)

    def blocks(self, name: str) -> Iterator[Array]:
        """Read an array of at least one axis, block by block; text that is not UTF-8 keeps its bytes as surrogates.

        Whole chunks are read, because each would be decompressed again for every block with a part of it. If rows of
        chunks are large because chunks are columns, they are copied to a temporary file first.
        """
        item = h5py.Dataset(self._opened(self._arrays[name]))
        count, chunks = item.shape[0], item.chunks
        rows = block_rows(item.shape, item.dtype.itemsize)
        if chunks is not None:
            rows = max(1, rows // chunks[0]) * chunks[0]
            columns = item.ndim > 1 and chunks[1] < item.shape[1] and item.dtype.kind in "biuf"
            if columns and rows * item.dtype.itemsize * math.prod(item.shape[1:]) > LARGE:
                yield from self._from_columns(name)
                return
        for first in range(0, count, rows):
            item = h5py.Dataset(self._opened(self._arrays[name]))  # other arrays may have closed its file
            text = h5py.check_string_dtype(item.dtype) is not None
            values: Array = (item.asstr("utf-8", "surrogateescape") if text else item)[first : first + rows]
            yield from (values[part] for part in slices(values))  # a chunk may be very large

    def _from_columns(self, name: str) -> Iterator[Array]:
        """Read an array of at least two axes by columns of chunks, and return it by blocks of rows."""
        item = self.array(name)
        assert item is not None
        (count, size, *cell), (tall, wide, *_) = item.shape, item.chunks
        copy = Column()
        for left in range(0, size, wide):
            for top in range(0, count, tall):
                item = h5py.Dataset(self._opened(self._arrays[name]))  # other arrays may have closed its file
                copy.append(item[top : top + tall, left : left + wide].reshape(-1))
        numbers = copy.array()
        of_one = count * math.prod(cell)
        bands = [
            numbers[left * of_one : min(left + wide, size) * of_one].reshape(count, -1, *cell)
            for left in range(0, size, wide)
        ]
        rows = block_rows(item.shape, item.dtype.itemsize)
        for first in range(0, count, rows):
            yield np.concatenate([band[first : first + rows] for band in bands], axis=1)


def _fault(array: h5py.Dataset) -> str | None:
    """Return why the values of an array are not all in the file, or cannot be decoded."""
    plan = array.id.get_create_plist()
    if plan.get_external_count():
        source = plan.get_external(0)[0].decode(errors="replace")
        return (
            f"it takes its values from another file, '{source}' (external storage), which is not read; {COPY}"
        )
    if array.is_virtual:
        source = array.virtual_sources()[0].file_name if array.virtual_sources() else "?"
        return (
            f"it takes its values from other files, such as '{source}' (a virtual dataset), which are not read; "
            f"{COPY}"
        )
    if not array.size:
        return None
    for code, name in (
        (filter_[0], filter_[3]) for filter_ in map(plan.get_filter, range(plan.get_nfilters()))
    ):
        if not h5py.h5z.filter_avail(code):
            label = name.decode(errors="replace").strip("\0") or "unnamed"
            return (
                f"it is compressed with filter {code} ({label}), which is not installed; compress it with gzip "
                "instead: h5repack -f GZIP=4 old.h5 new.h5"
            )
    if array.chunks:
        chunks = math.prod(-(-rows // size) for rows, size in zip(array.shape, array.chunks, strict=True))
        missing = chunks - array.id.get_num_chunks()
    else:
        chunks = 1
        missing = int(array.id.get_space_status() == h5py.h5d.SPACE_STATUS_NOT_ALLOCATED)
    if missing > 0:
        value = np.array(array.fillvalue).item() if array.dtype.kind in "biuf" else "nothing"
        return (
            f"{missing} of its {chunks} parts (chunks) were never written, and would be read as {value}; write all "
            "rows, also those that are 0, or shorten the array to the rows of the log"
        )
    return None
