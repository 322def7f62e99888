"""Checks between a source and the pipeline: a clear error instead of a wrong result."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cvl_pipeline.episodes.container import BLOCK, Rewards, Transitions
from cvl_pipeline.errors import InputError


def validate_transitions(transitions: Transitions) -> None:
    """Raise InputError, naming field and position, unless the data match the container's documentation."""
    data = transitions
    episodes, steps = data.episodes, len(data)
    if episodes < 1:
        raise InputError("transitions: no episode; collect or load at least one")
    if data.episode_starts[0] != 0 or data.episode_starts[-1] != steps:
        raise InputError(
            f"transitions.episode_starts: goes from {int(data.episode_starts[0])} to "
            f"{int(data.episode_starts[-1])}; for {steps} transitions it must go from 0 to {steps}"
        )
    if (data.lengths < 1).any():
        episode = int((data.lengths < 1).nonzero()[0])
        raise InputError(f"transitions.episode_starts: episode {episode} has no steps; remove it")
    if len(data.observations) != steps + episodes:
        raise InputError(
            f"transitions.observations: {len(data.observations)} rows, but {steps} transitions in "
            f"{episodes} episodes need {steps + episodes} rows (one more than the steps of each episode)"
        )
    vectors = data.observations.ndim == 2 and data.observations.dtype == torch.float32
    if not vectors and not (data.images and data.observations.dtype == torch.uint8):
        raise InputError(
            f"transitions.observations: {data.observations.dtype} of shape {tuple(data.observations.shape)}; "
            "use vectors, (rows, O) float32, or images, (rows, height, width, channels) uint8"
        )
    if data.images and data.observations.shape[3] > min(data.observations.shape[1:3]):
        raise InputError(
            f"transitions.observations: images of shape {tuple(data.observations.shape[1:])} have more "
            "channels than rows or columns; transpose them to (height, width, channels)"
        )
    for name in ("terminated", "truncated"):
        if getattr(data, name).shape != (episodes,):
            raise InputError(
                f"transitions.{name}: shape {tuple(getattr(data, name).shape)}; it must be ({episodes},)"
            )
    _check_finite("transitions.observations", data.observations)
    _check_finite("transitions.actions", data.actions)
    for name in ("action_low", "action_high"):
        if getattr(data, name).shape != data.actions.shape[1:]:
            raise InputError(
                f"transitions.{name}: shape {tuple(getattr(data, name).shape)}; it must be "
                f"({data.actions.shape[1]},), one value per action dimension"
            )
        _check_finite(f"transitions.{name}", getattr(data, name))
    fault = _first(data.actions, lambda part: (part < data.action_low) | (part > data.action_high))
    if fault is not None:
        step, dimension = fault
        raise InputError(
            f"transitions.actions: {float(data.actions[step, dimension]):g} at transition {step}, dimension "
            f"{dimension}, is outside [{float(data.action_low[dimension]):g}, "
            f"{float(data.action_high[dimension]):g}]; record actions as the environment executed them"
        )
    fault = _first(data.actions, _not_one_hot) if data.discrete else None
    if fault is not None:
        step = fault[0]
        raise InputError(
            f"transitions.actions: {data.actions[step].tolist()} at transition {step} is not one-hot; encode "
            "discrete actions as one-hot vectors"
        )


def validate_rewards(rewards: Rewards, transitions: Transitions) -> None:
    """Raise InputError unless every transition has a finite reward label, or none has one."""
    for name in ("rewards", "successes"):
        if getattr(rewards, name).shape != (len(transitions),):
            raise InputError(
                f"rewards.{name}: shape {tuple(getattr(rewards, name).shape)}, but there are "
                f"{len(transitions)} transitions; take both from the same ingestion"
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
    """Index of the first faulty entry, searched block by block; None if there is none."""
    for start in range(0, len(values), BLOCK):
        bad = fault(values[start : start + BLOCK])
        if bad.any():
            row, *rest = (int(i) for i in bad.nonzero()[0])
            return (start + row, *rest)
    return None
