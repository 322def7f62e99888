"""This package's objects as files, and back: episodes, readouts and trained networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import Tensor

from cvl_pipeline.errors import InputError, look_up
from cvl_pipeline.networks.actor import ActorShape, GaussianActor
from cvl_pipeline.networks.critic import ContrastiveCritic, CriticShape
from cvl_pipeline.readout.exact import Readout
from cvl_pipeline.storage import read_tensors, shown, write_tensors
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


def codec(kind: str) -> tuple[Pack, Unpack]:
    """How that kind is packed and unpacked; raises InputError, listing the known ones, on another."""
    return look_up("kind of artifact", kind, KINDS)


def save_artifact(path: Path | str, kind: str, artifact: Any) -> None:
    """Write an object atomically to a ``.safetensors`` file (see ``storage``).

    Args:
        path: the file; folders are made.
        kind: one of KINDS.
        artifact: an object of that kind.

    Raises:
        InputError: unknown kind.
    """
    pack, _ = codec(kind)
    write_tensors(Path(path), kind, *pack(artifact))


def load_artifact(path: Path | str, kind: str | None = None) -> Any:
    """Read an object and check that its file is whole.

    Args:
        path: the file.
        kind: what it must be; None takes what the file says it is.

    Raises:
        InputError: missing, damaged, foreign, or of another or an unknown kind.
    """
    found, tensors, config = read_tensors(Path(path), kind)
    _, unpack = codec(found)
    try:
        return unpack(tensors, config)
    except (KeyError, RuntimeError, TypeError) as error:
        raise InputError(
            f"{shown(Path(path))}: its content does not make a {found} ({type(error).__name__}); "
            "delete it and rerun its stage"
        ) from error
