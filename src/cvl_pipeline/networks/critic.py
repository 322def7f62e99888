"""The contrastive critic: an implicit, multi-step model of the dynamics."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cvl_pipeline.errors import unknown_name
from cvl_pipeline.networks.mlp import Standardise, mlp
from cvl_pipeline.trajectories.container import Normalisation

REPRESENTATIONS = ("unit_norm", "raw")


@dataclass(frozen=True)
class CriticShape:
    """What is needed to rebuild a critic before its weights are loaded.

    Attributes:
        observation_size: O.
        action_size: A.
        hidden: sizes of the hidden layers of both encoders.
        representation_size: D, size of phi and psi.
        representation: ``unit_norm`` (on the unit sphere) or ``raw``.
        temperature: its initial, or fixed, value.
        learned_temperature: train it (unit_norm only; raw representations scale themselves).
        discount: gamma of the p_gamma that the critic was trained on; the readout must use the same.
    """

    observation_size: int
    action_size: int
    hidden: tuple[int, ...]
    representation_size: int
    representation: str
    temperature: float
    learned_temperature: bool
    discount: float

    def __post_init__(self) -> None:
        """Raise InputError on an unknown kind of representation."""
        if self.representation not in REPRESENTATIONS:
            raise unknown_name("representation", self.representation, list(REPRESENTATIONS))


class ContrastiveCritic(nn.Module):
    """``f(s, a, s') = phi(s, a) . psi(s') / temperature``, the log density ratio that CVL learns.

    At the optimum of the contrastive loss ``f = log p_gamma(s' | s, a) / p(s')`` up to a constant
    (Mazoure et al. 2023, section 4.1). Inputs are standardised inside, so callers pass observations and
    actions as the log has them.
    """

    def __init__(self, shape: CriticShape, normalisation: Normalisation | None = None) -> None:
        """Build the encoders.

        Args:
            shape: sizes and kind.
            normalisation: statistics of the inputs; None leaves them to ``load_state_dict``.
        """
        super().__init__()
        self.shape = shape
        self.standardise_observation = Standardise(shape.observation_size)
        self.standardise_action = Standardise(shape.action_size)
        if normalisation is not None:
            self.standardise_observation.fit(normalisation.observation_mean, normalisation.observation_std)
            self.standardise_action.fit(normalisation.action_mean, normalisation.action_std)
        self.phi_network = mlp(
            shape.observation_size + shape.action_size, shape.hidden, shape.representation_size
        )
        # One more input marks the absorbing state, whose observation does not exist.
        self.psi_network = mlp(shape.observation_size + 1, shape.hidden, shape.representation_size)
        self.log_temperature = nn.Parameter(
            torch.tensor(math.log(shape.temperature)), requires_grad=shape.learned_temperature
        )

    @property
    def temperature(self) -> Tensor:
        """Scalar, positive."""
        return self.log_temperature.exp()

    def phi(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Representation of state-action pairs, (..., O) and (..., A) -> (..., D)."""
        inputs = torch.cat(
            [self.standardise_observation(observations), self.standardise_action(actions)], dim=-1
        )
        return self._finish(self.phi_network(inputs))

    def psi(self, futures: Tensor, absorbed: Tensor) -> Tensor:
        """Representation of future states, (..., O) and (...) bool -> (..., D).

        Where ``absorbed``, the observation is replaced by zeros and the indicator set.
        """
        flag = absorbed.unsqueeze(-1)
        inputs = self.standardise_observation(futures).masked_fill(flag, 0.0)
        return self._finish(self.psi_network(torch.cat([inputs, flag.to(inputs.dtype)], dim=-1)))

    def logits(self, phi: Tensor, psi: Tensor) -> Tensor:
        """The logits f of all pairs, (B, D) and (K, D) -> (B, K)."""
        return phi @ psi.T / self.temperature

    def _finish(self, representation: Tensor) -> Tensor:
        if self.shape.representation == "unit_norm":
            return functional.normalize(representation, dim=-1)
        # The logits are then divided by sqrt(D), so their spread does not grow with D.
        return representation / math.sqrt(math.sqrt(self.shape.representation_size))

    def description(self) -> dict[str, Any]:
        """The shape as plain values, for storage."""
        return asdict(self.shape)
