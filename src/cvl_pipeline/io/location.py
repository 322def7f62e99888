"""Location of a catalog file: a local path, or a URL with a local copy.

All reads and writes use the local file, which is memory-mapped, hashed and renamed. For a URL, ``fetch`` runs
before a read and ``publish`` after a write.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from cvl_pipeline.errors import InputError, has_secret, missing_extra, one_line
from cvl_pipeline.io.storage import partial_place, shown, write_atomically

CACHE = Path("data/.cache")
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
"""Extra of this package that installs the library for a protocol."""
SECRETS = ("key", "secret", "token", "password", "account_key", "sas_token", "connection_string")
"""Options of file systems that must not appear in messages."""
IDENTITY = (
    "ETag", "etag", "generation", "mtime", "LastModified", "last_modified", "updated", "created", "modify",
    "modificationTime",
)  # fmt: skip
"""Metadata that changes with a file's content; each file system reports some of them."""


def is_url(path: str) -> bool:
    """Whether the path is a URL for fsspec."""
    return "://" in path


def is_unique(identity: list[str]) -> bool:
    """Whether the identity of a file changes with every change of its content: the size alone does not."""
    return len(identity) > 1


@dataclass(frozen=True)
class Location:
    """A local file, or a remote file with its local copy.

    Attributes:
        filepath: path, or URL that fsspec supports, such as ``s3://bucket/folder/file``.
        options: for the file system, such as ``key``, ``secret`` and ``endpoint_url`` for S3.
        cache: local folder for copies.
    """

    filepath: str
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    cache: Path = CACHE

    def __post_init__(self) -> None:
        """Refuse a URL with a secret, which would become the name of a folder and appear in messages."""
        if self.is_remote and has_secret(self.filepath):
            raise InputError(
                f"{self.filepath}: a URL of artifacts cannot contain a password or key; put it into an entry of "
                "credentials.yml, and name the entry in data.credentials"
            )

    @property
    def is_remote(self) -> bool:
        """Whether the file is behind a URL."""
        return is_url(self.filepath)

    @property
    def path(self) -> Path:
        """The local file: the file itself, or its copy."""
        if not self.is_remote:
            return Path(self.filepath)
        protocol, _, rest = self.filepath.partition("://")
        return self.cache / protocol / rest.lstrip("/")  # an absolute path would leave the cache

    def __str__(self) -> str:
        """The path or URL for messages."""
        return self.filepath if self.is_remote else shown(Path(self.filepath))

    def sibling(self, name: str) -> Location:
        """Another file in the same folder."""
        folder, slash, _ = self.filepath.rpartition("/")
        return Location(f"{folder}{slash}{name}", self.options, self.cache)

    def exists(self) -> bool:
        """Whether the file exists; raises InputError if the file system cannot report it."""
        return self.path.exists() if not self.is_remote else self.identity() is not None

    def identity(self) -> list[str] | None:
        """Metadata that changes with the remote file's content, size first; None if there is no file.

        Raises:
            InputError: the file system cannot report it.
        """
        with self._one_line_errors("read"):
            self._system.invalidate_cache()  # others write there too
            try:
                info = self._system.info(self._remote)
            except FileNotFoundError:
                return None
        if info["type"] == "directory":
            return None
        return [str(info["size"]), *(f"{name} {info[name]}" for name in IDENTITY if info.get(name))]

    def fetch(self, force: bool = False) -> None:
        """Update the local copy; delete it if the remote file does not exist.

        Args:
            force: download even if the copy looks up to date.

        Raises:
            InputError: the remote file cannot be read, or the copy cannot be written.
        """
        if not self.is_remote:
            return
        identity = self.identity()
        if identity is None:
            self.path.unlink(missing_ok=True)
        elif force or not is_unique(identity) or self._copied() != [identity, _state(self.path)]:
            with self._one_line_errors("read"):
                write_atomically(self.path, lambda partial: self._system.get_file(self._remote, str(partial)))
            self._note(identity)

    def publish(self) -> None:
        """Upload the local file to its URL.

        Raises:
            InputError: the upload failed. The new file is then stored under another name, which the message
                gives, because its own path is for a copy of the remote file.
        """
        if not self.is_remote:
            return
        try:
            with self._one_line_errors("write"):
                self._put()
            identity = self.identity()
        except InputError as error:
            backup = self.path.with_name(f".unpublished-{self.path.name}")
            self.path.replace(backup)
            raise InputError(f"{error}; the new file is stored as {shown(backup)}") from error
        self._note(identity)

    def _put(self) -> None:
        if self._system.async_impl:  # object stores show only complete files
            self._system.put_file(str(self.path), self._remote)
            return
        partial = self.sibling(partial_place(self.path).name)._remote
        self._system.makedirs(self._system._parent(self._remote), exist_ok=True)
        self._system.put_file(str(self.path), partial)
        self._system.mv(partial, self._remote)

    def create(self, text: str) -> bool:
        """Create a small file without a local copy; return False if it exists already."""
        with self._one_line_errors("write"):
            try:
                self._system.pipe_file(self._remote, text.encode(), mode="create")
            except FileExistsError:
                return False
        return True

    def write(self, text: str) -> None:
        """Write a small file without a local copy."""
        with self._one_line_errors("write"):
            self._system.pipe_file(self._remote, text.encode())

    def read(self) -> str | None:
        """Read a small file without a local copy; return None if it does not exist."""
        with self._one_line_errors("read"):
            try:
                return str(self._system.cat_file(self._remote).decode())
            except FileNotFoundError:
                return None

    def remove(self) -> None:
        """Delete a small file that has no local copy."""
        with self._one_line_errors("write"), suppress(FileNotFoundError):
            self._system.rm_file(self._remote)

    @cached_property
    def _remote(self) -> str:
        return str(self._system._strip_protocol(self.filepath))

    @cached_property
    def _system(self) -> Any:
        import fsspec  # type: ignore[import-untyped]  # imported here: slow, and only URLs need it

        protocol = self.filepath.partition("://")[0]
        try:
            return fsspec.filesystem(protocol, **self.options)
        except ImportError as error:
            if protocol in EXTRAS and isinstance(error.__cause__, ImportError):
                raise missing_extra(EXTRAS[protocol], error.__cause__) from None
            raise InputError(f"{self}: {self._masked(one_line(error))}") from None
        except (ValueError, TypeError) as error:
            raise InputError(f"{self}: {self._masked(one_line(error))}") from None

    @property
    def _notes(self) -> Path:
        """File that records the identity of the remote file and the state of its copy."""
        return self.path.with_name(f".{self.path.name}.copied.json")

    def _note(self, identity: list[str] | None) -> None:
        text = json.dumps([identity, _state(self.path)])
        write_atomically(self._notes, lambda partial: partial.write_text(text))

    def _copied(self) -> Any:
        try:
            return json.loads(self._notes.read_text())
        except (OSError, ValueError):
            return None

    @contextmanager
    def _one_line_errors(self, verb: str) -> Iterator[None]:
        """Convert the errors of any file system to an InputError of one line."""
        try:
            yield
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                f"cannot {verb} {self}: {self._masked(one_line(error))}; check the address, the network and "
                "the entry of credentials.yml that data.credentials names"
            ) from error

    def _masked(self, text: str) -> str:
        for name in SECRETS:
            if secret := str(self.options.get(name) or ""):
                text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", "***", text)  # whole words only
        return text


def _state(path: Path) -> list[int] | None:
    try:
        state = path.stat()
    except FileNotFoundError:
        return None
    return [state.st_size, state.st_mtime_ns, state.st_ino]
