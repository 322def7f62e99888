"""Policies' networks."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cvl_pipeline.networks.mlp import Standardise, mlp
from cvl_pipeline.trajectories.container import Normalisation


@dataclass(frozen=True)
class ActorShape:
    """What is needed to rebuild an actor before its weights are loaded."""

    observation_size: int
    action_size: int
    hidden: tuple[int, ...]


class GaussianActor(nn.Module):
    """``pi(a | s) = N(mean(s), diag(std^2))`` with the mean squashed into the action bounds by tanh.

    The noise is added after squashing and its scale does not depend on the state. A density of the
    squashed sample would be infinite at the bounds, where logged actions that an environment has
    clipped lie in numbers.
    """

    action_low: Tensor
    action_high: Tensor
    LOG_STD_RANGE = (-3.0, 1.0)

    def __init__(
        self,
        shape: ActorShape,
        normalisation: Normalisation | None = None,
        action_bounds: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """Build the network.

        Args:
            shape: sizes.
            normalisation: statistics of the observations; None leaves them to ``load_state_dict``.
            action_bounds: lowest and highest action, (A,) each; likewise.
        """
        super().__init__()
        self.shape = shape
        self.standardise_observation = Standardise(shape.observation_size)
        if normalisation is not None:
            self.standardise_observation.fit(normalisation.observation_mean, normalisation.observation_std)
        low, high = action_bounds or (-torch.ones(shape.action_size), torch.ones(shape.action_size))
        self.register_buffer("action_low", low.clone())
        self.register_buffer("action_high", high.clone())
        self.network = mlp(shape.observation_size, shape.hidden, shape.action_size)
        self.log_std = nn.Parameter(torch.zeros(shape.action_size))

    def forward(self, observations: Tensor) -> Tensor:
        """The mode of the policy, (..., O) -> (..., A), within the action bounds."""
        squashed: Tensor = torch.tanh(self.network(self.standardise_observation(observations)))
        scaled = self.action_low + (squashed + 1.0) / 2.0 * (self.action_high - self.action_low)
        return torch.minimum(torch.maximum(scaled, self.action_low), self.action_high)  # rounding

    def log_prob(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Log pi(a | s), (..., O) and (..., A) -> (...)."""
        log_std = self.log_std.clamp(*self.LOG_STD_RANGE)
        error = (actions - self(observations)) * torch.exp(-log_std)
        density: Tensor = -0.5 * error.square() - log_std - 0.5 * math.log(2.0 * math.pi)
        return density.sum(-1)

    def description(self) -> dict[str, Any]:
        """The shape as plain values, for storage."""
        return asdict(self.shape)
