"""Kedro's own datasets, with atomic writes and an error that names the fault of an unreadable file."""

from __future__ import annotations

import base64
import json
from html import escape
from pathlib import Path, PurePosixPath
from typing import Any

from kedro.io import DatasetError
from kedro_datasets._typing import HTMLPreview, JSONPreview
from kedro_datasets.json import json_dataset
from kedro_datasets.matplotlib import matplotlib_dataset
from kedro_datasets.pandas import parquet_dataset

from cvl_pipeline.errors import InputError
from cvl_pipeline.io.checked import read_table, write_table
from cvl_pipeline.io.storage import shown, write_atomically
from cvl_pipeline.kedro.datasets.located import Located


class Atomic(Located):
    """Mixin for a stock file dataset: save next to the target, then rename."""

    _partial: PurePosixPath | None = None

    def _get_save_path(self) -> PurePosixPath:
        return self._partial or super()._get_save_path()  # type: ignore[misc]

    def _describe(self) -> dict[str, Any]:
        description: dict[str, Any] = super()._describe()  # type: ignore[misc]
        return {**description, "filepath": str(self.location)}

    def save(self, data: Any) -> None:
        """Write the file."""
        save = super().save  # type: ignore[misc]

        def write(partial: Path) -> None:
            self._partial = PurePosixPath(partial)
            try:
                save(data)
            finally:
                self._partial = None

        write_atomically(Path(self._get_save_path()), write)
        self.location.publish()

    def _read(self, load: Any) -> Any:
        return self._fetched(lambda: self._read_local(load))

    def _read_local(self, load: Any) -> Any:
        path = self._get_load_path()  # type: ignore[attr-defined]
        try:
            return load()
        except DatasetError as error:
            if not Path(path).exists():
                raise InputError(f"{shown(path)} does not exist; run the stage that makes it") from error
            raise InputError(
                f"{shown(path)} is damaged ({error.__cause__}); delete it and rerun its stage"
            ) from error


class ParquetDataset(Atomic, parquet_dataset.ParquetDataset):
    """A table as Parquet with its own checksum (see ``checked``)."""

    def save(self, data: Any) -> None:
        """Write a DataFrame."""
        write_table(Path(self._get_save_path()), data)
        self.location.publish()

    def load(self) -> Any:
        """Read a DataFrame."""
        return self._fetched(lambda: read_table(Path(self._get_load_path())))

    def preview(self, nrows: int = 20) -> HTMLPreview:  # type: ignore[override]
        """Description and first rows, for kedro-viz."""
        table = self.load()
        rows = table.head(nrows).to_html(border=0, float_format="{:.4g}".format)
        return HTMLPreview(self.html(f"{rows}<p>{len(table)} rows</p>"))


class JSONDataset(Atomic, json_dataset.JSONDataset):
    """Metrics and configurations as indented JSON."""

    DEFAULT_SAVE_ARGS: dict[str, Any] = {"indent": 2}  # noqa: RUF012

    def load(self) -> Any:
        """Read plain values."""
        return self._read(super().load)

    def preview(self) -> JSONPreview:
        """Description and content, for kedro-viz."""
        content = self.load()
        if isinstance(content, dict):
            content = {"description": self.description, **content}
        return JSONPreview(json.dumps(content, indent=2))


class FigureDataset(Atomic, matplotlib_dataset.MatplotlibDataset):
    """A Matplotlib figure as PNG."""

    DEFAULT_SAVE_ARGS: dict[str, Any] = {"format": "png", "dpi": 120, "bbox_inches": "tight"}  # noqa: RUF012

    def preview(self) -> HTMLPreview:  # type: ignore[override]
        """Description and picture, for kedro-viz."""
        self.location.fetch()
        picture = base64.b64encode(Path(self._get_load_path()).read_bytes()).decode()
        name = escape(Path(self._get_load_path()).stem)
        return HTMLPreview(
            self.html(f"<img alt='{name}' style='max-width: 100%' src='data:image/png;base64,{picture}'>")
        )
