"""Conversion of episodes, readouts and trained networks to files and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import Field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic_core import PydanticCustomError

from cvl_pipeline.errors import InputError, look_up, one_line
from cvl_pipeline.imports import named
from cvl_pipeline.io.storage import read_tensors, shown, write_tensors
from cvl_pipeline.paths import expanded

if TYPE_CHECKING:
    from torch import Tensor

    Pack = Callable[[Any], tuple[dict[str, Tensor], dict[str, Any]]]
    Unpack = Callable[[dict[str, Tensor], dict[str, Any]], Any]

# Named, not imported: code that reads one kind of artifact must not depend on the code of all others.
NORMALISATION, REWARDS, SPLIT, TRANSITIONS = (
    f"cvl_pipeline.episodes.container:{name}" for name in ("Normalisation", "Rewards", "Split", "Transitions")
)
LAYOUT = "cvl_pipeline.episodes.parts:Layout"
CRITIC, CRITIC_SHAPE = (
    f"cvl_pipeline.networks.critic:{name}" for name in ("ContrastiveCritic", "CriticShape")
)
ACTOR_SHAPE = "cvl_pipeline.networks.actor:ActorShape"
ACTORS = {name: f"cvl_pipeline.networks.actor:{name}" for name in ("GaussianActor", "CategoricalActor")}
READOUTS = {
    **{name: f"cvl_pipeline.readout.readouts:{name}" for name in ("ExactReadout", "FeatureReadout")},
    "RegressedReadout": "cvl_pipeline.readout.regression:RegressedReadout",
}
Q_FUNCTION = "cvl_pipeline.readout.q_function:QFunction"
BEST_OF_N = "cvl_pipeline.objectives.best_of_n:BestOfN"
GOAL_POLICY = "cvl_pipeline.networks.goal_policy:GoalPolicy"
JUDGING_CRITICS = "cvl_pipeline.judging.networks:ValueNetworks"
POLICIES = {path.partition(":")[2]: path for path in (*ACTORS.values(), BEST_OF_N, GOAL_POLICY)}

REASON = 300
"""Most characters of another library's error in a message: torch lists every name that a file lacks."""


