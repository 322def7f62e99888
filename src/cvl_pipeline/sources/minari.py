"""Read datasets of Minari, the Farama Foundation's format for offline datasets."""

from __future__ import annotations

import json
import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from numpy.typing import NDArray
from pydantic import Field

from cvl_pipeline.environments.base import SUCCESSES, Environment
from cvl_pipeline.environments.gymnasium import GymnasiumEnvironment, is_image_space
from cvl_pipeline.episodes.container import Rewards, Transitions
from cvl_pipeline.errors import InputError
from cvl_pipeline.io.pieces import Column, by_block
from cvl_pipeline.io.storage import shown
from cvl_pipeline.schema import operational
from cvl_pipeline.sources.base import LocalPath, Source, SourceParameters, Task
from cvl_pipeline.sources.minari_format import (
    HELD_OUT,
    PARTS,
    check_stored_values,
    line,
    open_dataset,
    reading,
)
from cvl_pipeline.sources.precision import numbers_or_images, single_precision
from cvl_pipeline.sources.progress import progress
from cvl_pipeline.sources.steps import packed

if TYPE_CHECKING:
    from minari import EpisodeData, MinariDataset

logger = logging.getLogger(__name__)

Array = NDArray[Any]

TOGETHER = 32
"""Episodes that Minari is asked for together."""


def load_minari(
    dataset_id: str, root: Path | None = None, download: bool = True
) -> tuple[Transitions, Rewards]:
    """Read a Minari dataset.

    Observations are flattened by ``gymnasium.spaces.utils.flatten``, with subspaces in their recorded order. If one of
    the entries of a Dict is an image, all entries are parts of the observation (``Transitions.parts``). An
    infinite bound of the action space becomes the smallest or largest action of the log. An episode counts as
    truncated if its last step is neither terminated nor truncated. Successes come from ``infos``, if it has one
    of ``SUCCESSES``; otherwise they are False, with a warning. If no episode has one, success is not reported.
    Actions beyond the bounds of a Box are returned as they are; see ``bound_actions``.

    Args:
        dataset_id: such as ``D4RL/pointmaze/umaze-v2``.
        root: folder of datasets; None: ``MINARI_DATASETS_PATH``, or Minari's folder in the home folder.
        download: whether to download a missing dataset.

    Returns:
        The episodes and their rewards, which are all NaN if every reward of the dataset is.

    Raises:
        InputError: Minari is not installed, the id is malformed or unknown, the download failed, the dataset
            is damaged or empty, its spaces are not supported, or a number is not finite.
    """
    dataset, folder, metadata = open_dataset(dataset_id, root, download)
    source = shown(folder)
    observation_space = _in_recorded_order(
        dataset.observation_space, json.loads(metadata["observation_space"])
    )
    if not is_image_space(observation_space):
        _check_observation_space(observation_space, f"{source}: observation space")
    labels = _labels(observation_space, metadata.get(PARTS) is True)
    action_space = dataset.action_space
    if not isinstance(action_space, spaces.Box | spaces.Discrete):
        raise InputError(f"{source}: action space {line(action_space)}; only Box and Discrete are supported")
    if dataset.total_episodes == 0:
        raise InputError(f"{source}: no episode; delete the folder and record or download it again")
    check_stored_values(folder)
    episodes = _Episodes()
    unrewarded: list[str] = []
    size = dataset.total_steps * (_bytes(dataset.observation_space) + _bytes(dataset.action_space))
    with progress(f"reading {source}", dataset.total_steps, size) as advance:
        for data in _episodes_of(dataset, folder):
            place = f"{source}: episode {data.id}"
            episodes.add(episode := _read_episode(data, observation_space, action_space, place))
            unrewarded += [place] * bool(np.isnan(episode.rewards).all())
            advance(episodes.lengths[-1])
    steps = sum(episodes.lengths)
    if steps != dataset.total_steps:
        raise InputError(
            f"{source}: {steps} steps, but its metadata says {dataset.total_steps}; it is damaged, so "
            "delete the folder and download it again"
        )
    if 0 < len(unrewarded) < len(episodes.lengths):
        raise InputError(
            f"{unrewarded[0]}, rewards: all are nan, but other episodes have rewards; remove or repair it"
        )
    silent = episodes.reported.count(False)
    if 0 < silent < len(episodes.reported):
        logger.warning(
            f"{source}: {silent} of {len(episodes.reported)} episodes do not report success; they count as not solved"
        )
    transitions, rewards = _joined(episodes, action_space, labels, source)
    held_out = metadata.get(HELD_OUT)
    if type(held_out) is int and 0 < held_out < transitions.episodes:
        transitions = replace(transitions, held_out=torch.tensor(held_out))
    return transitions, rewards


