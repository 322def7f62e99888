"""Rewards as labels: what the logged states are worth, decided after the dynamics were learned."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cvl_pipeline.episodes.container import BLOCK, Rewards, Transitions
from cvl_pipeline.episodes.validation import validate_rewards
from cvl_pipeline.errors import InputError, one_line
from cvl_pipeline.imports import user_function
from cvl_pipeline.readout.parameters import RewardParameters

RewardFunction = Callable[[Tensor, Tensor, Tensor], Tensor | tuple[Tensor, Tensor]]
"""From observations (N, O), actions (N, A) and next observations (N, O) to rewards (N,), on arrival in the
next observation, or to rewards and successes (N,) bool."""


def label(transitions: Transitions, logged: Rewards, parameters: RewardParameters) -> Rewards:
    """Label every transition with the reward in force.

    Args:
        transitions: N transitions.
        logged: what the log itself says.
        parameters: which reward.

    Returns:
        Rewards and successes, (N,) each. ``dataset``: as logged. ``success``: 1 where the log counts the task
        as solved. ``goal_distance``: ``1 / (1 + (d / scale)^2)``, d the Euclidean distance to the target in
        the given dimensions of the state arrived in; solved within the tolerance.

    Raises:
        InputError: a dimension that the observations do not have; a function that cannot be imported, fails,
            or returns something else than one finite number a transition.
    """
    if parameters.source == "dataset":
        if logged.missing:
            raise InputError(
                "the log has no rewards: say what is good by reward.source (goal_distance, success or a "
                "module:function of yours)"
            )
        return logged
    if parameters.source == "success":
        return Rewards(logged.successes.float(), logged.successes)
    if parameters.source == "goal_distance":
        labels = _goal_distance(transitions, parameters)
    else:
        labels = _user_function(parameters.source, transitions)
    validate_rewards(labels, transitions)
    return labels


def _goal_distance(transitions: Transitions, parameters: RewardParameters) -> Rewards:
    assert parameters.indices is not None
    assert parameters.target is not None
    assert parameters.scale is not None
    assert parameters.tolerance is not None
    if transitions.images:
        raise InputError(
            "reward.source goal_distance: observations are images, which have no distance to a target; name "
            "a module:function of yours"
        )
    size = transitions.observations.shape[1]
    outside = [i for i in parameters.indices if not -size <= i < size]
    if outside:
        raise InputError(f"reward.indices: {outside[0]} is no dimension of observations that have {size}")
    target = torch.tensor(parameters.target)
    distance = torch.cat(
        [
            (transitions.arrivals(part)[:, list(parameters.indices)] - target).norm(dim=1)
            for part in torch.split(torch.arange(len(transitions)), BLOCK)
        ]
    )
    return Rewards(
        rewards=1.0 / (1.0 + (distance / parameters.scale).square()),
        successes=distance <= parameters.tolerance,
    )


def check_reward(parameters: RewardParameters) -> None:
    """Raise InputError if the reward is a function that cannot be imported."""
    if ":" in parameters.source:
        user_function("reward.source", parameters.source)


def _user_function(source: str, transitions: Transitions) -> Rewards:
    function = user_function("reward.source", source)
    states = transitions.states()
    try:
        result = function(states, transitions.actions, transitions.arrivals())
    except Exception as error:
        raise InputError(
            f"reward.source '{source}' failed on {len(states)} transitions ({one_line(error)}); it is "
            "called with observations, actions and next observations"
        ) from error
    no_successes = torch.zeros(len(states), dtype=torch.bool)
    rewards, successes = result if isinstance(result, tuple) and len(result) == 2 else (result, no_successes)
    for name, values in (("reward", rewards), ("success", successes)):
        if not isinstance(values, Tensor) or values.shape != (len(states),):
            found = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise InputError(
                f"reward.source '{source}' returned {found}, not a tensor of one {name} for each of the "
                f"{len(states)} transitions"
            )
    rewards = rewards.detach().float()
    bad = ~torch.isfinite(rewards)
    if bad.any():
        first = int(bad.nonzero()[0])
        raise InputError(f"reward.source '{source}' returned {float(rewards[first])} for transition {first}")
    return Rewards(rewards, successes.bool())
