"""Episodes, readouts and trained networks as Kedro datasets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kedro_datasets._typing import JSONPreview

from cvl_pipeline.io.artifacts import codec, load_artifact, save_artifact
from cvl_pipeline.io.storage import read_tensors
from cvl_pipeline.kedro.datasets.base import FileDataset


class ArtifactDataset(FileDataset):
    """One of this package's objects in a self-describing safetensors file (see ``storage``)."""

    def __init__(self, *, filepath: str, kind: str, **others: Any) -> None:
        """Describe the file.

        Args:
            filepath: path or URL ending in ``.safetensors``.
            kind: one of ``cvl_pipeline.io.artifacts.KINDS``.
            others: of every FileDataset.

        Raises:
            InputError: the kind is unknown, the entry is versioned, or a local file has credentials.
        """
        codec(kind)  # raises if the kind is unknown
        super().__init__(filepath=filepath, **others)
        self._kind = kind

    def _read(self, path: Path) -> Any:
        return load_artifact(path, self._kind)

    def _write(self, data: Any) -> None:
        save_artifact(self.location.path, self._kind, data)

    def preview(self) -> JSONPreview:
        """Names, types and shapes of the tensors and the configuration, for kedro-viz."""
        self.location.fetch()
        _, tensors, config = read_tensors(self.location.path, self._kind)
        shapes = {name: f"{tensor.dtype} {list(tensor.shape)}" for name, tensor in tensors.items()}
        return JSONPreview(
            json.dumps(
                {"description": self.description, "kind": self._kind, "tensors": shapes, "config": config}
            )
        )

    def _describe(self) -> dict[str, Any]:
        return {**super()._describe(), "kind": self._kind}
