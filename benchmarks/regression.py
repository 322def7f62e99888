"""Regressions on returns without a critic.

One takes logged returns, the simplest estimate of the values that CVL estimates; the other is CVL's own regression,
which takes lambda-returns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from cvl_pipeline.api import EpisodeData, QFunction
from cvl_pipeline.episodes.preparation import logged_shares, observed_returns
from cvl_pipeline.networks.critic import ContrastiveCritic, CriticShape
from cvl_pipeline.readout.parameters import RegressionParameters
from cvl_pipeline.readout.readouts import Readout
from cvl_pipeline.readout.regression import regress
from cvl_pipeline.training.least_squares import Batch, fit_least_squares
from cvl_pipeline.training.seeds import stream_seed

BATCH = 256
LEARNING_RATE = 1e-3


@dataclass(frozen=True)
class RegressionReadout(Readout):
    """Undo the standardisation of the targets of a regression.

    Attributes:
        mean: scalar, mean of the targets, ``(1 - gamma) G``.
        std: scalar, their standard deviation.
    """

    mean: Tensor
    std: Tensor

    def expectation(self, phi: Tensor) -> Tensor:
        """Expected reward, (B, 1) -> (B,)."""
        return self.mean + self.std * phi.squeeze(-1)


@dataclass(frozen=True)
class ZeroReadout(Readout):
    """Expect no reward."""

    def expectation(self, phi: Tensor) -> Tensor:
        """Zero, (B, 1) -> (B,)."""
        return phi.new_zeros(len(phi))


PLAIN: dict[str, Any] = {
    "temperature": torch.ones(()), "horizons": torch.zeros(0, dtype=torch.int64), "self_normalised": True,
}  # fmt: skip
"""Settings of a readout that are without effect here."""


def regress_returns(
    data: EpisodeData,
    discount: float,
    steps: int = 4000,
    hidden: tuple[int, ...] = (256, 256),
    seed: int = 0,
) -> QFunction:
    """Fit Q(s, a) to the logged returns of the training episodes by least squares.

    The network is the one that CVL uses for phi, with a single output. A return counts as much as the share of its
    future that is logged, so the last steps before a timeout hardly count.

    Args:
        data: the episodes, with rewards.
        discount: gamma.
        steps: gradient steps of Adam, with batches of BATCH and a learning rate that falls from LEARNING_RATE to zero
            along half a cosine.
        hidden: sizes of the hidden layers.
        seed: of the initial weights and the batches.

    Returns:
        Q as a function of observations (B, O) and actions (B, A). Its parts can be given to ``api.extract_policy``.
    """
    assert data.rewards is not None
    transitions = data.transitions
    index = transitions.transition_index(data.split.train)
    targets = (1.0 - discount) * observed_returns(data.rewards.rewards, transitions, discount)[index]
    shares = logged_shares(transitions, discount)[index]
    mean = (shares * targets).sum() / shares.sum()
    std = ((shares * (targets - mean).square()).sum() / shares.sum()).sqrt().clamp(min=1e-8)
    targets, weights = ((targets - mean) / std).float(), (shares / shares.mean()).float()
    critic = _untrained(data, discount, hidden, seed)
    generator = Generator().manual_seed(stream_seed(seed, "training", 0))

    def batches() -> Iterator[Batch]:
        for _ in range(steps):
            rows = torch.randint(len(index), (BATCH,), generator=generator)
            pairs = transitions.states(index[rows]), transitions.actions[index[rows]]
            yield critic.inputs(*pairs), targets[rows], weights[rows]

    # The encoder of vectors has no parameters.
    fit_least_squares(
        critic.phi_network, batches(), batch_size=BATCH, learning_rate=LEARNING_RATE, cosine_steps=steps
    )
    readout = RegressionReadout(**PLAIN, discount=discount, mean=mean.float(), std=std.float())
    return QFunction(critic.requires_grad_(False).eval(), readout)


def regress_alone(
    data: EpisodeData,
    discount: float,
    critic_discount: float,
    parameters: RegressionParameters,
    seed: int = 0,
) -> QFunction:
    """Fit CVL's own regression (``readout.regression``) beside a readout that is zero everywhere.

    Args:
        data: the episodes, with rewards.
        discount: gamma.
        critic_discount: c, of the critic that CVL would have; it sets the lambda of the returns.
        parameters: of the regression.
        seed: of the initial weights and the batches.

    Returns:
        Q; zero everywhere if nothing can be fitted (see ``regress``).
    """
    assert data.rewards is not None
    critic = _untrained(data, critic_discount, (1,), seed).requires_grad_(False).eval()
    zero = ZeroReadout(**PLAIN, discount=discount)
    alone = parameters.model_copy(update={"readout_share": 0.0})
    return QFunction(critic, regress(critic, zero, data.transitions, data.rewards, data.split, alone, seed))


def _untrained(data: EpisodeData, discount: float, hidden: tuple[int, ...], seed: int) -> ContrastiveCritic:
    """A critic with one output and its initial weights, which standardises states and actions."""
    shape = CriticShape(
        observation_shape=tuple(data.transitions.observations.shape[1:]),
        action_size=data.transitions.actions.shape[1], hidden=hidden, representation_size=1, representation="raw",
        temperature=1.0, learned_temperature=False, discount=discount, horizon_conditioning=False,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(seed, "initialisation", 0))
        return ContrastiveCritic(shape, data.normalisation)
