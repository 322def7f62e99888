"""The folder of an exported policy, on this machine or behind a URL.

The contract has the checksums of all other files and is written last. So a reader who finds one of a killed run beside
files of another one sees that they do not fit.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from cvl_pipeline.deploy.runner import digest
from cvl_pipeline.errors import InputError, printable
from cvl_pipeline.io.location import Location
from cvl_pipeline.io.storage import kind_at, shown, unreadable, write_atomically


def write_folder(contract: Location, files: Mapping[str, bytes]) -> None:
    """Write an export's files, the contract last, and delete those of the former export that are no longer there.

    Args:
        contract: place of ``policy.json``; the other files are beside it and below.
        files: content by name, such as ``policy/1/policy.onnx``, with the contract.

    Raises:
        InputError: the disk or the file system refuses a file.
    """
    former = file_names(contract)
    last = contract.path.name
    for name in (*(name for name in files if name != last), last):
        place = contract.sibling(name)
        write_atomically(place.path, functools.partial(Path.write_bytes, data=files[name]))
        place.publish()
    for name in former - files.keys():
        old = contract.sibling(name)
        old.path.unlink(missing_ok=True)
        with suppress(OSError):  # a folder that is not empty, or no folder
            os.removedirs(old.path.parent)  # to Triton, an empty folder is a model without a file
        if old.is_remote:
            old.remove()


def file_names(contract: Location) -> set[str]:
    """Names of the files that the contract in place has; none if there is no contract."""
    return set(_checksums(contract))


def _checksums(contract: Location) -> dict[str, Any]:
    """Checksums of the files that the contract in place has, by name; none if there is no contract."""
    contract.fetch()
    files = _content(contract.path).get("files")
    # It may have been edited: nothing outside of the folder is ours.
    named = files if isinstance(files, dict) else {}
    return {
        name: checksum
        for name, checksum in named.items()
        if ".." not in name.split("/") and not name.startswith("/")
    }


def fault_in(contract: Location) -> str | None:
    """What a folder lacks of what its contract names: a file, or on this machine its bytes; None if nothing."""
    for name, checksum in sorted(_checksums(contract).items()):
        place = contract.sibling(name)
        if not place.exists():
            return f"{name} is missing"
        if not place.is_remote and digest(place.path.read_bytes()) != checksum:
            return f"{name} differs from its checksum"
    return None


def check_no_other_files(contract: Path) -> None:
    """Raise InputError if the folder of a contract has files, but none of them is the contract of a former export.

    Hidden files do not count, because no export has any.

    Args:
        contract: place of ``policy.json`` on this machine.
    """
    folder = contract.parent
    kind = kind_at(folder)
    if kind not in ("folder", None):
        raise InputError(f"{shown(folder)} is a {kind}, not a folder; give another one")
    if kind is None or {"checksum", "files"} <= _content(contract).keys():
        return
    try:
        names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise unreadable(folder, error) from error
    if names:
        raise InputError(
            f"{shown(folder)} has files of its own, such as {printable(names[0])}; give a new folder, or that of a "
            "former export. What an export that was killed has left may be deleted"
        )


def _content(contract: Path) -> dict[str, Any]:
    """Return the content of a contract; none if there is no file, or another one."""
    try:
        content = json.loads(contract.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