def environment_spec(dataset_id: str, root: Path | None = None) -> EnvSpec | None:
    """Return the environment that a local dataset names.

    Args:
        dataset_id: such as ``D4RL/pointmaze/umaze-v2``.
        root: see ``load_minari``.

    Returns:
        The environment for evaluation, else the one that the dataset was recorded in, or None. Making it calls
        any code that the dataset names, so make it only if you trust the dataset.

    Raises:
        InputError: see ``load_minari`` without a download.
    """
    dataset, _, _ = open_dataset(dataset_id, root, download=False)
    # Minari 0.5.4 reads both and repairs specifications of older Gymnasium versions, but publishes only one.
    spec: EnvSpec | None = dataset._eval_env_spec or dataset.env_spec
    return spec


@dataclass(frozen=True)
class _Episode:
    """T + 1 flat observations, T actions, rewards and successes, and the flags of the last step.

    Observations and actions are by part of their space, such as ``['goal']``; a space without parts is one, ``""``.
    """

    observations: dict[str, Array]
    actions: dict[str, Array]
    rewards: Array
    successes: Array
    success_reported: bool
    terminated: bool
    truncated: bool


class _Episodes:
    """Episodes end to end: a column per part of observations and of actions, rewards and successes."""

    def __init__(self) -> None:
        self.observations: dict[str, Column] = defaultdict(Column)
        self.actions: dict[str, Column] = defaultdict(Column)
        self.rewards, self.successes = Column(), Column()
        self.lengths: list[int] = []
        self.reported: list[bool] = []
        self.terminated: list[bool] = []
        self.truncated: list[bool] = []

    def add(self, episode: _Episode) -> None:
        for columns, parts in (
            (self.observations, episode.observations),
            (self.actions, episode.actions),
        ):
            for key, values in parts.items():
                columns[key].append(values)
        self.rewards.append(episode.rewards)
        self.successes.append(episode.successes)
        self.lengths.append(len(episode.rewards))
        self.reported.append(episode.success_reported)
        self.terminated.append(episode.terminated)
        self.truncated.append(episode.truncated)


def _bytes(space: spaces.Space[Any]) -> int:
    """Bytes of an element in memory."""
    return math.prod(space.shape or ()) if is_image_space(space) else 4 * spaces.flatdim(space)


def _episodes_of(dataset: MinariDataset, folder: Path) -> Iterator[EpisodeData]:
    with reading(folder):
        indices = np.asarray(dataset.episode_indices)
        for first in range(0, len(indices), TOGETHER):  # Minari reads ahead without limit
            yield from dataset.iterate_episodes(indices[first : first + TOGETHER])


def _in_recorded_order(space: spaces.Space[Any], described: Mapping[str, Any]) -> spaces.Space[Any]:
    """Restore the recorded order of a Dict's keys, which Minari sorts when it reads them."""
    if isinstance(space, spaces.Dict):
        parts = described["subspaces"]
        return spaces.Dict([(key, _in_recorded_order(space[key], parts[key])) for key in parts])
    if isinstance(space, spaces.Tuple):
        pairs = zip(space.spaces, described["subspaces"], strict=True)
        return spaces.Tuple([_in_recorded_order(part, of) for part, of in pairs])
    return space


def _labels(space: spaces.Space[Any], always: bool = False) -> dict[str, str] | None:
    """The part of the observations to which each key of ``_parts`` belongs; None if there are no images beside others.

    With ``always``, numbers alone are parts, too.

    Each entry of a Dict is a part, as in ``GymnasiumEnvironment``: ``outer.inner`` if Dicts are nested.
    """
    if not isinstance(space, spaces.Dict):
        return None
    labels: dict[str, str] = {}
    images = []

    def walk(part: spaces.Space[Any], key: str, label: str) -> None:
        if isinstance(part, spaces.Dict | spaces.Tuple):
            named = part.spaces.items() if isinstance(part, spaces.Dict) else enumerate(part.spaces)
            within = f"{label}." if label else ""
            apart = isinstance(part, spaces.Dict)
            for name, inner in named:
                walk(inner, f"{key}[{name!r}]", f"{within}{name}" if apart else label)
            return
        labels[key] = label
        images.append(is_image_space(part))

    walk(space, "", "")
    return labels if always or any(images) else None


def _check_observation_space(space: spaces.Space[Any], place: str, within_tuple: bool = False) -> None:
    match space:
        case spaces.Dict():
            for key, part in space.spaces.items():
                _check_observation_space(part, f"{place}['{key}']", within_tuple)
        case spaces.Tuple():
            for index, part in enumerate(space.spaces):
                _check_observation_space(part, f"{place}[{index}]", within_tuple=True)
        case spaces.Box(dtype=np.uint8, shape=(_, _, _)) if not within_tuple:
            pass
        case spaces.Box(dtype=np.uint8, shape=(_, _, *_)):
            raise InputError(
                f"{place} contains images, {line(space)}; images are read only if they are the whole observation, or "
                "a part of a Dict, and (height, width, channels)"
            )
        case spaces.Box() | spaces.Discrete() | spaces.MultiDiscrete() | spaces.MultiBinary():
            pass
        case _:
            raise InputError(
                f"{place} is {line(space)}; only Box, Discrete, MultiDiscrete, MultiBinary, and Dict and "
                "Tuple of these, can be flattened to a vector of fixed size"
            )


