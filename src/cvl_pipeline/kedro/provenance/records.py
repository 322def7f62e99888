"""The record beside each artifact: what made it, out of what, and the checksum of the bytes that came out."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from cvl_pipeline.io.storage import CHECKED_ONCE, SETTLED, shown, write_atomically

FORMAT = 1


@dataclass(frozen=True)
class Recipe:
    """All that an artifact follows from.

    Attributes:
        node: that makes it.
        parameters: every field that counts, by its full name.
        sources: content of what lies outside the pipeline, by path or module.
        code: hashes of the node's function and of the modules behind it.
        packages: versions.
        inputs: fingerprints of the artifacts that it is made from.
    """

    node: str
    parameters: dict[str, Any]
    sources: dict[str, str]
    code: dict[str, str]
    packages: dict[str, str]
    inputs: dict[str, str]

    @property
    def fingerprint(self) -> str:
        """Of the whole recipe, and so of the recipes of the inputs, and so on."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Change:
    """One part of a recipe that is not what it was; None where it is, or was, not there."""

    what: str
    old: Any
    new: Any

    def __str__(self) -> str:
        if None in (self.old, self.new):
            return f"{self.what} {'added' if self.old is None else 'removed'}"
        if self.what.startswith(("code", "source")):  # their hashes tell a person nothing
            return f"{self.what} changed"
        return f"{self.what}: {self.old} -> {self.new}"


def changes(old: Recipe, new: Recipe) -> list[Change]:
    """What differs between two recipes, apart from the inputs."""
    found = []
    kinds = {"parameters": "parameter", "sources": "source", "code": "code of", "packages": "package"}
    for part, kind in kinds.items():
        before, after = getattr(old, part), getattr(new, part)
        for name in sorted(before.keys() | after.keys()):
            # As text: null is a value of a parameter, and no part at all is something else.
            values = [json.dumps(side[name]).strip('"') if name in side else None for side in (before, after)]
            if values[0] != values[1]:
                found.append(Change(f"{kind} {name}", *values))
    return found


@dataclass(frozen=True)
class Record:
    """What is written beside an artifact.

    Attributes:
        recipe: what made it.
        contents: checksums of the inputs that it was made from.
        outputs: checksums of all that the node made in the same go, this artifact among them.
        seen: of large files, what tells that they have not changed since their checksum was taken.
    """

    recipe: Recipe
    contents: dict[str, str]
    outputs: dict[str, str]
    seen: list[list[Any]]


def record_path(artifact: Path) -> Path:
    """Where the record of an artifact is."""
    return artifact.with_name(f".{artifact.name}.made.json")


def write_record(artifact: Path, record: Record) -> None:
    """Write it atomically. The same making is the same bytes: it tells neither time nor machine."""
    values = {"format": FORMAT, **asdict(record)}
    text = json.dumps({**values, "checksum": _checksum(values)}, indent=1, sort_keys=True)
    write_atomically(record_path(artifact), lambda partial: partial.write_text(text))


def read_record(artifact: Path) -> Record | None:
    """The record, or None if there is none, or none that this program reads, or one that is damaged."""
    try:
        values = json.loads(record_path(artifact).read_text())
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
    """SHA-256 of files. One that has not changed is not read again; of a large one, the record knows it."""

    def __init__(self) -> None:
        """Know nothing."""
        self._known: dict[tuple[Any, ...], str] = {}

    def learn(self, seen: Iterable[Iterable[Any]]) -> None:
        """Take over what a record knows of large files."""
        for *identity, checksum in seen:
            self._known[tuple(identity)] = checksum

    def known(self, identity: Iterable[Any]) -> str | None:
        """The checksum of what is identified so."""
        return self._known.get(tuple(identity))

    def seen(self, paths: Iterable[Path]) -> list[list[Any]]:
        """What a record should know of those files, in folders too, that are large."""
        identities = [_identity(file) for path in paths for file in _files(path)]
        return [
            [*identity, self._known[identity]]
            for identity in identities
            if identity in self._known and identity[1] >= CHECKED_ONCE
        ]

    def of(self, path: Path) -> str | None:
        """The checksum; None if there is no such file."""
        try:
            identity = _identity(path)
            if identity in self._known:
                return self._known[identity]
            with path.open("rb") as file:
                digest = hashlib.sha256()
                while block := file.read(1 << 20):
                    digest.update(block)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return None
        # The clock of a file system may be too coarse to tell that a new file has changed; a large one takes
        # longer to write than it ticks.
        if identity[1] >= CHECKED_ONCE or time.time() - identity[2] / 1e9 > SETTLED:
            self._known[identity] = digest.hexdigest()
        return digest.hexdigest()

    def of_folder(self, path: Path) -> str | None:
        """One checksum of all files below a folder, or of a file; None if there is neither."""
        if not path.is_dir():
            return self.of(path)
        listed = [(file.relative_to(path).as_posix(), self.of(file)) for file in _files(path)]
        return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def _files(path: Path) -> list[Path]:
    """A file, or all below a folder."""
    return sorted(file for file in (path, *path.rglob("*")) if file.is_file())


def _identity(path: Path) -> tuple[Any, ...]:
    state = path.stat()
    return shown(path), state.st_size, state.st_mtime_ns, state.st_ino
