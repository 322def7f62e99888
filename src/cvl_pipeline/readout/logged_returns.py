"""Returns of a log and the lambda-returns that follow from values, in the scale that networks learn."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cvl_pipeline.episodes.container import Transitions
from cvl_pipeline.episodes.preparation import (
    discounted_returns,
    goes_on,
    last_steps,
    logged_shares,
    observed_returns,
)


@dataclass(frozen=True)
class LoggedReturns:
    """The rewards of a log, its returns as mean rewards, and the scale in which networks learn them.

    Attributes:
        transitions: all episodes.
        rewards: (N,).
        discount: gamma.
        short: c, at most gamma; lambda is c / gamma.
        returns: (N,) float64, observed.
        shares: (N,) of the discounted future that the log has.
        mean: of the returns that decide the scale, weighted by shares.
        deviation: of the same returns; 0 if there are none.
    """

    transitions: Transitions
    rewards: Tensor
    discount: float
    short: float
    returns: Tensor
    shares: Tensor
    mean: float
    deviation: float

    @classmethod
    def of(
        cls, transitions: Transitions, rewards: Tensor, discount: float, short: float, index: Tensor
    ) -> LoggedReturns:
        """Work out returns and scale.

        Args:
            transitions: all episodes.
            rewards: (N,).
            discount: gamma.
            short: c, at most gamma.
            index: (M,) int64, the transitions that decide the scale.
        """
        returns = (1.0 - discount) * observed_returns(rewards, transitions, discount)
        shares = logged_shares(transitions, discount)
        there = len(index) > 0
        return cls(
            transitions, rewards, discount, short, returns, shares,
            mean=float((shares[index] @ returns[index]) / shares[index].sum()) if there else 0.0,
            deviation=float(returns[index].std(correction=0)) if there else 0.0,
        )  # fmt: skip

    def followed(self, values: Tensor) -> Tensor:
        """Lambda-returns if values, (N,) in the networks' scale, follow the steps, (N,) float64."""
        return lambda_returns(
            self.rewards, self.mean + self.deviation * values, self.transitions, self.discount, self.short
        )

    def standard(self, returns: Tensor) -> Tensor:
        """Returns in the networks' scale, (N,)."""
        return ((returns - self.mean) / self.deviation).float()


def lambda_returns(
    rewards: Tensor, values: Tensor, transitions: Transitions, discount: float, short: float
) -> Tensor:
    """Lambda-returns as mean rewards, with lambda = c / gamma, (N,) float64 (Sutton 1988).

    ``G_t = (1 - gamma) r_t + gamma ((1 - lambda) V(s_{t+1}) + lambda G_{t+1})``. After a terminated episode nothing
    follows, and at the end of a truncated one V follows.

    Args:
        rewards: (N,).
        values: (N,), V of the state that each transition leads to, as a mean reward.
        transitions: the log.
        discount: gamma.
        short: c, at most gamma.
    """
    weights = torch.where(last_steps(transitions), discount, discount - short) * goes_on(transitions)
    return discounted_returns((1.0 - discount) * rewards + weights * values, transitions, short)


def of_next_pairs(pairs: Tensor, arrivals: Tensor, transitions: Transitions) -> Tensor:
    """Values of the next logged pair, or of the state that an episode's last step leads to, (N,).

    Args:
        pairs: (N,), Q of every logged state and action.
        arrivals: (N,), V of the state that each transition leads to.
        transitions: the log.
    """
    return torch.where(last_steps(transitions), arrivals, pairs.roll(-1))
