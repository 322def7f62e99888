"""A folder that a node keeps its unfinished work in."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

from kedro.io import AbstractDataset, DatasetError

from cvl_pipeline.io.storage import shown


class FolderDataset(AbstractDataset[None, Path]):
    """Loads as the path of a folder; the catalog decides where that is, the node what is in it."""

    def __init__(self, *, filepath: str, metadata: dict[str, Any] | None = None) -> None:
        """Describe the folder; it need not exist."""
        self._folder = Path(filepath)
        self.metadata = metadata

    def load(self) -> Path:
        """The path."""
        return self._folder

    def save(self, data: None) -> NoReturn:
        """Refused: a folder is not an output."""
        raise DatasetError(f"{shown(self._folder)} is a folder for unfinished work and cannot be saved to")

    def _exists(self) -> bool:
        return True

    def _describe(self) -> dict[str, Any]:
        return {"filepath": shown(self._folder)}
