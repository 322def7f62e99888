"""HDF5 files, opened so that every value is from the file, or from a file that ``HDF5.files`` lists.

HDF5 can take values from other files in three ways. External links lead to arrays of other HDF5 files: they are
followed here, and never by the library, which looks for the files in several places. External storage makes any
file an array, and a virtual array takes missing parts of other files as zeros: neither is read.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from cvl_pipeline.errors import InputError, one_line
from cvl_pipeline.io.storage import kind_at, shown
from cvl_pipeline.sources.memory import array_bytes

Array = NDArray[Any]

MOST_LINKS = 32
"""Links that may lead to one another, as for symbolic links of a file system."""
MOST_NAMES = 1_000_000
"""Names of one file, which links to groups can multiply without end."""
COPY = "save the values themselves, such as with h5py: new[name] = old[name][()]"


class _FaultyLinkError(Exception):
    """A link that leads nowhere; the message says why."""


@contextmanager
def open_hdf5(path: Path) -> Iterator[HDF5]:
    """Open a file to read.

    Raises:
        InputError: the file has too many names.
        OSError: the file is not HDF5, damaged or unreadable; h5py raises other exceptions too.
    """
    with ExitStack() as stack:
        yield HDF5(path, stack)


def check_log(path: Path) -> None:
    """Raise InputError if a log is something other than a file; a missing one passes."""
    kind = kind_at(path)
    if kind not in ("file", None):
        raise InputError(
            f"dataset.path: {shown(path)} is a {kind}; name one file{' in it' * (kind == 'folder')}"
        )


def log_files(path: Path) -> list[Path]:
    """Return a log, and if it is HDF5 all files that its external links lead to, directly or not.

    A log that cannot be read is alone in the list: reading it gives the reason.

    Raises:
        InputError: it is something other than a file.
    """
    check_log(path)
    files = [path]
    for file in files:  # grows
        with suppress(Exception):  # a damaged file can raise any error of its library
            if kind_at(file) == "file" and h5py.is_hdf5(file):
                files += [linked for linked in _linked(file) if linked not in files]
    return files


def _linked(path: Path) -> list[Path]:
    """Files of all external links of a file."""
    names: list[bytes] = []
    with h5py.File(path, "r") as file:
        links = file.id.links
        links.visit(
            lambda name, info: names.append(name) if info.type == h5py.h5l.TYPE_EXTERNAL else None, info=True
        )
        return list(dict.fromkeys(_place(path, os.fsdecode(links.get_val(name)[0])) for name in names))


def _place(path: Path, linked: str) -> Path:
    """File of an external link, which is relative to the folder of the file that has the link."""
    place = path.parent / linked
    if not place.exists():  # the file may be reached through a symbolic link
        beside = path.resolve().parent / linked
        place = beside if beside.exists() else place
    return place


class HDF5:
    """The arrays and groups of an open file, through soft, hard and external links.

    Attributes:
        arrays: names of all arrays; links that lead nowhere are both here and in ``groups``.
        groups: names of all groups.
        files: the file and those of its external links, missing ones too.
    """

    def __init__(self, path: Path, stack: ExitStack) -> None:
        """Open the file and list its names; ``stack`` closes all files."""
        self._stack = stack
        self._open: dict[Path, h5py.File] = {}
        self._faults: dict[str, str] = {}
        self._found: dict[str, h5py.Dataset | h5py.Group] = {}
        self.arrays: list[str] = []
        self.groups: list[str] = []
        self.files = [path]
        root = self._open[path.resolve()] = stack.enter_context(h5py.File(path, "r"))
        self._list(root, path)

    def _list(self, root: h5py.File, path: Path) -> None:
        pending: list[tuple[str, h5py.Group, Any]] = [("", root, {_identity(root)})]
        while pending:
            prefix, group, above = pending.pop()
            for name in group:
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
                if isinstance(item, h5py.Dataset):
                    self.arrays.append(whole)
                    self._found[whole] = item
                elif isinstance(item, h5py.Group):
                    self.groups.append(whole)
                    identity = _identity(item)
                    if identity not in above:  # a group within itself has no end
                        pending.append((f"{whole}/", item, above | {identity}))
            if len(self.arrays) + len(self.groups) > MOST_NAMES:
                raise InputError(
                    f"{shown(path)}: links give it more than {MOST_NAMES} names; save every array and every group "
                    "under one name"
                )

    def _child(self, group: h5py.Group, name: str, links: int) -> Any:
        """Return a member of a group; raise _FaultyLinkError if it is a link that leads nowhere."""
        link = group.get(name, getlink=True)
        if isinstance(link, h5py.HardLink):
            return group[name]
        if link is None:
            raise _FaultyLinkError(
                "it is listed, but not in the file, which is damaged; write the file again"
            )
        if links == MOST_LINKS:
            raise _FaultyLinkError(f"its links lead to one another, more than {MOST_LINKS} times; {COPY}")
        if isinstance(link, h5py.ExternalLink):
            return self._walk(self._external(group, link), link.path, links + 1)
        return self._walk(group.file if link.path.startswith("/") else group, link.path, links + 1)

    def _walk(self, group: Any, path: str, links: int) -> Any:
        for part in path.split("/"):
            if part in ("", "."):
                continue
            if not isinstance(group, h5py.Group) or group.get(part, getlink=True, default=None) is None:
                raise _FaultyLinkError(
                    f"it is a link to '{path}', which {shown(Path(group.file.filename))} does not have; correct "
                    "the link"
                )
            group = self._child(group, part, links)
        return group

    def _external(self, group: h5py.Group, link: Any) -> h5py.File:
        """Open the file of an external link."""
        path = _place(Path(group.file.filename), link.filename)
        if path not in self.files:
            self.files.append(path)
        try:
            kind = kind_at(path)
        except InputError as error:
            raise _FaultyLinkError(f"it is in another file: {error}") from error
        if kind != "file":
            fault = "does not exist" if kind is None else f"is a {kind}, not a file"
            raise _FaultyLinkError(
                f"it is a link to the file {shown(path)}, which {fault}; put the file there"
            )
        key = path.resolve()
        if key not in self._open:
            try:
                self._open[key] = self._stack.enter_context(h5py.File(path, "r"))
            except Exception as error:  # a damaged file can raise any error
                raise _FaultyLinkError(
                    f"it is a link to the file {shown(path)}, which cannot be read ({one_line(error)}); write that "
                    "file again"
                ) from error
        return self._open[key]

    def fault(self, name: str) -> str | None:
        """Return why an array or a group cannot be read, and the fix; None if it can be."""
        item = self._found.get(name)
        return _fault(item) if isinstance(item, h5py.Dataset) else self._faults.get(name)

    def array(self, name: str) -> h5py.Dataset | None:
        """Return an array that is not read yet; None if there is none of that name."""
        item = self._found.get(name)
        return item if isinstance(item, h5py.Dataset) else None

    def read(self, name: str) -> Array:
        """Return an array; text that is not UTF-8 keeps its bytes as lone surrogates."""
        item = self._found[name]
        text = h5py.check_string_dtype(item.dtype) is not None
        values: Array = (item.asstr("utf-8", "surrogateescape") if text else item)[()]
        return values

    def size(self, name: str) -> int:
        """Return the bytes of an array in memory."""
        item = self.array(name)
        return 0 if item is None or item.shape is None else array_bytes(item.shape, item.dtype)


def _identity(group: h5py.Group) -> tuple[int, int]:
    info = h5py.h5o.get_info(group.id)
    return info.fileno, info.addr


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
