"""The rule for logged actions beyond the bounds. Apart from ``validation``, because only sources write columns."""

from __future__ import annotations

import logging
from dataclasses import replace

import torch
from torch import Tensor

from cvl_pipeline.episodes.container import Transitions, block_rows
from cvl_pipeline.episodes.parameters import OutOfBounds
from cvl_pipeline.episodes.validation import check_actions, outside_bounds
from cvl_pipeline.errors import InputError
from cvl_pipeline.io.pieces import Column

logger = logging.getLogger(__name__)


def bound_actions(
    transitions: Transitions, rule: OutOfBounds, source: str, parameter: str = "dataset.actions_out_of_bounds"
) -> Transitions:
    """Apply the rule for logged actions beyond the bounds.

    Args:
        transitions: the episodes as logged.
        rule: ``refuse`` raises InputError; ``clip`` moves such actions to the nearest bound, as an environment does
            that clips; ``widen`` moves the bounds to the log's smallest and largest actions.
        source: name of the log in messages.
        parameter: name of the rule in messages.

    Returns:
        The episodes, all of whose actions are within their bounds, with the number of actions that were not.

    Raises:
        InputError: ``refuse`` and actions beyond the bounds; bounds of the wrong shape; actions that are not finite.
    """
    check_actions(transitions)
    data = transitions
    found = None if data.discrete else outside_bounds(data.actions, data.action_low, data.action_high)
    if found is None:
        return data
    if rule == "refuse":
        episode = int(data.episode_of(torch.tensor(found.row)))
        step = found.row - int(data.episode_starts[episode])
        raise InputError(
            f"{source}: action {found.value:g} at episode {episode}, step {step} (the first is 0), dimension "
            f"{found.dimension}, is outside [{found.low:g}, {found.high:g}]; {found.remedy(parameter)}"
        )
    logger.warning(
        f"{source}: {found.count} of {len(data)} actions were beyond the bounds, by at most {found.excess:.3g}; "
        + ("they are clipped" if rule == "clip" else "the bounds are widened")
        + f" ({parameter}={rule})"
    )
    counted = replace(
        data,
        actions_out_of_bounds=torch.tensor(found.count),
        largest_excess=torch.tensor(found.excess, dtype=torch.float32),
    )
    if rule == "clip":
        return replace(counted, actions=_clipped(data))
    return replace(
        counted,
        action_low=torch.minimum(data.action_low, data.actions.amin(0)),
        action_high=torch.maximum(data.action_high, data.actions.amax(0)),
    )


def _clipped(data: Transitions) -> Tensor:
    low, high = data.action_low, data.action_high
    column, rows = Column(), block_rows(data.actions)
    for start in range(0, len(data), rows):
        column.append(torch.clamp(data.actions[start : start + rows], low, high).numpy())
    return torch.from_numpy(column.array())
