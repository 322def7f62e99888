"""Regression of logged returns on states and actions, the simplest estimate of the values that CVL estimates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from cvl_pipeline.api import EpisodeData, QFunction
from cvl_pipeline.episodes.preparation import logged_shares, observed_returns
from cvl_pipeline.networks.critic import ContrastiveCritic, CriticShape
from cvl_pipeline.readout.readouts import Readout
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
    shape = CriticShape(
        observation_shape=tuple(transitions.observations.shape[1:]), action_size=transitions.actions.shape[1],
        hidden=hidden, representation_size=1, representation="raw", temperature=1.0, learned_temperature=False,
        discount=discount, horizon_conditioning=False,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(seed, "initialisation", 0))
        critic = ContrastiveCritic(shape, data.normalisation)
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
    readout = RegressionReadout(
        temperature=torch.ones(()), horizons=torch.zeros(0, dtype=torch.int64), discount=discount,
        self_normalised=True, mean=mean.float(), std=std.float(),
    )  # fmt: skip
    return QFunction(critic.requires_grad_(False).eval(), readout)
