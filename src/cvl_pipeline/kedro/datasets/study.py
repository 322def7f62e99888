"""Where a study lives, as the catalog says, and its pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

from kedro.io import AbstractDataset, DatasetError
from kedro_datasets.plotly import json_dataset

from cvl_pipeline.errors import InputError
from cvl_pipeline.io.storage import shown
from cvl_pipeline.kedro.datasets.atomic import Atomic
from cvl_pipeline.tuning.storage import StudyLocation


class StudyDataset(AbstractDataset[None, StudyLocation]):
    """Loads as the place of a study: a journal file, or the database that the credentials name.

    It holds no study itself, so that nothing which saves an artifact can overwrite one that is running.
    """

    def __init__(
        self,
        *,
        filepath: str,
        credentials: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        """Describe the place.

        Args:
            filepath: of the journal, which is used unless credentials are given.
            credentials: ``url`` of a database that SQLAlchemy knows, and nothing else.
            metadata: Kedro-viz's.

        Raises:
            InputError: credentials that are not just a url.
        """
        if credentials is not None and (
            set(credentials) != {"url"} or not isinstance(credentials["url"], str)
        ):
            raise InputError(
                "tuning.storage: its entry in credentials.yml must be one field, url, such as "
                "postgresql+psycopg://user:password@host/database"
            )
        self._location = StudyLocation(Path(filepath), credentials["url"] if credentials else None)
        self.metadata = metadata

    def load(self) -> StudyLocation:
        """The place."""
        return self._location

    def save(self, data: None) -> NoReturn:
        """Refused: a study is not an output."""
        raise DatasetError(f"{self._location} is a study and cannot be saved to")

    def _exists(self) -> bool:
        return True

    def _describe(self) -> dict[str, Any]:
        return {"filepath": shown(self._location.journal)}


class PlotlyDataset(Atomic, json_dataset.JSONDataset):
    """An interactive figure as JSON."""

    def save(self, data: Any) -> None:
        """Write a figure."""
        self._write_atomically(super().save, data)

    def load(self) -> Any:
        """Read a figure."""
        return self._read(super().load)
