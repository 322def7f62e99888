"""Checks that stand between a source and the pipeline: one clear error instead of a wrong result."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cvl_pipeline.episodes.container import BLOCK, Rewards, Transitions
from cvl_pipeline.errors import InputError


def validate_transitions(transitions: Transitions) -> None:
    """Raise InputError, naming field and place, unless the container's promises hold."""
    data = transitions
    episodes, steps = data.episodes, len(data)
    if episodes < 1:
        raise InputError("transitions: no episode; collect or load at least one")
    if data.episode_starts[0] != 0 or data.episode_starts[-1] != steps:
        raise InputError(
            f"transitions.episode_starts: runs from {int(data.episode_starts[0])} to "
            f"{int(data.episode_starts[-1])}, but there are {steps} transitions"
        )
    if (data.lengths < 1).any():
        episode = int((data.lengths < 1).nonzero()[0])
        raise InputError(f"transitions.episode_starts: episode {episode} has no step; leave it out")
    if len(data.observations) != steps + episodes:
        raise InputError(
            f"transitions.observations: {len(data.observations)} rows, but {steps} transitions in "
            f"{episodes} episodes need {steps + episodes} (one more than steps in every episode)"
        )
    vectors = data.observations.ndim == 2 and data.observations.dtype == torch.float32
    if not vectors and not (data.images and data.observations.dtype == torch.uint8):
        raise InputError(
            f"transitions.observations: {data.observations.dtype} of shape {tuple(data.observations.shape)}; "
            "they are vectors, (rows, O) float32, or images, (rows, height, width, channels) uint8"
        )
    if data.images and data.observations.shape[3] > min(data.observations.shape[1:3]):
        raise InputError(
            f"transitions.observations: images of shape {tuple(data.observations.shape[1:])} have more "
            "channels than rows or columns; lay them out as (height, width, channels)"
        )
    for name in ("terminated", "truncated"):
        if getattr(data, name).shape != (episodes,):
            raise InputError(
                f"transitions.{name}: shape {tuple(getattr(data, name).shape)}, not ({episodes},)"
            )
    _check_finite("transitions.observations", data.observations)
    _check_finite("transitions.actions", data.actions)
    for name in ("action_low", "action_high"):
        if getattr(data, name).shape != data.actions.shape[1:]:
            raise InputError(
                f"transitions.{name}: shape {tuple(getattr(data, name).shape)}, but actions have "
                f"{data.actions.shape[1]} dimensions"
            )
        _check_finite(f"transitions.{name}", getattr(data, name))
    found = _first(data.actions, lambda part: (part < data.action_low) | (part > data.action_high))
    if found is not None:
        step, dimension = found
        raise InputError(
            f"transitions.actions: {float(data.actions[step, dimension]):g} at transition {step}, dimension "
            f"{dimension} lies outside [{float(data.action_low[dimension]):g}, "
            f"{float(data.action_high[dimension]):g}]; record actions as the environment executed them"
        )
    found = _first(data.actions, _not_one_hot) if data.discrete else None
    if found is not None:
        step = found[0]
        raise InputError(
            f"transitions.actions: {data.actions[step].tolist()} at transition {step} is not one-hot, as a "
            "discrete action must be"
        )


def validate_rewards(rewards: Rewards, transitions: Transitions) -> None:
    """Raise InputError unless there is one finite label for each transition, or none at all."""
    for name in ("rewards", "successes"):
        if getattr(rewards, name).shape != (len(transitions),):
            raise InputError(
                f"rewards.{name}: shape {tuple(getattr(rewards, name).shape)}, but there are "
                f"{len(transitions)} transitions; both must come from one ingestion"
            )
    if not rewards.missing:
        _check_finite("rewards.rewards", rewards.rewards)


def _check_finite(field: str, values: Tensor) -> None:
    place = _first(values, lambda part: ~torch.isfinite(part)) if values.is_floating_point() else None
    if place is not None:
        raise InputError(f"{field}: {float(values[place])} at index {place}; remove or repair that episode")


def _not_one_hot(actions: Tensor) -> Tensor:
    return ~(((actions == 0) | (actions == 1)).all(1) & (actions.sum(1) == 1))


def _first(values: Tensor, fault: Callable[[Tensor], Tensor]) -> tuple[int, ...] | None:
    """Index of the first faulty entry, looked for block by block; None if there is none."""
    for start in range(0, len(values), BLOCK):
        bad = fault(values[start : start + BLOCK])
        if bad.any():
            row, *rest = (int(i) for i in bad.nonzero()[0])
            return (start + row, *rest)
    return None
