"""Checks between a source and the pipeline: a clear error instead of a wrong result."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from cvl_pipeline.episodes.container import Rewards, Transitions, block_rows
from cvl_pipeline.errors import InputError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outside:
    """Logged actions beyond the bounds.

    Attributes:
        count: number of actions with an entry beyond a bound.
        excess: largest distance of an entry from its bound.
        row: row of the first of these actions.
        dimension: its first entry beyond a bound.
        value: that entry.
        low: smallest value of that dimension.
        high: largest value of that dimension.
    """

    count: int
    excess: float
    row: int
    dimension: int
    value: float
    low: float
    high: float

    def remedy(self, parameter: str) -> str:
        """Count, largest excess and remedies, the end of an error; ``parameter`` is the name of the rule."""
        actions = "1 action is" if self.count == 1 else f"{self.count} actions are"
        return (
            f"{actions} beyond the bounds, by at most {self.excess:.3g}; log actions as the environment executed them, "
            f"or set {parameter} to clip if it clips them, or to widen if it accepts them"
        )


def outside_bounds(actions: Tensor, low: Tensor, high: Tensor) -> Outside | None:
    """Find finite actions, (N, A), beyond their bounds, (A,) each; None if there are none."""
    count, excess, first = 0, 0.0, None
    rows = block_rows(actions)
    for start in range(0, len(actions), rows):
        part = actions[start : start + rows]
        outside = (part < low) | (part > high)
        if outside.any():
            count += int(outside.any(1).sum())
            excess = max(excess, float(torch.maximum(low - part, part - high).max()))
            if first is None:
                row, dimension = (int(index) for index in outside.nonzero()[0])
                first = (start + row, dimension)
    if first is None:
        return None
    row, dimension = first
    return Outside(
        count, excess, row, dimension,
        float(actions[row, dimension]), float(low[dimension]), float(high[dimension]),
    )  # fmt: skip


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
    _check_kind(data)
    for name in ("terminated", "truncated"):
        if getattr(data, name).shape != (episodes,):
            raise InputError(
                f"transitions.{name}: shape {tuple(getattr(data, name).shape)}; it must be ({episodes},)"
            )
        _check_flags(f"transitions.{name}", getattr(data, name))
    _check_observations(data)
    check_actions(data)
    found = outside_bounds(data.actions, data.action_low, data.action_high)
    if found is not None:
        raise InputError(
            f"transitions.actions: {found.value:g} at transition {found.row}, dimension {found.dimension}, is outside "
            f"[{found.low:g}, {found.high:g}]; {found.remedy('actions_out_of_bounds')}"
        )
    fault = _first(data.actions, _not_one_hot) if data.discrete else None
    if fault is not None:
        step = fault[0]
        raise InputError(
            f"transitions.actions: {data.actions[step].tolist()} at transition {step} is not one-hot; encode "
            "discrete actions as one-hot vectors"
        )


def validate_rewards(rewards: Rewards, transitions: Transitions) -> None:
    """Raise InputError unless all transitions have finite rewards, or none has one, and successes are bool."""
    for name in ("rewards", "successes"):
        if getattr(rewards, name).shape != (len(transitions),):
            raise InputError(
                f"rewards.{name}: shape {tuple(getattr(rewards, name).shape)}, but there are "
                f"{len(transitions)} transitions; take both from the same ingestion"
            )
    _check_flags("rewards.successes", rewards.successes)
    if not rewards.missing:
        _check_finite("rewards.rewards", rewards.rewards)


def checked_rewards(rewards: Rewards, transitions: Transitions) -> Rewards:
    """Return rewards in single precision, checked as by ``validate_rewards``."""
    if rewards.rewards.dtype != torch.float32:
        rewards = replace(rewards, rewards=rewards.rewards.float())
    validate_rewards(rewards, transitions)
    return rewards


def _check_kind(data: Transitions) -> None:
    """Raise InputError unless observations are vectors, images, or packed rows of both, and rows have numbers."""
    for name in ("observations", "actions"):
        shape = tuple(getattr(data, name).shape)
        if 0 in shape[1:]:
            raise InputError(f"transitions.{name}: shape {shape}, so a row has no numbers; give at least one")
    kind = f"transitions.observations: {data.observations.dtype} of shape {tuple(data.observations.shape)}"
    if data.parts is not None:
        if data.observations.dtype != torch.uint8 or data.observations.shape[1:] != (data.parts.nbytes,):
            raise InputError(
                f"{kind}; rows of the parts {', '.join(data.parts.names)} are packed in {data.parts.nbytes} bytes "
                "each: make them with Layout.pack"
            )
        images = {f" of the part '{part.name}'": part.shape for part in data.parts.parts if part.image}
    else:
        vectors = data.observations.ndim == 2 and data.observations.dtype == torch.float32
        if not vectors and not (data.images and data.observations.dtype == torch.uint8):
            raise InputError(
                f"{kind}; use vectors, (rows, O) float32, or images, (rows, height, width, channels) uint8"
            )
        images = {"": tuple(data.observations.shape[1:])} if data.images else {}
    for name, shape in images.items():
        check_channels_last(f"transitions.observations: images{name}", shape)


def check_channels_last(images: str, shape: tuple[int, ...]) -> None:
    """Raise InputError, which begins with ``images``, if images of a shape (H, W, C) seem to be (C, H, W)."""
    if shape[2] > min(shape[:2]):
        raise InputError(
            f"{images} of shape {shape} have more channels than rows or columns; "
            "transpose them to (height, width, channels)"
        )


def check_splittable(transitions: Transitions) -> None:
    """Raise InputError if there are fewer than two episodes: one is held out."""
    if transitions.episodes < 2:
        raise InputError(
            f"data_ingestion: 1 episode cannot be split, and all {len(transitions)} steps are in one; if the log has "
            "more, flag the last row of each (terminated or truncated), or name a column of ids (episode)"
        )


def _check_observations(data: Transitions) -> None:
    """Raise InputError unless every number of the observations is finite."""
    layout = data.parts
    if layout is None:
        _check_finite("transitions.observations", data.observations)
        return
    for part in layout.parts:
        take = partial(layout.part, name=part.name)
        place = None if part.image else _first(data.observations, partial(_not_finite, take=take))
        if place is not None:
            row, dimension = place
            raise InputError(
                f"transitions.observations: {float(take(data.observations[row])[dimension])} in the part '{part.name}' "
                f"at index {place}; remove or repair that episode"
            )


def _not_finite(rows: Tensor, take: Callable[[Tensor], Tensor]) -> Tensor:
    return ~take(rows).isfinite()


def check_actions(data: Transitions) -> None:
    """Raise InputError unless actions are vectors and their bounds are finite, fit them, and do not cross."""
    if data.actions.ndim != 2 or data.actions.dtype != torch.float32:
        raise InputError(
            f"transitions.actions: {data.actions.dtype} of shape {tuple(data.actions.shape)}; use vectors, "
            "(transitions, A) float32"
        )
    _check_finite("transitions.actions", data.actions)
    for name in ("action_low", "action_high"):
        if getattr(data, name).shape != data.actions.shape[1:]:
            raise InputError(
                f"transitions.{name}: shape {tuple(getattr(data, name).shape)}; it must be "
                f"({data.actions.shape[1]},), one value per action dimension"
            )
        _check_finite(f"transitions.{name}", getattr(data, name))
    crossed = (data.action_low > data.action_high).nonzero().flatten().tolist()
    if crossed:
        low, high = float(data.action_low[crossed[0]]), float(data.action_high[crossed[0]])
        raise InputError(
            f"transitions.action_low: {low:g} in dimension {crossed[0]} is above action_high, {high:g}"
        )
    endless = (~(data.action_high - data.action_low).isfinite()).nonzero().flatten().tolist()
    if endless:
        low, high = float(data.action_low[endless[0]]), float(data.action_high[endless[0]])
        raise InputError(
            f"transitions.action_high: {high:g} in dimension {endless[0]} minus action_low, {low:g}, is too large a "
            "range for single precision; give the smallest and the largest action of the log as bounds"
        )


def _check_flags(field: str, values: Tensor) -> None:
    if values.dtype != torch.bool:
        raise InputError(f"{field}: {values.dtype}; it must be torch.bool")


def _check_finite(field: str, values: Tensor) -> None:
    place = _first(values, lambda part: ~torch.isfinite(part)) if values.is_floating_point() else None
    if place is not None:
        raise InputError(f"{field}: {float(values[place])} at index {place}; remove or repair that episode")


def _not_one_hot(actions: Tensor) -> Tensor:
    return ~(((actions == 0) | (actions == 1)).all(1) & (actions.sum(1) == 1))


def _first(values: Tensor, fault: Callable[[Tensor], Tensor]) -> tuple[int, ...] | None:
    """Index of the first faulty entry, searched block by block; None if there is none."""
    rows = block_rows(values)
    for start in range(0, len(values), rows):
        bad = fault(values[start : start + rows])
        if bad.any():
            row, *rest = (int(i) for i in bad.nonzero()[0])
            return (start + row, *rest)
    return None
