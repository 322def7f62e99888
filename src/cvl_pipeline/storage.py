"""The one file format of tensors: safetensors, self-describing, checked and written atomically."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cvl_pipeline.errors import InputError

FORMAT = "cvl-pipeline"
VERSION = 2
CHECKED_ONCE = 1 << 26
"""Bytes from which on a file that has not changed is checked once a process, not at every read."""
SETTLED = 2.0
"""Age in seconds at which the time of a file tells whether it changes: clocks of file systems are coarse."""

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
    """Let ``write`` fill a temporary file beside ``path``, then rename it: whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{os.getpid()}-{path.name}")
    try:
        write(partial)
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


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
    write_atomically(path, lambda partial: save_file(plain, partial, metadata=metadata))


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
            raise InputError(
                f"{shown(path)}: content does not match its checksum; delete it and rerun its stage"
            )
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
        raise InputError(
            f"{shown(path)} was not written by {FORMAT}; delete it and rerun its stage"
        ) from error
    if found["version"] != VERSION:
        raise InputError(
            f"{shown(path)} has format version {found['version']}, this program reads {VERSION}; "
            "delete it and rerun its stage"
        )
    if kind is not None and found["kind"] != kind:
        raise InputError(
            f"{shown(path)} holds a {found['kind']}, not a {kind}; delete it and rerun its stage"
        )
    return found
