"""What all datasets of files have in common: they may lie elsewhere, and be about to be made anew."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from cvl_pipeline.errors import InputError, causes
from cvl_pipeline.io.location import CACHE, Location, is_url
from cvl_pipeline.io.storage import shown


class Located:
    """Mixin over a dataset of one file, which deals with the file on this machine alone."""

    outdated = False
    """Whether the file counts as not there: a run is about to make it anew."""

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
            filepath: a path, or a URL that fsspec knows.
            credentials: options of the URL's file system, such as ``key`` and ``secret``.
            cache: folder of this machine that copies of what lies at URLs are kept in.
            others: of the dataset.

        Raises:
            InputError: a versioned entry at a URL; credentials without one.
        """
        if is_url(filepath) and others.get("version"):
            raise InputError(f"{filepath}: what lies at a URL cannot be versioned")
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

    def _fetched(self, load: Callable[[], Any]) -> Any:
        """What is loaded from the file, or from a copy of it that is up to date."""
        self.location.fetch()
        try:
            return load()
        except Exception as error:
            told = any(isinstance(cause, InputError) for cause in causes(error))
            if not (self.location.is_remote and told):
                raise
        # The copy is damaged, or what it is one of.
        self.location.fetch(anew=True)
        try:
            return load()
        except InputError as error:
            # Deleting the copy, as the message has it, would be of no use.
            raise InputError(str(error).replace(shown(self.location.path), self.location.filepath)) from error
