"""Rewards: labels of the logged transitions, chosen after the dynamics were trained."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from cvl_pipeline.errors import InputError, one_line
from cvl_pipeline.imports import place_in_user_code, user_function
from cvl_pipeline.readout.parameters import (
    REWARDS,
    FunctionReward,
    GoalDistanceReward,
    LoggedReward,
    RewardParameters,
    SuccessReward,
)

if TYPE_CHECKING:
    from torch import Tensor

    from cvl_pipeline.episodes.container import Rewards, Transitions

logger = logging.getLogger(__name__)

NO_REWARDS = (
    "the log has no rewards: define one with reward.source (goal_distance, success or your own "
    "module:function)"
)
"""The error about a log whose own rewards are asked for, and which has none."""
FEW_STATES, SMALL_SHARE = 100, 0.01
"""A warning is logged if fewer states, in number and in share, count as success."""


class Reward(ABC):
    """A reward, which labels transitions."""

    Parameters: ClassVar[type[RewardParameters]] = RewardParameters
    needs_logged_rewards: ClassVar[bool] = False
    """Whether it is the log's own reward, which a log may lack."""
    needs_successes: ClassVar[bool] = False
    """Whether it is made of reported successes, which a log or an environment may lack."""

    def __init__(self, parameters: Any) -> None:
        """Keep the parameters."""
        self.parameters = parameters

    @abstractmethod
    def labels(self, transitions: Transitions, logged: Rewards) -> Rewards:
        """Return reward and success of every transition, (N,) each."""

    def check(self) -> None:  # noqa: B027, most rewards have nothing to check
        """Raise InputError if the reward cannot be used. Called before a run starts."""


def label(transitions: Transitions, logged: Rewards, parameters: RewardParameters) -> Rewards:
    """Label every transition with the reward in force.

    Args:
        transitions: N transitions.
        logged: rewards and successes of the log itself.
        parameters: the reward's parameters.

    Returns:
        Rewards and successes, (N,) each.

    Raises:
        InputError: a dimension that the observations do not have; a log without rewards or successes, if the
            reward needs them; a function that cannot be imported, fails, or does not return one finite number
            per transition.
    """
    from cvl_pipeline.episodes.validation import validate_rewards  # not above: it imports torch

    labels = REWARDS.create(parameters).labels(transitions, logged)
    validate_rewards(labels, transitions)
    return labels


def label_rollouts(transitions: Transitions, reported: Rewards, parameters: RewardParameters) -> Rewards:
    """Label the rollouts of a policy; see ``label``.

    If the reward is the environment's success, and the environment reports none, rewards are missing (NaN).
    """
    import torch

    if REWARDS.of(parameters).needs_successes and not reported.reports_success:
        return replace(reported, rewards=torch.full_like(reported.rewards, torch.nan))
    return label(transitions, reported, parameters)


def check_reward(parameters: RewardParameters) -> None:
    """Raise InputError if the reward cannot be used, such as a function that cannot be imported."""
    REWARDS.create(parameters).check()


class Logged(Reward):
    """The log's own reward."""

    Parameters = LoggedReward
    needs_logged_rewards = True

    def labels(self, transitions: Transitions, logged: Rewards) -> Rewards:
        """Return the log's own rewards; raise InputError if it has none."""
        if logged.missing:
            raise InputError(NO_REWARDS)
        return logged


class Success(Reward):
    """1 if the log counts the task as solved, else 0."""

    Parameters = SuccessReward
    needs_successes = True

    def labels(self, transitions: Transitions, logged: Rewards) -> Rewards:
        """Return 0 or 1; raise InputError if the log does not report successes."""
        from cvl_pipeline.episodes.container import Rewards

        if not logged.reports_success:
            raise InputError(
                "reward.source success: the log does not report successes; name its column in "
                "dataset.columns.successes, or define another reward"
            )
        return Rewards(logged.successes.float(), logged.successes)


