"""Episodes, readouts and trained networks as Kedro datasets."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any

from kedro.io import AbstractVersionedDataset, Version
from kedro_datasets._typing import JSONPreview

from cvl_pipeline.io.artifacts import codec, load_artifact, save_artifact
from cvl_pipeline.io.location import CACHE
from cvl_pipeline.io.storage import read_tensors
from cvl_pipeline.kedro.datasets.located import Located


class ArtifactDataset(Located, AbstractVersionedDataset[Any, Any]):
    """One of this package's objects in a self-describing safetensors file (see ``storage``)."""

    def __init__(
        self,
        *,
        filepath: str,
        kind: str,
        version: Version | None = None,
        credentials: dict[str, Any] | None = None,
        cache: str = str(CACHE),
        metadata: dict[str, Any] | None = None,
    ) -> None:
        """Describe the file.

        Args:
            filepath: path or URL ending in ``.safetensors``.
            kind: one of ``cvl_pipeline.io.artifacts.KINDS``.
            version: version from Kedro, if the catalog entry is versioned.
            credentials: options of the URL's file system.
            cache: local folder for copies of remote files.
            metadata: for Kedro-Viz.

        Raises:
            InputError: the kind is unknown, or a URL has a version.
        """
        codec(kind)  # raises if the kind is unknown
        super().__init__(filepath=filepath, version=version, credentials=credentials, cache=cache)
        self._filepath = PurePosixPath(self.location.path)
        self._kind = kind
        self.metadata = metadata

    def load(self) -> Any:
        """Read and verify the object."""
        return self._fetched(lambda: load_artifact(Path(self._get_load_path()), self._kind))

    def save(self, data: Any) -> None:
        """Write the object atomically."""
        save_artifact(Path(self._get_save_path()), self._kind, data)
        self.location.publish()

    def preview(self) -> JSONPreview:
        """Names, types and shapes of the tensors and the configuration, for kedro-viz."""
        self.location.fetch()
        _, tensors, config = read_tensors(Path(self._get_load_path()), self._kind)
        shapes = {name: f"{tensor.dtype} {list(tensor.shape)}" for name, tensor in tensors.items()}
        return JSONPreview(
            json.dumps(
                {"description": self.description, "kind": self._kind, "tensors": shapes, "config": config}
            )
        )

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self.location), "kind": self._kind, "version": self._version}
