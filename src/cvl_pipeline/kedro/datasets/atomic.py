"""Tables, metrics and pictures, with atomic writes and an error that names the fault of an unreadable file."""

from __future__ import annotations

import base64
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from html import escape
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from kedro.io import AbstractVersionedDataset, DatasetError, Version
from kedro_datasets._typing import HTMLPreview, JSONPreview
from kedro_datasets.json import json_dataset
from kedro_datasets.pandas import parquet_dataset

from cvl_pipeline.deploy.folder import fault_in, write_folder
from cvl_pipeline.errors import InputError
from cvl_pipeline.io.checked import read_table, write_table
from cvl_pipeline.io.location import CACHE
from cvl_pipeline.io.storage import shown, write_atomically
from cvl_pipeline.kedro.datasets.located import Located
from cvl_pipeline.reports.html import plotly_script, preview, video_address, with_script


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


class FileDataset(Located, AbstractVersionedDataset[Any, Any], ABC):
    """A file of its own kind, written atomically."""

    def __init__(
        self,
        *,
        filepath: str,
        version: Version | None = None,
        credentials: dict[str, Any] | None = None,
        cache: str = str(CACHE),
        metadata: dict[str, Any] | None = None,
    ) -> None:
        """Describe the file.

        Args:
            filepath: path or URL.
            version: version from Kedro, if the catalog entry is versioned.
            credentials: options of the URL's file system.
            cache: local folder for copies of remote files.
            metadata: for Kedro-Viz.

        Raises:
            InputError: a URL has a version.
        """
        super().__init__(filepath=filepath, version=version, credentials=credentials, cache=cache)
        self._filepath = PurePosixPath(self.location.path)
        self.metadata = metadata

    @abstractmethod
    def _write(self, data: Any, path: Path) -> None:
        """Write the data to a new file."""

    def save(self, data: Any) -> None:
        """Write the file atomically."""
        write_atomically(Path(self._get_save_path()), lambda partial: self._write(data, partial))
        self.location.publish()

    def load(self) -> Any:
        """Read the content of the file, as bytes."""
        return self._fetched(lambda: Path(self._get_load_path()).read_bytes())

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self.location), "version": self._version}


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
            InputError: a URL has a version.
        """
        super().__init__(filepath=filepath, **others)
        self._save_args = {**self.DEFAULT_SAVE_ARGS, **(save_args or {})}

    def _write(self, data: Any, path: Path) -> None:
        data.savefig(path, **self._save_args)

    def load(self) -> Any:
        """Raise DatasetError: no node reads a picture."""
        raise DatasetError(f"{self.location} is a picture, which cannot be read as a figure")

    def preview(self) -> HTMLPreview:
        """Description and picture, for kedro-viz."""
        self.location.fetch()
        picture = base64.b64encode(Path(self._get_load_path()).read_bytes()).decode()
        name = escape(Path(self._get_load_path()).stem)
        return HTMLPreview(
            self.html(f"<img alt='{name}' style='max-width: 100%' src='data:image/png;base64,{picture}'>")
        )

    def _describe(self) -> dict[str, Any]:
        return {**super()._describe(), "save_args": self._save_args}


class VideoDataset(FileDataset):
    """A video, the bytes of an MP4 file; an empty file, if it could not be recorded."""

    def _write(self, data: Any, path: Path) -> None:
        path.write_bytes(data)

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

    def _write(self, data: Any, path: Path) -> None:
        path.write_bytes(data)

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
            InputError: a URL has a version.
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

    def _write(self, data: Any, path: Path) -> None:
        folder = Path(self._get_save_path()).parent
        address = Path(os.path.relpath(self._script.path, folder)).as_posix()
        path.write_text(with_script(data, quote(address)), "utf-8")

    def load(self) -> Any:
        """Read the page."""
        return super().load().decode()

    def preview(self) -> HTMLPreview:
        """Description, tables and videos, for kedro-viz, which runs no scripts."""
        return HTMLPreview(self.html(preview(self.load())))