class GoalDistance(Reward):
    """``1 / (1 + (d / scale)^2)``, with the Euclidean distance d of the next state from a target.

    The task counts as solved within the tolerance.
    """

    Parameters = GoalDistanceReward

    def labels(self, transitions: Transitions, logged: Rewards) -> Rewards:
        """Return rewards in (0, 1]; raise InputError for images and unknown dimensions."""
        import torch

        from cvl_pipeline.episodes.container import Rewards, block_rows

        goal: GoalDistanceReward = self.parameters
        # The model requires them together.
        assert goal.indices is not None
        assert goal.target is not None
        assert goal.scale is not None
        assert goal.tolerance is not None
        take, size = self._vector(transitions)
        outside = [i for i in goal.indices if not -size <= i < size]
        if outside:
            raise InputError(
                f"reward.indices: {outside[0]} is not a dimension of the observations, which have {size}"
            )
        target = torch.tensor(goal.target)
        rows = block_rows(transitions.observations)  # whole rows are copied, with their images
        distance = torch.cat(
            [
                (take(transitions.arrivals(part))[:, list(goal.indices)] - target).norm(dim=1)
                for part in torch.split(torch.arange(len(transitions)), rows)
            ]
        )
        return Rewards(
            rewards=1.0 / (1.0 + (distance / goal.scale).square()), successes=distance <= goal.tolerance
        )

    def _vector(self, transitions: Transitions) -> tuple[Callable[[Tensor], Tensor], int]:
        """How to take the vector from observations, and its size; raises InputError if there is none."""
        layout, name = transitions.parts, self.parameters.part
        images = "are images, which have no distance to a target; use your own module:function"
        if layout is None:
            if name is not None:
                raise InputError(f"reward.part is {name}, but observations have no parts: leave it out")
            if transitions.images:
                raise InputError(f"reward.source goal_distance: observations {images}")
            return lambda rows: rows, transitions.observations.shape[1]
        if name is None:
            raise InputError(
                "reward.source goal_distance: observations have the parts "
                f"{', '.join(layout.names)}; set reward.part to the one that has the goal"
            )
        part = layout[name]
        if part.image:
            raise InputError(f"reward.part {name}: observations of it {images}")
        return lambda rows: layout.part(rows, name), part.shape[0]


def warn_of_rare_goal(labels: Rewards) -> None:
    """Log a warning if hardly any logged state counts as success under the reward in force."""
    if not labels.reports_success:
        return
    count, total = int(labels.successes.sum()), len(labels.successes)
    if count < FEW_STATES and count < SMALL_SHARE * total:
        logger.warning(
            "%d of %d logged states count as success under this reward, so the policy will probably not "
            "reach the goal. Choose a goal that the log reaches more often, or a larger reward.tolerance",
            count, total,
        )  # fmt: skip


class UserReward(Reward):
    """Your own function, such as ``my_rewards:low_hand``.

    It takes observations (N, O), actions (N, A) and next observations (N, O), and returns rewards (N,), on arrival
    in the next observation, or a tuple of rewards and successes (N,) bool. Observations of several parts are a
    dictionary of the parts, (N, O) or (N, H, W, C) each.
    """

    Parameters = FunctionReward

    def check(self) -> None:
        """Raise InputError if the function cannot be imported."""
        user_function("reward.source", self.parameters.source)

    def labels(self, transitions: Transitions, logged: Rewards) -> Rewards:
        """Return the function's rewards, and its successes if it returns them."""
        import torch

        from cvl_pipeline.episodes.container import Rewards

        source = self.parameters.source
        function = user_function("reward.source", source)
        states = transitions.states()
        try:
            arrivals = transitions.unpacked(transitions.arrivals())
            # Copies, which the function may change.
            result = function(transitions.unpacked(states), transitions.actions.clone(), arrivals)
        except (Exception, SystemExit) as error:
            place = place_in_user_code(error)
            at = f" at {place[1]}" if place else ""
            raise InputError(
                f"reward.source '{source}' failed on {len(states)} transitions ({one_line(error)}{at}); it is "
                "called with observations, actions and next observations"
            ) from error
        both = isinstance(result, tuple) and len(result) == 2
        rewards, successes = result if both else (result, torch.zeros(len(states), dtype=torch.bool))
        for name, values in (("reward", rewards), ("success", successes)):
            if not isinstance(values, torch.Tensor) or values.shape != (len(states),):
                returned = tuple(values.shape) if isinstance(values, torch.Tensor) else type(values).__name__
                raise InputError(
                    f"reward.source '{source}' returned {returned}, not a tensor of one {name} per transition, "
                    f"({len(states)},)"
                )
        rewards = rewards.detach().float()
        bad = ~torch.isfinite(rewards)
        if bad.any():
            first = int(bad.nonzero()[0])
            raise InputError(
                f"reward.source '{source}' returned {float(rewards[first])} for transition {first}; return finite "
                "numbers"
            )
        return Rewards(rewards, successes.bool(), torch.tensor(both))
