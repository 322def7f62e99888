"""The folder of an exported policy, on this machine or behind a URL.

The contract has the checksums of all other files and is written last. So a reader who finds one of a killed run beside
files of another one sees that they do not fit.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path

from cvl_pipeline.io.location import Location
from cvl_pipeline.io.storage import write_atomically


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
        if old.is_remote:
            old.remove()


def file_names(contract: Location) -> set[str]:
    """Names of the files that the contract in place has; none if there is no contract."""
    contract.fetch()
    try:
        names = json.loads(contract.path.read_bytes())["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return set()
    # It may have been edited: nothing outside of the folder is ours.
    return {name for name in names if ".." not in name.split("/") and not name.startswith("/")}
