"""Download of published files, once and completely."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from functools import partial
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

import pooch
from requests import exceptions
from tqdm import tqdm

from cvl_pipeline.errors import InputError
from cvl_pipeline.io.storage import refusal, shown, unreadable, write_atomically

ATTEMPTS = 3  # per file, if the connection is interrupted
CHUNK_BYTES = 1 << 18
ELSEWHERE = "or download it elsewhere and put it at that path, or give dataset.path"


def download(url: str, folder: Path) -> Path:
    """Download a file into a folder, named after the last part of the URL's path, which must be unique there.

    A file that exists is used without the network. Otherwise the download goes to a temporary file, which is
    renamed when it is complete. An interrupted connection is retried twice. A file is complete if it has the
    length that the server reports; if the server reports none, completeness is not checked.

    Args:
        url: http or https URL.
        folder: cache folder, created if it does not exist.

    Returns:
        Path of the file.

    Raises:
        InputError: unsupported URL, no connection, an error status, a connection interrupted on every
            attempt, a full disk, or a folder without write access.
    """
    target = folder / _file_name(url)
    try:
        return target if target.is_file() else _fetch(url, target, ATTEMPTS)
    except OSError as error:  # includes the errors of requests
        raise InputError(f"cannot download {url} to {shown(target)}: {_reason(error)}") from error


def download_as_seen_first(url: str, folder: Path) -> Path:
    """Download a file that is published without a checksum, and record the SHA-256 of its first download beside it.

    Whenever it is used again, it must have that checksum.

    Args:
        url: as of ``download``.
        folder: as of ``download``.

    Raises:
        InputError: as of ``download``; or the file is no longer the one that was downloaded first.
    """
    target = download(url, folder)
    record = target.with_name(f"{target.name}.sha256")
    try:
        with target.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        known = record.read_bytes().split()[:1] if record.exists() else None
    except OSError as error:
        raise unreadable(Path(error.filename or target), error) from error
    if known is None:
        write_atomically(record, lambda path: path.write_text(f"{digest}  {target.name}\n"))
    elif known != [digest.encode()]:
        raise InputError(
            f"{shown(target)}: its SHA-256 is {digest}, not that of its first download, in {shown(record)}; it is "
            "damaged, or was replaced: delete it to download it again, and the record if you trust the new one"
        )
    return target


def _fetch(url: str, target: Path, attempts: int) -> Path:
    try:
        write_atomically(target, partial(_write, url))
    except exceptions.ChunkedEncodingError:  # the connection was interrupted
        if attempts == 1:
            raise
        return _fetch(url, target, attempts - 1)
    return target


def _write(url: str, path: Path) -> None:
    with ExitStack() as stack:
        # Visible only in terminals. Pooch sets the total to the file's length. Until then the bar needs some
        # total, because a bar without one has no truth value.
        bar = stack.enter_context(
            tqdm(desc="download", total=1, unit="B", unit_scale=True, leave=False, disable=None)
        )
        # Pooch leaves the response and its socket open if the download fails.
        hooks = {"response": lambda response, **_: stack.enter_context(response)}
        pooch.HTTPDownloader(progressbar=bar, chunk_size=CHUNK_BYTES, hooks=hooks)(url, str(path), None)


def _file_name(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise InputError(f"cannot download {url}: {error}; correct the URL") from error
    name = PurePosixPath(unquote(parts.path)).name
    if parts.scheme not in ("http", "https") or name in ("", "..") or not name.isprintable():
        raise InputError(f"cannot download {url}: not an http or https URL of a file; correct the URL")
    return name


def _reason(error: OSError) -> str:
    """Reason and fix, without the library's long message."""
    if isinstance(error, exceptions.HTTPError) and error.response is not None:
        status = f"{error.response.status_code} {error.response.reason}"
        return f"the server answers '{status}'; check the URL, {ELSEWHERE}"
    if isinstance(error, exceptions.ChunkedEncodingError):
        return f"the connection was interrupted {ATTEMPTS} times; run again, {ELSEWHERE}"
    if isinstance(error, (exceptions.ConnectionError, exceptions.Timeout)):
        return f"the server cannot be reached or stopped responding; check the network, {ELSEWHERE}"
    if isinstance(error, exceptions.RequestException):
        return f"{error}; check the URL, {ELSEWHERE}"
    return refusal(error)