def _read_episode(
    data: EpisodeData, observation_space: spaces.Space[Any], action_space: spaces.Space[Any], place: str
) -> _Episode:
    rewards, terminations, truncations = (
        np.asarray(values) for values in (data.rewards, data.terminations, data.truncations)
    )
    steps = rewards.size
    if steps == 0:
        raise InputError(f"{place} has no steps; remove it")
    for name, values in (("rewards", rewards), ("terminations", terminations), ("truncations", truncations)):
        if values.shape != (steps,) or values.dtype.kind not in "biuf":
            raise InputError(
                f"{place}, {name}: {values.dtype} of shape {values.shape}, but there are {steps} rewards; "
                "give one number per step"
            )
    if not np.isnan(rewards).all():  # a dataset without rewards has nan everywhere
        _check_finite(rewards, f"{place}, rewards", "step")
    for word, flags in (("terminated", terminations), ("truncated", truncations)):
        wrong = np.flatnonzero((flags != 0) & (flags != 1))
        if len(wrong):
            raise InputError(
                f"{place}: {word} is {flags[wrong[0]]} at step {wrong[0]} (the first is 0), which is not a flag; "
                "record False and True"
            )
        if flags[:-1].any():
            raise InputError(
                f"{place}: step {int(flags.argmax())} of {steps} is {word}, but the episode goes on; end "
                "the episode there"
            )
    successes, reported = _successes(data.infos or {}, steps, place)
    return _Episode(
        observations=_parts(observation_space, data.observations, steps + 1, f"{place}, observations"),
        actions=_parts(action_space, data.actions, steps, f"{place}, actions"),
        rewards=rewards,
        successes=successes,
        success_reported=reported,
        terminated=bool(terminations[-1]),
        truncated=bool(truncations[-1] or not terminations[-1]),
    )


def _parts(space: spaces.Space[Any], values: Any, rows: int, place: str) -> dict[str, Array]:
    """Flatten elements of a space, stored in Minari's layout, as Gymnasium does: (rows, size) of each part.

    The parts stay apart because integers beside fractions would become double precision.
    """
    if isinstance(space, spaces.Dict | spaces.Tuple):
        if len(values) != len(space.spaces):
            raise InputError(f"{place}: {len(values)} parts, but {line(space)} has {len(space.spaces)}")
        named = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        return {
            f"[{name!r}]{inner}": array
            for name, part in named
            for inner, array in _parts(part, values[name], rows, f"{place}[{name!r}]").items()
        }
    array = np.asarray(values)
    shape = (rows, *(space.shape or ()))
    if array.shape != shape or array.dtype.kind not in "biuf":
        raise InputError(f"{place}: {array.dtype} of shape {array.shape}, but {line(space)} needs {shape}")
    if is_image_space(space):
        return {"": array}
    if isinstance(space, spaces.Box):
        _check_finite(array, place, "row")
        return {"": array.reshape(rows, -1)}
    for row, value in enumerate(array):
        if not space.contains(value):
            raise InputError(f"{place}: {value} at row {row} is outside {line(space)}")
    return {"": np.array([spaces.flatten(space, value) for value in array], dtype=np.float32)}


def _check_finite(values: Array, place: str, row: str) -> None:
    """Raise InputError unless the numbers of an episode, (T, ...), are finite."""
    wrong = np.argwhere(~np.isfinite(values))
    if len(wrong):
        raise InputError(
            f"{place}: {values[tuple(wrong[0])]} at {row} {wrong[0][0]} (the first is 0) is not a finite number; "
            "remove or repair that episode"
        )


def _successes(infos: Mapping[str, Any], steps: int, place: str) -> tuple[Array, bool]:
    """Successes of an episode, (T,) bool, False where it reports none, and whether it reports any."""
    for name in (name for name in SUCCESSES if name in infos):
        try:
            values = np.asarray(infos[name])
        except ValueError:  # entries of different length
            raise InputError(
                f"{place}, infos['{name}']: not one number per step; record one flag per step"
            ) from None
        flat = values.shape[:1] == (values.size,)  # (steps,) or (steps, 1)
        if values.dtype.kind not in "biuf" or values.size not in (steps, steps + 1) or not flat:
            raise InputError(
                f"{place}, infos['{name}']: {values.dtype} of shape {values.shape}, but {steps} steps need "
                f"{steps} numbers, or {steps + 1} with the reset's"
            )
        flags = values.reshape(-1)[-steps:]
        unknown = np.isnan(flags)  # says nothing, as in success_in
        if unknown.all():
            continue
        wrong = np.flatnonzero((flags != 0) & (flags != 1) & ~unknown)
        if len(wrong):
            raise InputError(
                f"{place}, infos['{name}']: {flags[wrong[0]]} at step {wrong[0]} (the first is 0) is not a flag; "
                "record 0 and 1, or False and True"
            )
        return np.asarray(flags == 1), True
    return np.zeros(steps, dtype=bool), False


