"""Record beside each artifact: how it was created, from which inputs, and the checksum of its bytes."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from cvl_pipeline.io.storage import (
    CHECKED_ONCE,
    SETTLED,
    check_file,
    files_below,
    kind_at,
    shown,
    unreadable,
    write_atomically,
)

FORMAT = 1
EDITED = "edited"
"""Begins the value of code and files that were edited while an artifact was made; no hash does."""


@dataclass(frozen=True)
class Recipe:
    """Everything that determines an artifact.

    Attributes:
        node: the node that creates it.
        parameters: every field that counts, by its full name.
        sources: hashes of the user's files and modules outside the pipeline, by parameter or module.
        code: hashes of the node's function and of the modules behind it.
        packages: versions.
        inputs: fingerprints of the artifacts that it is created from.
    """

    node: str
    parameters: dict[str, Any]
    sources: dict[str, str]
    code: dict[str, str]
    packages: dict[str, str]
    inputs: dict[str, str]

    @property
    def fingerprint(self) -> str:
        """Hash of the whole recipe, and thus of the recipes of its inputs, and so on."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def changes(old: Recipe, new: Recipe) -> list[str]:
    """List the differences between two recipes, apart from the inputs, for the reader."""
    differences = []
    kinds = {"parameters": "parameter", "sources": "source", "code": "code of", "packages": "package"}
    for part, kind in kinds.items():
        before, after = getattr(old, part), getattr(new, part)
        for name in sorted(before.keys() | after.keys()):
            what = f"{kind} {name}"
            if part in ("code", "sources") and before.get(name, "").startswith(EDITED):
                differences.append(f"{what} was edited while it was made")
                continue
            if name not in before or name not in after:
                differences.append(f"{what} {'removed' if name in before else 'added'}")
                continue
            was, is_now = (json.dumps(side[name]).strip('"') for side in (before, after))
            if was != is_now and part in ("code", "sources"):  # their hashes would not help the reader
                differences.append(f"{what} changed")
            elif was != is_now:
                differences.append(f"{what}: {was} -> {is_now}")
    return differences


@dataclass(frozen=True)
class Record:
    """Content of the file beside an artifact.

    Attributes:
        recipe: of the artifact.
        contents: checksums of the inputs that it was created from.
        outputs: checksums of all outputs of the same run of the node, including this artifact.
        seen: of large files, path, size, times, number and checksum, to recognise unchanged ones.
    """

    recipe: Recipe
    contents: dict[str, str]
    outputs: dict[str, str]
    seen: list[list[Any]]


def record_path(artifact: Path) -> Path:
    """Path of the record of an artifact."""
    return artifact.with_name(f".{artifact.name}.made.json")


def write_record(artifact: Path, record: Record) -> None:
    """Write a record atomically. It states neither time nor machine, so equal runs give equal bytes."""
    values = {"format": FORMAT, **asdict(record)}
    text = json.dumps({**values, "checksum": _checksum(values)}, indent=1, sort_keys=True)
    write_atomically(record_path(artifact), lambda partial: partial.write_text(text))


def read_record(artifact: Path) -> Record | None:
    """Read the record; None if it is missing, damaged or of another format."""
    path = record_path(artifact)
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text())
        if values.pop("checksum") != _checksum(values) or values.pop("format") != FORMAT:
            return None
        record = Record(**{**values, "recipe": Recipe(**values["recipe"])})
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    parts = (
        *(vars(record.recipe)[field.name] for field in fields(Recipe)[1:]),
        record.contents,
        record.outputs,
    )
    return record if all(isinstance(part, dict) for part in parts) and isinstance(record.seen, list) else None


def _checksum(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


class Checksums:
    """SHA-256 of files. Unchanged files are not read again; records store the checksums of large ones."""

    def __init__(self) -> None:
        """Start without checksums."""
        self._known: dict[tuple[Any, ...], str] = {}

    def learn(self, seen: Iterable[Iterable[Any]]) -> None:
        """Add the checksums of large files from a record."""
        for *identity, checksum in seen:
            self._known[tuple(identity)] = checksum

    def known(self, identity: Iterable[Any]) -> str | None:
        """The known checksum of the file with this identity, if any."""
        return self._known.get(tuple(identity))

    def seen(self, paths: Iterable[Path]) -> list[list[Any]]:
        """Identities and known checksums of the large files among these, in folders too, for a record."""
        identities = [_identity(file) for path in paths for file in _files(path)]
        return [
            [*identity, self._known[identity]]
            for identity in identities
            if identity in self._known and identity[1] >= CHECKED_ONCE
        ]

    def of(self, path: Path) -> str | None:
        """The checksum of a file; None if there is no such file.

        Raises:
            InputError: there is a pipe, a socket or a device, or a file that cannot be read.
        """
        if kind_at(path) == "folder":
            return None
        check_file(path)  # a pipe or a device may never end
        try:
            identity = _identity(path)
            if identity in self._known:
                return self._known[identity]
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            unchanged = _identity(path) == identity
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise unreadable(path, error) from error
        # The clock of a file system may be too coarse to show that a new file has changed. Reading a large
        # file takes longer than one tick.
        _, size, _, changed, _ = identity
        if unchanged and (size >= CHECKED_ONCE or time.time() - changed / 1e9 > SETTLED):
            self._known[identity] = digest
        return digest

    def of_folder(self, path: Path) -> str | None:
        """One checksum of all files in a folder, or of a file; None if there is neither.

        Raises:
            InputError: something in it is no file, such as a pipe, or cannot be read.
        """
        if kind_at(path) != "folder":
            return self.of(path)
        listed = [(file.relative_to(path).as_posix(), self.of(file)) for file in files_below(path)]
        return _digest(listed)

    def of_all(self, paths: Sequence[Path]) -> str | None:
        """One checksum of several files or folders; of a single one as ``of_folder``, of none None."""
        checksums = [self.of_folder(path) for path in paths]
        return _digest(checksums) if len(checksums) > 1 else next(iter(checksums), None)


def _digest(checksums: Any) -> str:
    return hashlib.sha256(json.dumps(checksums).encode()).hexdigest()


def _files(path: Path) -> list[Path]:
    """A file, or all files in a folder."""
    kind = kind_at(path)
    return files_below(path) if kind == "folder" else [path] if kind == "file" else []


def _identity(path: Path) -> tuple[Any, ...]:
    """Path and numbers that differ after every change: nobody can set st_ctime back, as one can st_mtime."""
    state = path.stat()
    return shown(path), state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino
