"""Episodes, readouts and trained networks as Kedro datasets."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any

from kedro.io import AbstractVersionedDataset, Version
from kedro_datasets._typing import JSONPreview

from cvl_pipeline.artifacts import codec, load_artifact, save_artifact
from cvl_pipeline.storage import read_tensors, shown


class ArtifactDataset(AbstractVersionedDataset[Any, Any]):
    """One of this package's objects in a self-describing safetensors file (see ``storage``)."""

    outdated = False
    """Whether the file counts as not there: a run is about to make it anew."""

    def __init__(
        self,
        *,
        filepath: str,
        kind: str,
        version: Version | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        """Describe the file.

        Args:
            filepath: local path ending in ``.safetensors``.
            kind: one of ``cvl_pipeline.artifacts.KINDS``.
            version: Kedro's, if the catalog entry is versioned.
            metadata: Kedro-viz's.

        Raises:
            InputError: unknown kind.
        """
        codec(kind)  # raises on an unknown one
        super().__init__(filepath=PurePosixPath(filepath), version=version)
        self._kind = kind
        self.metadata = metadata

    def load(self) -> Any:
        """Read and check the object."""
        return load_artifact(Path(self._get_load_path()), self._kind)

    def save(self, data: Any) -> None:
        """Write the object atomically."""
        save_artifact(Path(self._get_save_path()), self._kind, data)

    def preview(self) -> JSONPreview:
        """Names, types and shapes of the tensors and the configuration, for kedro-viz."""
        _, tensors, config = read_tensors(Path(self._get_load_path()), self._kind)
        shapes = {name: f"{tensor.dtype} {list(tensor.shape)}" for name, tensor in tensors.items()}
        return JSONPreview(json.dumps({"kind": self._kind, "tensors": shapes, "config": config}))

    def _exists(self) -> bool:
        return not self.outdated and Path(self._get_load_path()).exists()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": shown(self._filepath), "kind": self._kind, "version": self._version}
