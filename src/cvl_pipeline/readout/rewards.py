"""Rewards as labels of the logged transitions, decided after the dynamics were learned."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from cvl_pipeline.episodes.container import BLOCK, Rewards, Transitions
from cvl_pipeline.episodes.validation import validate_rewards
from cvl_pipeline.errors import InputError, one_line
from cvl_pipeline.imports import user_function
from cvl_pipeline.readout.parameters import (
    REWARDS,
    FunctionReward,
    GoalDistanceReward,
    LoggedReward,
    RewardParameters,
    SuccessReward,
)

logger = logging.getLogger(__name__)

RewardFunction = Callable[[Tensor, Tensor, Tensor], Tensor | tuple[Tensor, Tensor]]
"""From observations (N, O), actions (N, A) and next observations (N, O) to rewards (N,), on arrival in the
next observation, or to rewards and successes (N,) bool."""

FEW_STATES, SMALL_SHARE = 100, 0.01
"""A goal that fewer logged states reach, in number and in share, is warned of: there is little to learn from."""


class Reward(ABC):
    """What counts as good."""

    Parameters: ClassVar[type[RewardParameters]] = RewardParameters
    of_the_log: ClassVar[bool] = False
    """Whether the log itself says it, so that the user has not chosen a goal."""

    def __init__(self, parameters: Any) -> None:
        """Keep the parameters."""
        self.parameters = parameters

    @abstractmethod
    def labels(self, transitions: Transitions, logged: Rewards) -> Rewards:
        """Return the reward and success of every transition, (N,) each."""

    def check(self) -> None:  # noqa: B027, most rewards have nothing to check
        """Raise InputError if the reward cannot be used, before anything runs."""


def label(transitions: Transitions, logged: Rewards, parameters: RewardParameters) -> Rewards:
    """Label every transition with the reward in force.

    Args:
        transitions: N transitions.
        logged: rewards and successes of the log itself.
        parameters: which reward.

    Returns:
        Rewards and successes, (N,) each.

    Raises:
        InputError: a dimension that the observations do not have; a log without the rewards or successes that
            are asked for; a function that cannot be imported, fails, or returns something else than one finite
            number per transition.
    """
    labels = REWARDS.create(parameters).labels(transitions, logged)
    validate_rewards(labels, transitions)
    return labels


def check_reward(parameters: RewardParameters) -> None:
    """Raise InputError if the reward cannot be used, such as a function that cannot be imported."""
    REWARDS.create(parameters).check()


class Logged(Reward):
    """The reward as the log has it."""

    Parameters = LoggedReward
    of_the_log = True

    def labels(self, transitions: Transitions, logged: Rewards) -> Rewards:
        """Return the log's own rewards; raises InputError if it has none."""
        if logged.missing:
            raise InputError(
                "the log has no rewards: define one with reward.source (goal_distance, success or a "
                "module:function of yours)"
            )
        return logged


class Success(Reward):
    """1 where the log counts the task as solved."""

    Parameters = SuccessReward
    of_the_log = True

    def labels(self, transitions: Transitions, logged: Rewards) -> Rewards:
        """Return 0 or 1; raises InputError if the log does not report successes."""
        if not logged.reports_success:
            raise InputError(
                "reward.source success: the log does not report successes; name its column in "
                "dataset.columns.successes, or define another reward"
            )
        return Rewards(logged.successes.float(), logged.successes)


class GoalDistance(Reward):
    """``1 / (1 + (d / scale)^2)`` with the Euclidean distance d between the state arrived in and a target.

    The task counts as solved within the tolerance.
    """

    Parameters = GoalDistanceReward

    def labels(self, transitions: Transitions, logged: Rewards) -> Rewards:
        """Return rewards in (0, 1]; raises InputError on images and unknown dimensions."""
        goal: GoalDistanceReward = self.parameters
        # The model requires them together.
        assert goal.indices is not None
        assert goal.target is not None
        assert goal.scale is not None
        assert goal.tolerance is not None
        if transitions.images:
            raise InputError(
                "reward.source goal_distance: observations are images, which have no distance to a target; "
                "name a module:function of yours"
            )
        size = transitions.observations.shape[1]
        outside = [i for i in goal.indices if not -size <= i < size]
        if outside:
            raise InputError(f"reward.indices: {outside[0]} is no dimension of observations that have {size}")
        target = torch.tensor(goal.target)
        distance = torch.cat(
            [
                (transitions.arrivals(part)[:, list(goal.indices)] - target).norm(dim=1)
                for part in torch.split(torch.arange(len(transitions)), BLOCK)
            ]
        )
        return Rewards(
            rewards=1.0 / (1.0 + (distance / goal.scale).square()), successes=distance <= goal.tolerance
        )


def warn_of_rare_goal(labels: Rewards) -> None:
    """Log a warning if hardly any logged state counts as success under the reward in force."""
    if not labels.reports_success:
        return
    count, total = int(labels.successes.sum()), len(labels.successes)
    if count < FEW_STATES and count < SMALL_SHARE * total:
        logger.warning(
            "Only %d of %d logged states count as success under this reward. There is little to learn from: "
            "expect a policy that does not reach the goal. Choose a goal that the log reaches more often, or a "
            "larger reward.tolerance",
            count, total,
        )  # fmt: skip


class UserReward(Reward):
    """A function of the user's own, such as ``my_rewards:low_hand``."""

    Parameters = FunctionReward

    def check(self) -> None:
        """Raise InputError if the function cannot be imported."""
        user_function("reward.source", self.parameters.source)

    def labels(self, transitions: Transitions, logged: Rewards) -> Rewards:
        """Return the function's rewards, and its successes if it returns them."""
        source = self.parameters.source
        function = user_function("reward.source", source)
        states = transitions.states()
        try:
            result = function(states, transitions.actions, transitions.arrivals())
        except Exception as error:
            raise InputError(
                f"reward.source '{source}' failed on {len(states)} transitions ({one_line(error)}); it is "
                "called with observations, actions and next observations"
            ) from error
        both = isinstance(result, tuple) and len(result) == 2
        rewards, successes = result if both else (result, torch.zeros(len(states), dtype=torch.bool))
        for name, values in (("reward", rewards), ("success", successes)):
            if not isinstance(values, Tensor) or values.shape != (len(states),):
                returned = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
                raise InputError(
                    f"reward.source '{source}' returned {returned}, not a tensor of one {name} for each of the "
                    f"{len(states)} transitions"
                )
        rewards = rewards.detach().float()
        bad = ~torch.isfinite(rewards)
        if bad.any():
            first = int(bad.nonzero()[0])
            raise InputError(
                f"reward.source '{source}' returned {float(rewards[first])} for transition {first}"
            )
        return Rewards(rewards, successes.bool(), torch.tensor(both))
