"""Tensors, readouts and trained networks as Kedro datasets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path, PurePosixPath
from typing import Any

from kedro.io import AbstractVersionedDataset, Version
from kedro_datasets._typing import JSONPreview
from torch import Tensor

from cvl_pipeline.errors import unknown_name
from cvl_pipeline.networks.actor import ActorShape, GaussianActor
from cvl_pipeline.networks.critic import ContrastiveCritic, CriticShape
from cvl_pipeline.readout.exact import Readout
from cvl_pipeline.storage import check_header, read_tensors, shown, write_tensors
from cvl_pipeline.trajectories.container import Normalisation, Rewards, Split, Transitions

Pack = Callable[[Any], tuple[dict[str, Tensor], dict[str, Any]]]
Unpack = Callable[[dict[str, Tensor], dict[str, Any]], Any]


def _pack_fields(data: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    return {field.name: getattr(data, field.name) for field in fields(data)}, {}


def _pack_module(module: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    return dict(module.state_dict()), module.description()


def _unpack_fields(cls: type[Any]) -> Unpack:
    return lambda tensors, _: cls(**tensors)


def _unpack_module(cls: type[Any], shape: type[Any]) -> Unpack:
    def unpack(tensors: dict[str, Tensor], config: dict[str, Any]) -> Any:
        module = cls(shape(**config | {"hidden": tuple(config["hidden"])}))
        module.load_state_dict(tensors)
        return module.eval()

    return unpack


KINDS: dict[str, tuple[Pack, Unpack]] = {
    "transitions": (_pack_fields, _unpack_fields(Transitions)),
    "rewards": (_pack_fields, _unpack_fields(Rewards)),
    "split": (_pack_fields, _unpack_fields(Split)),
    "normalisation": (_pack_fields, _unpack_fields(Normalisation)),
    "critic": (_pack_module, _unpack_module(ContrastiveCritic, CriticShape)),
    "readout": (_pack_fields, _unpack_fields(Readout)),
    "actor": (_pack_module, _unpack_module(GaussianActor, ActorShape)),
}
"""How each kind of artifact becomes tensors and plain values, and back."""


class ArtifactDataset(AbstractVersionedDataset[Any, Any]):
    """One of this package's objects in a self-describing safetensors file (see ``storage``)."""

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
            kind: one of KINDS.
            version: Kedro's, if the catalog entry is versioned.
            metadata: Kedro-viz's.
        """
        if kind not in KINDS:
            raise unknown_name("kind of artifact", kind, sorted(KINDS))
        super().__init__(filepath=PurePosixPath(filepath), version=version)
        self._kind = kind
        self.metadata = metadata

    def load(self) -> Any:
        """Read and check the object."""
        _, unpack = KINDS[self._kind]
        return unpack(*read_tensors(Path(self._get_load_path()), self._kind))

    def save(self, data: Any) -> None:
        """Write the object atomically."""
        pack, _ = KINDS[self._kind]
        write_tensors(Path(self._get_save_path()), self._kind, *pack(data))

    def check(self) -> None:
        """Raise InputError unless the file is there, whole and of the right kind; cheap."""
        check_header(Path(self._get_load_path()), self._kind)

    def preview(self) -> JSONPreview:
        """Names, types and shapes of the tensors and the configuration, for kedro-viz."""
        import json

        tensors, config = read_tensors(Path(self._get_load_path()), self._kind)
        shapes = {name: f"{tensor.dtype} {list(tensor.shape)}" for name, tensor in tensors.items()}
        return JSONPreview(json.dumps({"kind": self._kind, "tensors": shapes, "config": config}))

    def _exists(self) -> bool:
        return Path(self._get_load_path()).exists()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": shown(self._filepath), "kind": self._kind, "version": self._version}