def _joined(
    episodes: _Episodes,
    action_space: spaces.Box | spaces.Discrete,
    labels: Mapping[str, str] | None,
    source: str,
) -> tuple[Transitions, Rewards]:
    def singles(columns: Mapping[str, Column], name: str) -> dict[str, Array]:
        parts = {key: column.array() for key, column in columns.items()}
        return {key: numbers_or_images(values, f"{source}: {name}{key}") for key, values in parts.items()}

    observed: dict[str, list[Array]] = defaultdict(list)
    for key, values in singles(episodes.observations, "observations").items():
        observed[labels[key] if labels else ""].append(values)
    parts = {name: _beside(arrays) for name, arrays in observed.items()}
    observations, layout = packed(parts, source)
    actions = _beside([*singles(episodes.actions, "actions").values()])
    low, high = np.zeros_like(actions[0]), np.ones_like(actions[0])
    if isinstance(action_space, spaces.Box):
        low, high = action_space.low.reshape(-1), action_space.high.reshape(-1)
        # Where a bound is infinite, the log's; it must not cross the other bound.
        low = np.where(np.isfinite(low), low, np.minimum(actions.min(0), high))
        high = np.where(np.isfinite(high), high, np.maximum(actions.max(0), low))
    transitions = Transitions(
        observations=torch.from_numpy(observations),
        actions=torch.from_numpy(actions),
        episode_starts=torch.from_numpy(np.cumsum([0, *episodes.lengths]).astype(np.int64)),
        terminated=torch.tensor(episodes.terminated),
        truncated=torch.tensor(episodes.truncated),
        action_low=torch.from_numpy(low.astype(np.float32)),
        action_high=torch.from_numpy(high.astype(np.float32)),
        discrete=torch.tensor(isinstance(action_space, spaces.Discrete)),
        parts=layout,
    )
    rewards = single_precision(episodes.rewards.array(), f"{source}: rewards")
    successes = torch.from_numpy(episodes.successes.array())
    return transitions, Rewards(torch.from_numpy(rewards), successes, torch.tensor(any(episodes.reported)))


def _beside(arrays: list[Array]) -> Array:
    """Arrays of the same number of rows, side by side."""
    return arrays[0] if len(arrays) == 1 else by_block(lambda *part: np.concatenate(part, axis=1), *arrays)


class Minari(Source):
    """A Minari dataset, published or your own."""

    class Parameters(SourceParameters):
        """The settings of ``minari``."""

        source: Literal["minari"] = Field("minari", description="A Minari dataset.")
        task: Task = Field("D4RL/pointmaze/umaze-v2", description="Id of the dataset.")
        path: LocalPath | None = operational(
            None,
            description="Folder of datasets; missing ones are downloaded to it. null: Minari's own folder.",
        )

        @property
        def label(self) -> str:
            """The id."""
            return self.task

    parameters: Parameters

    @property
    def _root(self) -> Path | None:
        return Path(self.parameters.path) if self.parameters.path else None

    def load(self, seed: int, workers: int | None) -> tuple[Transitions, Rewards]:
        """Read the dataset; download it first if it is missing."""
        return load_minari(self.parameters.task, self._root)

    def make_environment(self, episode_steps: int | None = None) -> Callable[[], Environment] | None:
        """Return a factory of the environment that the local dataset names."""
        spec = environment_spec(self.parameters.task, self._root)
        if spec is None:
            return None
        # Only its id: a specification may name any code as its entry point.
        return partial(GymnasiumEnvironment, spec.id, episode_steps or spec.max_episode_steps, spec.kwargs)

    @property
    def may_have_environment(self) -> bool:
        """Whether the dataset names one; assumed for a dataset that is not downloaded yet."""
        try:
            return environment_spec(self.parameters.task, self._root) is not None
        except InputError:
            return True

    @property
    def environment_name(self) -> str:
        """Id of the environment that the dataset names."""
        spec = environment_spec(self.parameters.task, self._root)
        return spec.id if spec is not None else self.parameters.task

    def files(self) -> list[Path]:
        """The dataset's folder, if ``path`` is set."""
        return [self._root / self.parameters.task] if self._root else []
