"""Tables, metrics, pictures, pages and exported policies."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from kedro.io import DatasetError
from kedro_datasets._typing import HTMLPreview, JSONPreview

from cvl_pipeline.deploy.folder import fault_in, write_folder
from cvl_pipeline.io.checked import read_table, write_table
from cvl_pipeline.io.storage import write_atomically
from cvl_pipeline.kedro.datasets.base import FileDataset
from cvl_pipeline.reports.html import plotly_script, preview, video_address, with_script


class ParquetDataset(FileDataset):
    """A table as Parquet with its own checksum (see ``checked``)."""

    def _read(self, path: Path) -> Any:
        return read_table(path)

    def _write(self, data: Any) -> None:
        write_table(self.location.path, data)

    def preview(self, nrows: int = 20) -> HTMLPreview:
        """Description and first rows, for kedro-viz."""
        table = self.load()
        rows = table.head(nrows).to_html(border=0, float_format="{:.4g}".format)
        return HTMLPreview(self.html(f"{rows}<p>{len(table)} rows</p>"))


class JSONDataset(FileDataset):
    """Metrics and configurations as indented JSON."""

    def _read(self, path: Path) -> Any:
        return json.loads(path.read_bytes())

    def _content(self, data: Any) -> bytes:
        return json.dumps(data, indent=2).encode()

    def preview(self) -> JSONPreview:
        """Description and content, for kedro-viz."""
        content = self.load()
        if isinstance(content, dict):
            content = {"description": self.description, **content}
        return JSONPreview(json.dumps(content, indent=2))


class FigureDataset(FileDataset):
    """A Matplotlib figure as PNG.

    Not Kedro's own dataset, which imports pyplot: every command that looks at the catalog would wait for it.
    """

    DEFAULT_SAVE_ARGS: dict[str, Any] = {"format": "png", "dpi": 120, "bbox_inches": "tight"}  # noqa: RUF012

    def __init__(self, *, filepath: str, save_args: dict[str, Any] | None = None, **others: Any) -> None:
        """Describe the file.

        Args:
            filepath: path or URL.
            save_args: arguments of ``Figure.savefig``, over DEFAULT_SAVE_ARGS.
            others: of every FileDataset.

        Raises:
            InputError: the entry is versioned, or a local file has credentials.
        """
        super().__init__(filepath=filepath, **others)
        self._save_args = {**self.DEFAULT_SAVE_ARGS, **(save_args or {})}

    def _content(self, data: Any) -> bytes:
        picture = io.BytesIO()
        data.savefig(picture, **self._save_args)
        return picture.getvalue()

    def load(self) -> Any:
        """Raise DatasetError: no node reads a picture."""
        raise DatasetError(f"{self.location} is a picture, which cannot be read as a figure")

    def preview(self) -> HTMLPreview:
        """Description and picture, for kedro-viz."""
        self.location.fetch()
        picture = base64.b64encode(self.location.path.read_bytes()).decode()
        name = escape(self.location.path.stem)
        return HTMLPreview(
            self.html(f"<img alt='{name}' style='max-width: 100%' src='data:image/png;base64,{picture}'>")
        )

    def _describe(self) -> dict[str, Any]:
        return {**super()._describe(), "save_args": self._save_args}


class VideoDataset(FileDataset):
    """A video, the bytes of an MP4 file; an empty file, if it could not be recorded."""

    def preview(self) -> HTMLPreview:
        """Description and video, for kedro-viz."""
        content = self.load()
        video = f"<video controls loop muted style='max-width: 100%' src='{video_address(content)}'></video>"
        return HTMLPreview(self.html(video if content else "<p>It could not be recorded.</p>"))


class ExportDataset(FileDataset):
    """The folder of an exported policy, whose contract is the dataset's file (see ``deploy.folder``)."""

    def save(self, data: Any) -> None:
        """Write the files, the contract last."""
        write_folder(self.location, data)

    def _exists(self) -> bool:
        return super()._exists() and self.fault() is None

    def fault(self) -> str | None:
        """What the folder lacks of what the contract names."""
        return fault_in(self.location)

    def preview(self) -> JSONPreview:
        """Description and contract, for kedro-viz."""
        return JSONPreview(json.dumps({"description": self.description, **json.loads(self.load())}, indent=2))


class PageDataset(FileDataset):
    """A static HTML page, and the script that all pages share."""

    def __init__(self, *, filepath: str, script: Mapping[str, str], **others: Any) -> None:
        """Describe the file.

        Args:
            filepath: path or URL of the page.
            script: ``filepath`` of plotly's script. A new page writes it unless it is there.
            others: of every FileDataset.

        Raises:
            InputError: the entry is versioned, or a local file has credentials.
        """
        super().__init__(filepath=filepath, **others)
        self._script = replace(self.location, filepath=script["filepath"])

    def save(self, data: Any) -> None:
        """Write the page and the script, atomically."""
        content = plotly_script()
        self._script.fetch()
        # Another version of plotly may have written it.
        if not self._script.path.exists() or self._script.path.read_bytes() != content:
            write_atomically(self._script.path, lambda partial: partial.write_bytes(content))
            self._script.publish()
        super().save(data)

    def _exists(self) -> bool:
        return super()._exists() and self.fault() is None

    def fault(self) -> str | None:
        """Whether the script is gone, without which the page has no charts."""
        return None if self._script.exists() else f"{self._script.path.name} is missing"

    def _content(self, data: Any) -> bytes:
        address = Path(os.path.relpath(self._script.path, self.location.path.parent)).as_posix()
        return with_script(data, quote(address)).encode()

    def _read(self, path: Path) -> Any:
        return path.read_text("utf-8")

    def preview(self) -> HTMLPreview:
        """Description, tables and videos, for kedro-viz, which runs no scripts."""
        return HTMLPreview(self.html(preview(self.load())))
