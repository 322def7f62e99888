"""Files of tables and training states, verified on read."""

from __future__ import annotations

import hashlib
import io
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cvl_pipeline.errors import InputError
from cvl_pipeline.io.storage import (
    FORMAT,
    altered,
    check_file,
    foreign,
    other_version,
    shown,
    unreadable,
    write_atomically,
)

TABLE_VERSION = 1
CHECKPOINT_VERSION = 1
_DIGITS = 64


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table as Parquet; its metadata contains its name and a SHA-256 of the rest of the file.

    Parquet has checksums for pages, but none for the footer, which locates and describes the pages.
    """
    mark = secrets.token_hex(_DIGITS // 2)  # a placeholder that nothing else in the file equals
    arrow = pa.Table.from_pandas(table)
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, arrow.schema) as writer:
        writer.write_table(arrow)
        writer.add_key_value_metadata({FORMAT: f"version {TABLE_VERSION} table {path.stem} sha256 {mark}"})
    content = bytearray(buffer.getbuffer())
    start = content.index(mark.encode())
    content[start : start + _DIGITS] = _digest_without(content, start)
    write_atomically(path, lambda partial: partial.write_bytes(content))


def read_table(path: Path) -> pd.DataFrame:
    """Read a table and verify its checksum.

    Raises:
        InputError: the file is missing, truncated, altered, another table under this name, from another
            program, or of another format version.
    """
    content = _read(path)
    try:
        metadata = pq.read_metadata(io.BytesIO(content)).metadata or {}
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(f"{shown(path)} is damaged or not Parquet; delete it and rerun its stage") from error
    stamp = re.fullmatch(
        rb"version (\d+) table (.*) sha256 (.{%d})" % _DIGITS, metadata.get(FORMAT.encode(), b"")
    )
    if stamp is None:
        raise foreign(path)
    if int(stamp[1]) != TABLE_VERSION:
        raise other_version(path, int(stamp[1]), TABLE_VERSION)
    if _digest_without(content, content.rindex(stamp[3])) != stamp[3]:
        raise altered(path)
    if stamp[2] != path.stem.encode():
        raise InputError(
            f"{shown(path)} contains {stamp[2].decode()}, not {path.stem}; delete it and rerun its stage"
        )
    table: pd.DataFrame = pq.read_table(io.BytesIO(content)).to_pandas()
    return table


def write_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write a training state: a line with format version and SHA-256, then the output of ``torch.save``.

    ``torch.load`` does not compare the checksums of the files that torch saves.
    """
    import torch  # not above: tables need no torch

    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    # Released whatever happens: Python 3.13 cannot collect a buffer whose view is kept by the traceback of an error.
    with buffer.getbuffer() as content:
        line = f"{FORMAT} checkpoint {CHECKPOINT_VERSION} {hashlib.sha256(content).hexdigest()}\n".encode()

        def write(partial: Path) -> None:
            with partial.open("wb") as file:
                file.write(line)
                file.write(content)

        write_atomically(path, write)


def read_checkpoint(path: Path, device: Any = "cpu") -> dict[str, Any]:
    """Read a training state and verify its checksum.

    Args:
        path: the file.
        device: device for the tensors, like torch's ``map_location``.

    Raises:
        InputError: the file is missing, truncated, altered, from another program, of another format version,
            or contains objects other than tensors and plain values, which are never created.
    """
    import torch

    content = memoryview(_read(path))
    stamp = re.match(rb"%b checkpoint (\d+) ([0-9a-f]{64})\n" % FORMAT.encode(), content[:200])
    if stamp is None:
        raise foreign(path)
    if int(stamp[1]) != CHECKPOINT_VERSION:
        raise other_version(path, int(stamp[1]), CHECKPOINT_VERSION)
    if hashlib.sha256(content[stamp.end() :]).hexdigest().encode() != stamp[2]:
        raise altered(path)
    try:
        state: dict[str, Any] = torch.load(
            io.BytesIO(content[stamp.end() :]), weights_only=True, map_location=device
        )
    except Exception as error:  # the checksum is right, so the file is not damaged
        raise InputError(f"{shown(path)} contains more than tensors and plain values; delete it") from error
    return state


def _read(path: Path) -> bytes:
    check_file(path, "delete it and rerun its stage")
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{shown(path)} does not exist; run the stage that makes it") from error
    except PermissionError as error:
        raise unreadable(path, error) from error
    except OSError as error:
        raise InputError(
            f"{shown(path)} is damaged ({error.strerror}); delete it and rerun its stage"
        ) from error


def _digest_without(content: bytes | bytearray, start: int) -> bytes:
    """SHA-256, in hexadecimal, of a table file without the digits of its checksum."""
    view = memoryview(content)
    digest = hashlib.sha256(view[:start])
    digest.update(view[start + _DIGITS :])
    return digest.hexdigest().encode()
