"""A dataset of one file: it may be remote, and a run may be about to recreate it."""

from __future__ import annotations

from html import escape
from pathlib import Path, PurePosixPath
from typing import Any

from kedro.io import AbstractDataset, Version

from cvl_pipeline.errors import InputError
from cvl_pipeline.io.location import CACHE, Location, is_url
from cvl_pipeline.io.storage import check_file, shown, unreadable, write_atomically


class FileDataset(AbstractDataset[Any, Any]):
    """One file, written atomically and checked on load. A kind of file is a subclass."""

    outdated = False
    """Whether the file counts as missing, because a run is about to recreate it."""

    def __init__(
        self,
        *,
        filepath: str,
        credentials: dict[str, Any] | None = None,
        cache: str = str(CACHE),
        metadata: dict[str, Any] | None = None,
        version: Version | None = None,
    ) -> None:
        """Describe the file.

        Args:
            filepath: a path, or a URL that fsspec supports.
            credentials: options of the URL's file system, such as ``key`` and ``secret``.
            cache: local folder for copies of remote files.
            metadata: for Kedro-Viz.
            version: what Kedro makes of ``versioned: true``, which is refused: a record describes one file.

        Raises:
            InputError: the entry is versioned, or a local file has credentials.
        """
        if version is not None:
            raise InputError(
                f"{filepath}: files of this type have no versions; remove 'versioned' from the entry, and "
                "keep several results by seed or data.root"
            )
        if credentials and not is_url(filepath):
            raise InputError(f"{filepath} is on this machine and needs no credentials")
        self.location = Location(filepath, credentials or {}, Path(cache))
        self.metadata = metadata
        self._filepath = PurePosixPath(self.location.path)  # Kedro-Viz reads it

    def load(self) -> Any:
        """Read the file, or an up-to-date copy of it."""
        self.location.fetch()
        path = self.location.path
        check_file(path, "delete it and rerun its stage")
        try:
            return self._checked()
        except InputError as error:
            if not self.location.is_remote:
                raise
            first = error
        # The copy or the remote file is damaged.
        self.location.fetch(force=True)
        try:
            return self._checked()
        except InputError as error:
            # The message advises to delete the copy, which would not help.
            raise InputError(str(error).replace(shown(path), self.location.filepath)) from first

    def save(self, data: Any) -> None:
        """Write the file atomically."""
        self._write(data)
        self.location.publish()

    def _checked(self) -> Any:
        path = self.location.path
        try:
            return self._read(path)
        except InputError:
            raise
        except FileNotFoundError:
            raise InputError(f"{shown(path)} does not exist; run the stage that makes it") from None
        except OSError as error:
            raise unreadable(path, error) from error
        except ValueError as error:
            raise InputError(f"{shown(path)} is damaged ({error}); delete it and rerun its stage") from error

    def _read(self, path: Path) -> Any:
        """Read the local file; a ValueError counts as damage."""
        return path.read_bytes()

    def _write(self, data: Any) -> None:
        """Write the local file atomically."""
        content = self._content(data)
        write_atomically(self.location.path, lambda partial: partial.write_bytes(content))

    def _content(self, data: Any) -> bytes:
        """Return what the file contains."""
        content: bytes = data
        return content

    def _exists(self) -> bool:
        return not self.outdated and self.location.exists()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self.location)}

    @property
    def description(self) -> str:
        """The catalog entry's description, which kedro-viz does not show by itself."""
        return str((self.metadata or {}).get("description", ""))

    def html(self, content: str) -> str:
        """Return HTML with the description above some content, for previews."""
        return (
            "<div style='font: 14px sans-serif; color: #333; background: #fff; padding: 8px'>"
            f"<p style='max-width: 320px'>{escape(self.description)}</p>{content}</div>"
        )
