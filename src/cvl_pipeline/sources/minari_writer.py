"""Write datasets of Minari."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from cvl_pipeline.episodes.container import Rewards, Transitions
from cvl_pipeline.episodes.validation import validate_rewards, validate_transitions
from cvl_pipeline.errors import InputError
from cvl_pipeline.io.storage import shown, write_atomically
from cvl_pipeline.sources.minari_format import HELD_OUT, PARTS, dataset_folder, datasets_root, line

if TYPE_CHECKING:
    from minari.data_collector import EpisodeBuffer


def save_minari(
    transitions: Transitions,
    rewards: Rewards,
    dataset_id: str,
    root: Path | None = None,
    environment: str | None = None,
    description: str = "",
) -> Path:
    """Write episodes as a Minari dataset, completely or not at all.

    ``load_minari`` returns the same episodes. Observations of several parts become a Dict. Metadata of ours,
    ``cvl_parts`` and ``cvl_held_out``, say that they are parts, and how many of the last episodes are held out.
    Successes, if reported, become ``infos["success"]``. As usual in Minari, it has one more entry than the episode has
    steps; the first entry, for the reset, is False.

    Args:
        transitions: the episodes.
        rewards: their rewards and successes.
        dataset_id: such as ``mine/door-open-v0``.
        root: see ``load_minari``.
        environment: Gymnasium id of the dataset's environment, such as ``CartPole-v1``, or ``package:id`` if a
            package must be imported to register it. It is looked up, not made.
        description: text for readers of the dataset.

    Returns:
        The folder of the dataset.

    Raises:
        InputError: Minari is not installed, the id is malformed, the dataset exists already, the episodes are
            invalid, the environment is unknown, or the folder cannot be written.
    """
    root, folder = dataset_folder(dataset_id, root)
    validate_transitions(transitions)
    validate_rewards(rewards, transitions)
    odd = [
        name for name in (transitions.parts.names if transitions.parts else ()) if "/" in name or name == "."
    ]
    if odd:
        raise InputError(
            f"{dataset_id}: Minari cannot store the part '{odd[0]}' of the observations, because its name is a path; "
            "export to hdf5 or lerobot"
        )
    spec = None if environment is None else _registered(environment)
    try:
        if folder.exists():
            raise InputError(
                f"{shown(folder)} exists already; delete it first, or save another version of '{dataset_id}'"
            )
        _create_namespace(dataset_id, root)

        def write(partial: Path) -> None:
            partial.mkdir()
            _write(partial / "data", transitions, rewards, dataset_id, spec, description)

        # The temporary folder's name begins with a dot, so Minari, whose ids have none, ignores it.
        write_atomically(folder, write)
    except (ImportError, OSError, RuntimeError) as error:  # h5py also raises RuntimeError for a full disk
        raise InputError(f"{shown(folder)} cannot be written: {line(error)}") from error
    return folder


def _registered(environment: str) -> EnvSpec:
    package, _, name = environment.rpartition(":")
    try:
        if package:
            import_module(package)
        spec = gymnasium.spec(name)
        spec.to_json()  # raises for an environment that was registered by its class
    except (ImportError, TypeError, ValueError, gymnasium.error.Error) as error:
        raise InputError(
            f"environment '{environment}' cannot be stored with the dataset ({line(error)}); give a "
            "registered Gymnasium id, or package:id if a package must be imported to register it"
        ) from error
    return spec


def _create_namespace(dataset_id: str, root: Path) -> None:
    """Create the namespace that Minari needs to publish the dataset."""
    from minari.dataset.minari_dataset import parse_dataset_id
    from minari.namespace import create_namespace, list_local_namespaces

    namespace = parse_dataset_id(dataset_id)[0]
    with datasets_root(root):
        if namespace is not None and namespace not in list_local_namespaces():
            create_namespace(namespace)


def _write(
    data: Path,
    transitions: Transitions,
    rewards: Rewards,
    dataset_id: str,
    spec: EnvSpec | None,
    description: str,
) -> None:
    # Not minari.create_dataset_from_buffers: it makes the environment and does not write atomically.
    import minari
    from minari.dataset.minari_storage import MinariStorage

    transitions = transitions.to("cpu")
    actions = transitions.actions.shape[1]
    storage = MinariStorage.new(
        data,
        observation_space=_observation_space(transitions),
        action_space=spaces.Discrete(actions)
        if transitions.discrete
        else spaces.Box(transitions.action_low.numpy(), transitions.action_high.numpy(), dtype=np.float32),
        env_spec=spec,
    )
    storage.update_metadata({"dataset_id": dataset_id, "minari_version": minari.__version__})
    if description:
        storage.update_metadata({"description": description})
    if transitions.parts is not None:
        storage.update_metadata({PARTS: True})
    if transitions.held_out:
        storage.update_metadata({HELD_OUT: int(transitions.held_out)})
    storage.update_episodes(_buffers(transitions, rewards))


def _observation_space(transitions: Transitions) -> spaces.Space[Any]:
    def box(shape: tuple[int, ...], images: bool) -> spaces.Box:
        return (
            spaces.Box(0, 255, shape, np.uint8) if images else spaces.Box(-np.inf, np.inf, shape, np.float32)
        )

    if transitions.parts is None:
        return box(tuple(transitions.observations.shape[1:]), transitions.images)
    return spaces.Dict([(part.name, box(part.shape, part.image)) for part in transitions.parts.parts])


def _buffers(transitions: Transitions, rewards: Rewards) -> Iterator[EpisodeBuffer]:
    from minari.data_collector import EpisodeBuffer

    actions = transitions.actions.argmax(1) if transitions.discrete else transitions.actions
    for episode, (start, end) in enumerate(pairwise(transitions.episode_starts.tolist())):
        last = np.arange(start, end) == end - 1
        observations = transitions.observations[start + episode : end + episode + 1]
        # Arrays instead of the annotated lists give the same files faster.
        columns: dict[str, Any] = {
            "observations": observations.numpy()
            if transitions.parts is None
            else {name: part.numpy() for name, part in transitions.parts.unpack(observations).items()},
            "actions": actions[start:end].numpy(),
            "rewards": rewards.rewards[start:end].cpu().numpy(),
            "terminations": last & bool(transitions.terminated[episode]),
            "truncations": last & bool(transitions.truncated[episode]),
        }
        if rewards.reports_success:
            columns["infos"] = {"success": np.append(False, rewards.successes[start:end].cpu().numpy())}
        yield EpisodeBuffer(**columns)
