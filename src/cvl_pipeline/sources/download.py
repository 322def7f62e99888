"""Fetching a published file once, whole or not at all."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

import pooch
from requests import exceptions
from tqdm import tqdm

from cvl_pipeline.errors import InputError
from cvl_pipeline.io.storage import refusal, shown, write_atomically

ATTEMPTS = 3  # at a file whose connection is cut
CHUNK_BYTES = 1 << 18
ELSEWHERE = "or download it elsewhere and put it at that path, or give dataset.path"


def download(url: str, folder: Path, sha256: str | None = None) -> Path:
    """Fetch a file into a folder, under the last part of its URL's path, which must be its alone there.

    A file that is already there (and has the checksum, where one is known) is taken as it is, without the
    network. Another one is written beside its final path and renamed when it is whole. A connection that is
    cut is tried again twice. Without a checksum, a file is whole if it has the length that the server
    tells, and nothing can be said of one whose server tells none.

    Args:
        url: http or https.
        folder: of the cache; made if it does not exist.
        sha256: checksum of the file, in hexadecimal.

    Returns:
        Path of the file.

    Raises:
        InputError: another kind of URL, no connection, an error status, a connection that is cut again and
            again, another checksum, a full disk or a folder that cannot be written.
    """
    target = folder / _file_name(url)
    try:
        if target.is_file() and _has_checksum(target, sha256):
            return target
        return _fetch(url, target, sha256, ATTEMPTS)
    except OSError as error:  # those of requests too
        raise InputError(f"cannot download {url} to {shown(target)}: {_reason(error)}") from error


def _fetch(url: str, target: Path, sha256: str | None, attempts: int) -> Path:
    def write(partial: Path) -> None:
        _write(url, partial)
        if not _has_checksum(partial, sha256):
            raise InputError(
                f"cannot download {url} to {shown(target)}: its SHA-256 is {pooch.file_hash(str(partial))}, "
                f"not {sha256}; run again, {ELSEWHERE}"
            )

    try:
        write_atomically(target, write)
    except exceptions.ChunkedEncodingError:  # cut
        if attempts == 1:
            raise
        return _fetch(url, target, sha256, attempts - 1)
    return target


def _write(url: str, path: Path) -> None:
    with ExitStack() as stack:
        # Drawn on terminals alone. Pooch makes the file's length its total; until then it needs another one,
        # without which a bar has no truth value.
        bar = stack.enter_context(
            tqdm(desc="download", total=1, unit="B", unit_scale=True, leave=False, disable=None)
        )
        # Pooch leaves a response open where the download fails, and its socket with it.
        hooks = {"response": lambda response, **_: stack.enter_context(response)}
        pooch.HTTPDownloader(progressbar=bar, chunk_size=CHUNK_BYTES, hooks=hooks)(url, str(path), None)


def _has_checksum(path: Path, sha256: str | None) -> bool:
    return sha256 is None or pooch.file_hash(str(path)) == sha256.lower()


def _file_name(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise InputError(f"cannot download {url}: {error}; correct the URL") from error
    name = PurePosixPath(unquote(parts.path)).name
    if parts.scheme not in ("http", "https") or name in ("", "..") or not name.isprintable():
        raise InputError(f"cannot download {url}: not an http or https URL of a file; correct it")
    return name


def _reason(error: OSError) -> str:
    """What went wrong and what to do, without the library's own long words."""
    if isinstance(error, exceptions.HTTPError) and error.response is not None:
        status = f"{error.response.status_code} {error.response.reason}"
        return f"the server answers '{status}'; check the URL, {ELSEWHERE}"
    if isinstance(error, exceptions.ChunkedEncodingError):
        return f"the connection was cut {ATTEMPTS} times before the file was whole; run again, {ELSEWHERE}"
    if isinstance(error, (exceptions.ConnectionError, exceptions.Timeout)):
        return f"the server cannot be reached, or fell silent; check the network, {ELSEWHERE}"
    if isinstance(error, exceptions.RequestException):
        return f"{error}; check the URL, {ELSEWHERE}"
    return refusal(error)
