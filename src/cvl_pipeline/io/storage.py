"""The one file format of tensors: safetensors, self-describing, checked and written atomically."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cvl_pipeline.errors import InputError, causes

FORMAT = "cvl-pipeline"
VERSION = 2
CHECKED_ONCE = 1 << 26
"""Bytes from which on a file that has not changed is checked once a process, not at every read."""
SETTLED = 2.0
"""Age in seconds at which the time of a file tells whether it changes: clocks of file systems are coarse."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
REFUSED = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.EISDIR, errno.ENOTDIR, errno.EEXIST,
    errno.ENOTEMPTY, errno.ENAMETOOLONG,
)  # fmt: skip
"""What the system says when a disk is full, or does not take a file for another reason."""
HOST = socket.gethostname()
ABANDONED = 86400.0
"""Age in seconds at which what another machine, whose processes are unknown, left half-written is removed."""

_checked: set[tuple[int, ...]] = set()


def fingerprint(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> str:
    """SHA-256, in hexadecimal, of names, types, shapes, values and configuration."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()


def shown(path: Path | PurePath) -> str:
    """The path as a person should read it: from the working directory on, if it lies below it.

    Also what the published page of the pipeline shows, which must not tell the machine it was made on.
    """
    absolute = Path(path).absolute()
    return str(absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else absolute)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` make a file or a folder in a temporary place, then rename it: whole or not at all.

    The place is a folder of this process's beside ``path``, for whatever a library puts beside what it
    writes. Those that killed processes left are removed. A folder replaces none but an empty one.

    Args:
        path: where it belongs; folders are made.
        write: is given a path of the same name in the temporary place.

    Raises:
        InputError: the disk is full or does not take the file.
    """
    place = partial_place(path)
    try:
        _make_folder(path.parent)
        remove_abandoned(path.parent)
        try:
            place.mkdir(exist_ok=True)
            write(place / path.name)
            _flush(place / path.name)
            (place / path.name).replace(path)
        finally:
            shutil.rmtree(place, ignore_errors=True)
        _flush_entry(path.parent)
    except Exception as error:
        # Libraries that write wrap what the system says in errors of their own.
        for cause in causes(error):
            if isinstance(cause, OSError) and cause.errno in (*FULL, *REFUSED):
                raise InputError(f"cannot write {shown(path)}: {refusal(cause)}") from error
        raise


def refusal(error: OSError) -> str:
    """Why the disk did not take a file, and what to do."""
    if error.errno in FULL:
        return f"the disk is full ({error.strerror}); free some space, or give another folder"
    return f"{error.strerror or error}; make the folder writable, or give another one"


def _make_folder(folder: Path) -> None:
    missing = [part for part in (folder, *folder.parents) if not part.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in missing:
        _flush_entry(made.parent)


def _flush(path: Path) -> None:
    """Have the disk hold the content of a file, or of all files below a folder."""
    if path.is_dir():
        for child in path.iterdir():
            _flush(child)
        _flush_entry(path)
    else:
        with path.open("rb+") as file:
            os.fsync(file.fileno())


def _flush_entry(folder: Path) -> None:
    """Have the disk hold the names of a folder's files, without which a power cut may undo a rename."""
    if os.name == "posix":  # elsewhere a folder cannot be opened
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def partial_place(path: Path) -> Path:
    """The folder that this process makes a file in before it is renamed to ``path``."""
    return path.with_name(f".partial-{os.getpid()}@{HOST}@{path.name}")


def remove_abandoned(folder: Path) -> None:
    """Remove the temporary places that killed processes left in a folder."""
    for place in folder.glob(".partial-*"):
        found = re.fullmatch(r"\.partial-(\d+)@([^@]*)@.+", place.name)
        if found and _abandoned(place, found[2], int(found[1])):
            shutil.rmtree(place, ignore_errors=True)


def is_alive(process: int) -> bool:
    """Whether there is a process of that number on this machine; where that cannot be asked, it is."""
    if os.name != "posix":  # elsewhere, asking would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def _abandoned(place: Path, host: str, process: int) -> bool:
    """Whether nobody is writing there any more."""
    if host == HOST:
        return not is_alive(process)
    try:
        return time.time() - place.stat().st_mtime > ABANDONED
    except FileNotFoundError:  # done meanwhile
        return False


def foreign(path: Path) -> InputError:
    """The error for a file of another program."""
    return InputError(f"{shown(path)} was not written by {FORMAT}; delete it and rerun its stage")


def altered(path: Path) -> InputError:
    """The error for a file whose content is not what was written."""
    return InputError(
        f"{shown(path)} is damaged (content does not match its checksum); delete it and rerun its stage"
    )


def other_version(path: Path, found: Any, known: int) -> InputError:
    """The error for a file of another version of its format."""
    return InputError(
        f"{shown(path)} has format version {found}, this program reads {known}; delete it and rerun its stage"
    )


def write_tensors(path: Path, kind: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Write an artifact.

    Args:
        path: ends in ``.safetensors``; folders are made.
        kind: what it is, such as ``critic``; checked when it is read.
        tensors: its arrays.
        config: plain values needed to make sense of them.
    """
    header = {
        "version": VERSION,
        "kind": kind,
        "config": dict(config),
        "checksum": _checksum(kind, tensors, config),
    }
    # One entry: safetensors writes several in an order that changes from run to run, and the same content
    # should be the same bytes.
    metadata = {FORMAT: json.dumps(header, sort_keys=True)}
    plain: dict[str, Tensor] = {}
    owners: set[int] = set()
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        memory = value.untyped_storage().data_ptr()
        # Safetensors refuses two names for one memory. No other copy: it may be a mapped file of any size.
        plain[name] = value.clone() if memory in owners else value
        owners.add(memory)

    def write(partial: Path) -> None:
        try:
            save_file(plain, partial, metadata=metadata)
        except SafetensorError as error:
            number = re.search(r"\(os error (\d+)\)", str(error))  # all that it tells of the system's error
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from error

    write_atomically(path, write)


def read_tensors(path: Path, kind: str | None) -> tuple[str, dict[str, Tensor], dict[str, Any]]:
    """Read an artifact and check that it is whole.

    Its tensors are the file, mapped into memory: pages are read when they are used and given back when memory
    runs short. Writing to a tensor leaves the file as it is.

    Args:
        path: the file.
        kind: what it must be; None takes any.

    Returns:
        What it is, its tensors and its configuration.

    Raises:
        InputError: missing, truncated, altered, written by another program, of another kind, or of
            another format version.
    """
    with _open(path, kind) as (file, header):
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    config: dict[str, Any] = header["config"]
    state = path.stat()
    identity = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns)
    if identity not in _checked:
        if _checksum(header["kind"], tensors, config) != header["checksum"]:
            raise altered(path)
        if state.st_size >= CHECKED_ONCE and time.time() - state.st_mtime > SETTLED:
            _checked.add(identity)
    return header["kind"], tensors, config


@contextmanager
def _open(path: Path, kind: str | None) -> Iterator[tuple[Any, dict[str, Any]]]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file, _checked_header(path, kind, file.metadata())
    except FileNotFoundError as error:
        raise InputError(f"{shown(path)} does not exist; run the stage that makes it") from error
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{shown(path)} is damaged or not a safetensors file ({error}); delete it and rerun its stage"
        ) from error


def _checksum(kind: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> str:
    return fingerprint(tensors, {"version": VERSION, "kind": kind, "config": dict(config)})


def _checked_header(path: Path, kind: str | None, metadata: dict[str, str] | None) -> dict[str, Any]:
    try:
        header = json.loads((metadata or {})[FORMAT])
        found = {key: header[key] for key in ("version", "kind", "config", "checksum")}
    except (KeyError, TypeError, ValueError) as error:
        raise foreign(path) from error
    if found["version"] != VERSION:
        raise other_version(path, found["version"], VERSION)
    if kind is not None and found["kind"] != kind:
        raise InputError(
            f"{shown(path)} holds a {found['kind']}, not a {kind}; delete it and rerun its stage"
        )
    return found
