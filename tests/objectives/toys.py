"""Critics whose Q is known, and readouts that go with them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cvl_pipeline.networks.critic import ContrastiveCritic, CriticShape
from cvl_pipeline.readout.q_function import QFunction
from cvl_pipeline.readout.readouts import ExactReadout

DISCOUNT = 0.5

# Two references, equally likely, worth 1 and 0.
READOUT = ExactReadout(
    temperature=torch.tensor(1.0),
    horizons=torch.zeros(0, dtype=torch.int64),
    discount=DISCOUNT,
    self_normalised=True,
    psi=torch.eye(2),
    rewards=torch.tensor([1.0, 0.0]),
    log_weights=torch.full((2,), -math.log(2.0)),
)


class KnownCritic(ContrastiveCritic):
    """``f(s, a, first reference) = logit(s, a)``, zero for the second, so that Q = 2 sigmoid(logit)."""

    def __init__(self, action_size: int = 2) -> None:
        super().__init__(CriticShape((3,), action_size, (), 2, "raw", 1.0, False, DISCOUNT, False))
        with torch.no_grad():  # unused; the same in every critic, so that fingerprints are the same too
            for parameter in self.parameters():
                parameter.zero_()

    def logit(self, observations: Tensor, actions: Tensor) -> Tensor:
        """(..., O) and (..., A) -> (...)."""
        raise NotImplementedError

    def phi(self, observations: Tensor, actions: Tensor, offsets: Tensor | None = None) -> Tensor:
        logit = self.logit(observations, actions)
        return torch.stack([logit, torch.zeros_like(logit)], dim=-1)

    def psi(self, futures: Tensor, absorbed: Tensor) -> Tensor:
        """Every future state is like the first reference."""
        return torch.tensor([1.0, 0.0]).expand(*absorbed.shape, 2)


class LinearCritic(KnownCritic):
    """The logit is ``g s_0 + h a_0``."""

    def __init__(self, state_weight: float, action_weight: float) -> None:
        super().__init__()
        self.weights = (state_weight, action_weight)

    def logit(self, observations: Tensor, actions: Tensor) -> Tensor:
        return self.weights[0] * observations[..., 0] + self.weights[1] * actions[..., 0]


class TargetCritic(KnownCritic):
    """Q is highest at the action (0.5, -0.5), whatever the state."""

    TARGET = (0.5, -0.5)

    def logit(self, observations: Tensor, actions: Tensor) -> Tensor:
        return -(actions - torch.tensor(self.TARGET)).square().sum(-1)


class SignCritic(KnownCritic):
    """Of three discrete actions, the first is best where s_0 > 0 and the second where s_0 < 0."""

    def __init__(self) -> None:
        super().__init__(action_size=3)

    def logit(self, observations: Tensor, actions: Tensor) -> Tensor:
        return 2.0 * observations[..., 0] * (actions[..., 0] - actions[..., 1])

    @staticmethod
    def best(observations: Tensor) -> Tensor:
        """Index of the best action, (B,)."""
        return (observations[:, 0] < 0).long()


def q_of(critic: ContrastiveCritic) -> QFunction:
    return QFunction(critic, READOUT)
