"""Small episodes and parameters for tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cvl_pipeline.dynamics.parameters import DynamicsParameters
from cvl_pipeline.episodes.container import Normalisation, Rewards, Split, Transitions
from cvl_pipeline.episodes.data import EpisodeData
from cvl_pipeline.episodes.parts import Layout
from cvl_pipeline.objectives.base import OBJECTIVES, ObjectiveParameters
from cvl_pipeline.readout.parameters import READOUTS, REWARDS, ReadoutParameters, RewardParameters
from cvl_pipeline.training.parameters import TrainingParameters

DATASET: dict[str, Any] = {"source": "metaworld", "task": "door-open-v3", "episodes": 4, "episode_steps": 10}
"""The dataset's parameters, at small size."""


def make_transitions(
    lengths: Sequence[int],
    terminated: Sequence[bool],
    observation_size: int = 3,
    action_size: int = 2,
    seed: int = 0,
) -> Transitions:
    """Random episodes in which every observation row and action is unique."""
    generator = torch.Generator().manual_seed(seed)
    steps, episodes = sum(lengths), len(lengths)
    ends = torch.tensor(terminated, dtype=torch.bool)
    return Transitions(
        observations=torch.randn(steps + episodes, observation_size, generator=generator),
        actions=torch.rand(steps, action_size, generator=generator) * 2.0 - 1.0,
        episode_starts=torch.tensor([0, *np.cumsum(lengths).tolist()], dtype=torch.int64),
        terminated=ends,
        truncated=~ends,
        action_low=-torch.ones(action_size),
        action_high=torch.ones(action_size),
    )


def make_discrete_transitions(
    lengths: Sequence[int], terminated: Sequence[bool], action_size: int = 3, seed: int = 0
) -> Transitions:
    """Random episodes with one-hot actions, the later ones rarer than the first."""
    data = make_transitions(lengths, terminated, seed=seed)
    law = torch.arange(action_size, 0, -1, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed + 1)
    chosen = torch.multinomial(law, len(data), replacement=True, generator=generator)
    return replace(
        data,
        actions=torch.eye(action_size)[chosen],
        action_low=torch.zeros(action_size),
        action_high=torch.ones(action_size),
        discrete=torch.tensor(True),
    )


def labelled_transitions(lengths: Sequence[int], terminated: Sequence[bool]) -> Transitions:
    """Episodes whose observations are (episode, time), so that a row says where it comes from."""
    data = make_transitions(lengths, terminated)
    rows = [(float(e), float(t)) for e, length in enumerate(lengths) for t in range(length + 1)]
    return replace(data, observations=torch.tensor(rows))


def make_rewards(transitions: Transitions, seed: int = 1) -> Rewards:
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(len(transitions), generator=generator)
    return Rewards(rewards=values, successes=values > 0.8)


def identity_normalisation(transitions: Transitions) -> Normalisation:
    layout, action = transitions.parts, transitions.actions.shape[1]
    last = transitions.observations.shape[-1]
    observation = sum(part.shape[-1] for part in layout.parts) if layout else last
    return Normalisation(
        torch.zeros(observation), torch.ones(observation), torch.zeros(action), torch.ones(action)
    )


def split_first(transitions: Transitions, train: int) -> Split:
    """The first ``train`` episodes train, the others are held out."""
    return Split(train=torch.arange(train), validation=torch.arange(train, transitions.episodes))


def slices(transitions: Transitions) -> list[dict[str, Any]]:
    """The episodes one by one, cut out with nothing but the layout that the container documents."""
    starts = transitions.episode_starts.tolist()
    return [
        {
            "observations": transitions.observations[start + e : end + e + 1],
            "actions": transitions.actions[start:end],
            "terminated": bool(transitions.terminated[e]),
            "truncated": bool(transitions.truncated[e]),
            "index": list(range(start, end)),
        }
        for e, (start, end) in enumerate(pairwise(starts))
    ]


def training_parameters(**changes: Any) -> TrainingParameters:
    values: dict[str, Any] = {
        "steps": 8,
        "batch_size": 16,
        "validation_interval": 4,
        "accelerator": "cpu",
        "checkpoint_seconds": 1e-9,  # after every chunk
        "loggers": (),
    }
    return TrainingParameters(**(values | changes))


def _training(changes: dict[str, Any] | None) -> dict[str, Any]:
    return training_parameters(**(changes or {})).model_dump()


def dynamics_parameters(training: dict[str, Any] | None = None, **changes: Any) -> DynamicsParameters:
    values: dict[str, Any] = {
        "discount": 0.9, "representation_size": 4, "hidden": (8,), "temperature": 0.25,
        "segments_per_episode": 1, "validation_batches": 2,
    }  # fmt: skip
    return DynamicsParameters.model_validate({**values, **changes, "training": _training(training)})


def reward_parameters(**changes: Any) -> RewardParameters:
    parameters = REWARDS.validate(changes)
    assert isinstance(parameters, RewardParameters)
    return parameters


def readout_parameters(**changes: Any) -> ReadoutParameters:
    values: dict[str, Any] = {"references": None, "horizons": 4, "regression": None, "discount": None}
    if "features" in READOUTS.parameters(READOUTS.name_in(changes)).model_fields:
        values["features"] = 64
    parameters = READOUTS.validate({**values, **changes})
    assert isinstance(parameters, ReadoutParameters)
    return parameters


def policy_parameters(training: dict[str, Any] | None = None, **changes: Any) -> ObjectiveParameters:
    """Parameters of an objective, ``awr`` by default, at small size."""
    small: dict[str, Any] = {"hidden": (8,), "proposals": 8}
    known = OBJECTIVES.parameters(OBJECTIVES.name_in(changes)).model_fields
    values = {name: value for name, value in small.items() if name in known}
    parameters = OBJECTIVES.validate({**values, **changes, "training": _training(training)})
    assert isinstance(parameters, ObjectiveParameters)
    return parameters


def make_data(
    transitions: Transitions,
    train: int,
    rewards: Rewards | None = None,
    normalisation: Normalisation | None = None,
) -> EpisodeData:
    """The first ``train`` episodes train, the others are held out; inputs are not standardised by default."""
    return EpisodeData(
        transitions,
        split_first(transitions, train),
        normalisation or identity_normalisation(transitions),
        rewards,
    )


def names_in(folder: Path) -> list[str]:
    """Everything in a folder, hidden files too."""
    return sorted(path.name for path in folder.iterdir())


def make_packed_transitions(
    lengths: Sequence[int], terminated: Sequence[bool], size: int = 12, seed: int = 0
) -> Transitions:
    """Random episodes whose observations are a state (3,), a camera, and a smaller one."""
    data = make_transitions(lengths, terminated, seed=seed)
    rows, generator = len(data.observations), torch.Generator().manual_seed(seed + 2)
    parts = {"state": data.observations} | {
        f"images.{name}": torch.randint(0, 256, (rows, side, side, 3), generator=generator, dtype=torch.uint8)
        for name, side in (("wrist", size), ("top", size // 2))
    }
    layout = Layout.of(parts)
    return replace(data, observations=layout.pack(parts), parts=layout)
