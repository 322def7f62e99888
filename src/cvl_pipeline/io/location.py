"""Where a file of the catalog is: on this machine, or behind a URL with a copy on this machine.

Everything that reads or writes has to do with the file on this machine alone: it is memory-mapped, hashed and
renamed as if there were nothing else. ``fetch`` before and ``publish`` after is all that a URL adds.
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

from cvl_pipeline.errors import InputError, missing_extra, one_line
from cvl_pipeline.io.storage import partial_place, shown, write_atomically

CACHE = Path("data/.cache")
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
"""The extra of this package that brings the library of a protocol."""
SECRETS = ("key", "secret", "token", "password", "account_key", "sas_token", "connection_string")
"""Options of file systems that no message may show."""
IDENTITY = ("ETag", "etag", "generation", "mtime", "LastModified", "last_modified", "updated", "created")
"""What file systems tell of a file that changes with its content; each has some of these."""


def is_url(path: str) -> bool:
    """Whether fsspec has to be asked for it."""
    return "://" in path


@dataclass(frozen=True)
class Location:
    """A file, and for one that lies elsewhere its copy on this machine.

    Attributes:
        filepath: path, or URL that fsspec knows, such as ``s3://bucket/folder/file``.
        options: of the file system, such as ``key``, ``secret`` and ``endpoint_url`` of S3.
        cache: folder of copies on this machine.
    """

    filepath: str
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    cache: Path = CACHE

    @property
    def is_remote(self) -> bool:
        """Whether it lies elsewhere."""
        return is_url(self.filepath)

    @property
    def path(self) -> Path:
        """The file on this machine: itself, or its copy."""
        if not self.is_remote:
            return Path(self.filepath)
        protocol, _, rest = self.filepath.partition("://")
        return self.cache / protocol / rest

    def __str__(self) -> str:
        """As a person should read it."""
        return self.filepath if self.is_remote else shown(Path(self.filepath))

    def sibling(self, name: str) -> Location:
        """Another file of the same folder."""
        folder, slash, _ = self.filepath.rpartition("/")
        return Location(f"{folder}{slash}{name}", self.options, self.cache)

    def exists(self) -> bool:
        """Whether it is there; raises InputError if that cannot be found out."""
        return self.path.exists() if not self.is_remote else self.identity() is not None

    def identity(self) -> list[str] | None:
        """What tells that the file behind the URL has not changed, its size first; None if there is none.

        Raises:
            InputError: that cannot be found out.
        """
        with self._told("read"):
            self._system.invalidate_cache()  # others write there too
            try:
                found = self._system.info(self._remote)
            except FileNotFoundError:
                return None
        if found["type"] == "directory":
            return None
        return [str(found["size"]), *(f"{name} {found[name]}" for name in IDENTITY if found.get(name))]

    def fetch(self, anew: bool = False) -> None:
        """Bring the copy up to date; of what is not there, there is none afterwards.

        Args:
            anew: whatever the copy looks like.

        Raises:
            InputError: it cannot be read, or the copy not written.
        """
        if not self.is_remote:
            return
        identity = self.identity()
        if identity is None:
            self.path.unlink(missing_ok=True)
        elif anew or self._copied() != [identity, _state(self.path)]:
            with self._told("read"):
                write_atomically(self.path, lambda partial: self._system.get_file(self._remote, str(partial)))
            self._note(identity)

    def publish(self) -> None:
        """Put the file on this machine where it belongs.

        Raises:
            InputError: that failed. The file is kept under another name, which the message tells: what is in
                its place is a copy of what is there.
        """
        if not self.is_remote:
            return
        try:
            with self._told("write"):
                self._put()
            identity = self.identity()
        except InputError as error:
            kept = self.path.with_name(f".unpublished-{self.path.name}")
            self.path.replace(kept)
            raise InputError(f"{error}; what was made is kept in {shown(kept)}") from error
        self._note(identity)

    def _put(self) -> None:
        if self._system.async_impl:  # object stores show a file when it is whole
            self._system.put_file(str(self.path), self._remote)
            return
        partial = self.sibling(partial_place(self.path).name)._remote
        self._system.makedirs(self._system._parent(self._remote), exist_ok=True)
        self._system.put_file(str(self.path), partial)
        self._system.mv(partial, self._remote)

    def create(self, text: str) -> bool:
        """Write a small file where there is none; False if there is one. No copy is made."""
        with self._told("write"):
            try:
                self._system.pipe_file(self._remote, text.encode(), mode="create")
            except FileExistsError:
                return False
        return True

    def write(self, text: str) -> None:
        """Write a small file. No copy is made."""
        with self._told("write"):
            self._system.pipe_file(self._remote, text.encode())

    def read(self) -> str | None:
        """A small file; None if there is none. No copy is made."""
        with self._told("read"):
            try:
                return str(self._system.cat_file(self._remote).decode())
            except FileNotFoundError:
                return None

    def remove(self) -> None:
        """Delete a small file of which there is no copy."""
        with self._told("write"), suppress(FileNotFoundError):
            self._system.rm_file(self._remote)

    @cached_property
    def _remote(self) -> str:
        return str(self._system._strip_protocol(self.filepath))

    @cached_property
    def _system(self) -> Any:
        import fsspec  # type: ignore[import-untyped]  # not above: a run without a URL need not wait for it

        protocol = self.filepath.partition("://")[0]
        try:
            return fsspec.filesystem(protocol, **self.options)
        except ImportError as error:
            if protocol in EXTRAS and isinstance(error.__cause__, ImportError):
                raise missing_extra(EXTRAS[protocol], error.__cause__) from None
            raise InputError(f"{self}: {one_line(error)}") from None
        except (ValueError, TypeError) as error:
            raise InputError(f"{self}: {self._masked(one_line(error))}") from None

    @property
    def _notes(self) -> Path:
        """Says of what the copy is one, and how it looked then."""
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
    def _told(self, verb: str) -> Iterator[None]:
        """Tell what a file system raises, each in its own way, in one line."""
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
                text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", "***", text)  # not inside of a word
        return text


def _state(path: Path) -> list[int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return [found.st_size, found.st_mtime_ns, found.st_ino]