def _pack_fields(data: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from torch import Tensor  # not above: artifacts are listed without torch

    values = {field.name: getattr(data, field.name) for field in fields(data) if _is_stored(data, field)}
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    return tensors, {name: value for name, value in values.items() if name not in tensors}


def _is_stored(data: Any, field: Field[Any]) -> bool:
    stored, value = field.metadata.get("stored"), getattr(data, field.name)
    if stored == "unless zero":
        return bool(value != 0)
    return stored != "unless none" or value is not None


def _unpack_fields(cls: str) -> Unpack:
    return lambda tensors, config: named(cls)(**tensors, **config)


def _pack_transitions(transitions: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, config = _pack_fields(transitions)
    return tensors, {name: layout.plain() for name, layout in config.items()}


def _unpack_networks(tensors: dict[str, Tensor], config: dict[str, Any]) -> Any:
    return named(JUDGING_CRITICS)(**tensors, **{**config, "sizes": tuple(config["sizes"])})


def _unpack_transitions(tensors: dict[str, Tensor], config: dict[str, Any]) -> Any:
    return named(TRANSITIONS)(**tensors, **_with_layout(config))


def _with_layout(config: dict[str, Any]) -> dict[str, Any]:
    """Make the layout of observations from the plain values of a header, if it has one."""
    parts = config.get("parts")
    return config if parts is None else {**config, "parts": named(LAYOUT).from_plain(parts)}


def _pack_module(module: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    shape = module.shape
    config = {field.name: getattr(shape, field.name) for field in fields(shape) if _is_stored(shape, field)}
    if "parts" in config:
        config["parts"] = config["parts"].plain()
    return dict(module.state_dict()), config


def _unpack_module(cls: str, shape: str) -> Unpack:
    def unpack(tensors: dict[str, Tensor], config: dict[str, Any]) -> Any:
        # JSON turns the tuples of the shapes into lists.
        values = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in _with_layout(config).items()
        }
        module = named(cls)(named(shape)(**values))
        module.load_state_dict(tensors)
        return module.eval()

    return unpack


def _pack_readout(readout: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, config = _pack_fields(readout)
    base = config.pop("base", None)  # a regressed readout has another one in it
    if base is not None:
        inner, config["base"] = _pack_readout(base)
        tensors |= {f"base.{name}": value for name, value in inner.items()}
    return tensors, {**config, "class": type(readout).__name__}


def _unpack_readout(tensors: dict[str, Tensor], config: dict[str, Any]) -> Any:
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in config.items()
    }
    if "base" in values:
        values["base"] = _unpack_readout(_part(tensors, "base"), values["base"])
        tensors = {name: value for name, value in tensors.items() if not name.startswith("base.")}
    return _unpack_fields(look_up("readout", values.pop("class"), READOUTS))(tensors, values)


def _part(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {
        key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")
    }


def _pack_policy(policy: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    name = type(policy).__name__
    if name not in POLICIES:
        raise InputError(
            f"a policy of class {name} cannot be stored: a method must return one of {', '.join(POLICIES)}"
        )
    if name in ACTORS:
        tensors, config = _pack_module(policy)
        return tensors, {**config, "class": name}
    packed = {"actor": _pack_policy(policy.actor), "critic": _pack_module(policy.critic)}
    if POLICIES[name] == BEST_OF_N:
        packed["readout"] = _pack_readout(policy.readout)
        own = {"proposals": policy.proposals}
    else:
        own = {"goals": policy.goals}
    tensors = {
        f"{part}.{name}": value for part, (values, _) in packed.items() for name, value in values.items()
    }
    config = {part: values for part, (_, values) in packed.items()}
    return {**tensors, **own}, {**config, "class": name}


def _unpack_policy(tensors: dict[str, Tensor], config: dict[str, Any]) -> Any:
    values = dict(config)
    name = values.pop("class")
    path = look_up("policy", name, POLICIES)
    if name in ACTORS:
        return _unpack_module(path, ACTOR_SHAPE)(tensors, values)

    critic = _unpack_module(CRITIC, CRITIC_SHAPE)(_part(tensors, "critic"), values["critic"])
    critic.requires_grad_(False)
    actor = _unpack_policy(_part(tensors, "actor"), values["actor"])
    if path == BEST_OF_N:
        readout = _unpack_readout(_part(tensors, "readout"), values["readout"])
        policy = named(path)(actor, named(Q_FUNCTION)(critic, readout), tensors["proposals"])
    else:
        policy = named(path)(actor, critic, tensors["goals"])
    return policy.eval()


KINDS: dict[str, tuple[Pack, Unpack]] = {
    "transitions": (_pack_transitions, _unpack_transitions),
    "rewards": (_pack_fields, _unpack_fields(REWARDS)),
    "split": (_pack_fields, _unpack_fields(SPLIT)),
    "normalisation": (_pack_fields, _unpack_fields(NORMALISATION)),
    "critic": (_pack_module, _unpack_module(CRITIC, CRITIC_SHAPE)),
    "readout": (_pack_readout, _unpack_readout),
    "policy": (_pack_policy, _unpack_policy),
    "judging_critics": (_pack_fields, _unpack_networks),
}
"""Functions that convert each kind of artifact to tensors and plain values, and back."""

CLASSES = {
    TRANSITIONS: "transitions", REWARDS: "rewards", SPLIT: "split", NORMALISATION: "normalisation",
    CRITIC: "critic", **dict.fromkeys(READOUTS.values(), "readout"),
    **dict.fromkeys(POLICIES.values(), "policy"), JUDGING_CRITICS: "judging_critics",
}  # fmt: skip
"""The kind of artifact that each class is."""


def codec(kind: str) -> tuple[Pack, Unpack]:
    """Return the functions to pack and unpack a kind; raise InputError with known names if unknown."""
    return look_up("kind of artifact", kind, KINDS)


def kind_of(artifact: Any) -> str:
    """Return the kind of artifact that an object is.

    Raises:
        InputError: the object is not an artifact.
    """
    for cls in type(artifact).__mro__:
        kind = CLASSES.get(f"{cls.__module__}:{cls.__name__}")
        if kind is not None:
            return kind
    if type(artifact).__name__ == "EpisodeData":
        raise InputError(
            "EpisodeData is several artifacts: save its transitions, split, normalisation and rewards"
        )
    raise InputError(f"{type(artifact).__name__} is not an artifact; known: {', '.join(KINDS)}")


def save_artifact(path: Path | str, kind: str, artifact: Any) -> None:
    """Write an object atomically to a ``.safetensors`` file (see ``storage``).

    Args:
        path: the file; missing folders are created.
        kind: one of KINDS.
        artifact: an object of that kind.

    Raises:
        InputError: the kind is unknown.
    """
    pack, _ = codec(kind)
    write_tensors(expanded(path), kind, *pack(artifact))


def load_artifact(path: Path | str, kind: str | None = None) -> Any:
    """Read an object and verify its file.

    Args:
        path: the file.
        kind: the expected kind; None accepts the kind that the file states.

    Raises:
        InputError: the file is missing, damaged, from another program, or of another or an unknown kind, or it
            names an encoder of your own whose module is not on the Python path.
    """
    path = expanded(path)
    stored_kind, tensors, config = read_tensors(path, kind)
    _, unpack = codec(stored_kind)
    try:
        return unpack(tensors, config)
    except PydanticCustomError as error:  # an encoder of your own that cannot be imported
        raise InputError(f"{shown(path)}: {error}") from error
    # ValueError includes InputError and Pydantic's, such as of an encoder that no longer has one of its settings.
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"{shown(path)}: its content is not a valid {stored_kind} ({one_line(error)[:REASON]}); "
            "delete it and rerun its stage"
        ) from error
