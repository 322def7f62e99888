"""Mixin of all file datasets: the file may be remote, and a run may be about to recreate it."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

from cvl_pipeline.errors import InputError, causes
from cvl_pipeline.io.location import CACHE, Location, is_url
from cvl_pipeline.io.storage import check_file, shown


class Located:
    """Mixin for a dataset of one file; the dataset itself uses only the local file."""

    outdated = False
    """Whether the file counts as missing, because a run is about to recreate it."""

    def __init__(
        self,
        *,
        filepath: str,
        credentials: dict[str, Any] | None = None,
        cache: str = str(CACHE),
        **others: Any,
    ) -> None:
        """Describe the file.

        Args:
            filepath: a path, or a URL that fsspec supports.
            credentials: options of the URL's file system, such as ``key`` and ``secret``.
            cache: local folder for copies of remote files.
            others: further arguments of the dataset.

        Raises:
            InputError: a versioned entry has a URL, or a local file has credentials.
        """
        if is_url(filepath) and others.get("version"):
            raise InputError(f"{filepath}: a file at a URL cannot be versioned")
        if credentials and not is_url(filepath):
            raise InputError(f"{filepath} is on this machine and needs no credentials")
        self.location = Location(filepath, credentials or {}, Path(cache))
        super().__init__(filepath=str(self.location.path), **others)  # type: ignore[call-arg]

    def _exists(self) -> bool:
        if self.outdated:
            return False
        if self.location.is_remote:
            return self.location.exists()
        return Path(self._get_load_path()).exists()  # type: ignore[attr-defined]

    @property
    def description(self) -> str:
        """The catalog entry's description, which kedro-viz does not show by itself."""
        return str((getattr(self, "metadata", None) or {}).get("description", ""))

    def html(self, content: str) -> str:
        """Return HTML with the description above some content, for previews."""
        return (
            "<div style='font: 14px sans-serif; color: #333; background: #fff; padding: 8px'>"
            f"<p style='max-width: 320px'>{escape(self.description)}</p>{content}</div>"
        )

    def _fetched(self, load: Callable[[], Any]) -> Any:
        """Load the file, or an up-to-date copy of it."""
        self.location.fetch()
        check_file(Path(self._get_load_path()), "delete it and rerun its stage")  # type: ignore[attr-defined]
        try:
            return load()
        except Exception as error:
            is_input_error = any(isinstance(cause, InputError) for cause in causes(error))
            if not (self.location.is_remote and is_input_error):
                raise
        # The copy or the remote file is damaged.
        self.location.fetch(force=True)
        try:
            return load()
        except InputError as error:
            # The message advises to delete the copy, which would not help.
            raise InputError(str(error).replace(shown(self.location.path), self.location.filepath)) from error
