"""The contrastive critic: an implicit, multi-step model of the dynamics."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from cvl_pipeline.episodes.container import UNLESS_NONE, Normalisation
from cvl_pipeline.episodes.parts import Layout
from cvl_pipeline.errors import unknown_name
from cvl_pipeline.networks.encoder import observation_encoder
from cvl_pipeline.networks.mlp import MLP, Standardise

REPRESENTATIONS = ("unit_norm", "raw")
OFFSET_FREQUENCIES = 8
"""Number of sines, and of cosines, that encode an offset; their periods are 2 pi to about 20 000 steps."""


@dataclass(frozen=True)
class CriticShape:
    """Shape of a critic, from which it is rebuilt before its weights are loaded.

    Attributes:
        observation_shape: (O,), or (H, W, C) of images, or (B,) of packed parts.
        action_size: A.
        hidden: sizes of the hidden layers of both encoders.
        representation_size: D, size of phi and psi.
        representation: ``unit_norm`` (on the unit sphere) or ``raw``.
        temperature: initial or fixed value of the temperature.
        learned_temperature: whether it is trained (unit_norm only; raw representations learn their own scale).
        discount: gamma of the p_gamma that the critic is trained on. Without horizon conditioning, the readout
            must use the same.
        horizon_conditioning: phi also takes the offset k of the future state.
        encoder: parameters of the observation encoder, as plain values.
        parts: of packed observations; None: an observation is one vector or one image.
    """

    observation_shape: tuple[int, ...]
    action_size: int
    hidden: tuple[int, ...]
    representation_size: int
    representation: str
    temperature: float
    learned_temperature: bool
    discount: float
    horizon_conditioning: bool
    encoder: dict[str, Any] = field(default_factory=dict)
    parts: Layout | None = field(default=None, metadata=UNLESS_NONE)

    def __post_init__(self) -> None:
        """Raise InputError if the representation is unknown."""
        if self.representation not in REPRESENTATIONS:
            raise unknown_name("representation", self.representation, list(REPRESENTATIONS))


def offset_code(offsets: Tensor) -> Tensor:
    """Sines and cosines of an offset at geometrically spaced frequencies, (...) -> (..., 2 F).

    This is the positional encoding of Vaswani et al. (2017), section 3.5, with F = OFFSET_FREQUENCIES.
    """
    frequencies = 10_000.0 ** (-torch.arange(OFFSET_FREQUENCIES, device=offsets.device) / OFFSET_FREQUENCIES)
    angles = offsets.unsqueeze(-1) * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def _joined(first: Tensor, second: Tensor) -> Tensor:
    """Join the last axes of two tensors, whose leading axes are broadcast, (..., I) and (..., J) -> (..., I + J)."""
    # Not the shapes alone: of different lengths, they may still have a first size to compare, which is unknown in an
    # exported program.
    if first.ndim != second.ndim or first.shape[:-1] != second.shape[:-1]:
        rows = torch.broadcast_shapes(first.shape[:-1], second.shape[:-1])  # type: ignore[no-untyped-call]
        first, second = first.expand(*rows, -1), second.expand(*rows, -1)
    return torch.cat([first, second], dim=-1)


class ContrastiveCritic(nn.Module):
    """``f(s, a, s') = phi(s, a) . psi(s') / temperature``, the log density ratio that CVL learns.

    At the optimum of the contrastive loss ``f = log p_gamma(s' | s, a) / p(s')`` up to a constant
    (Mazoure et al. 2023, section 4.1). The critic standardises its inputs, so callers pass observations and
    actions from the log. With horizon conditioning, it is ``f(s, a, k, s') = log p_k(s' | s, a) / p(s')``, where
    p_k is the distribution of the state k steps ahead.
    """

    def __init__(self, shape: CriticShape, normalisation: Normalisation | None = None) -> None:
        """Build the encoders.

        Args:
            shape: the critic's shape.
            normalisation: statistics of the inputs; None: ``load_state_dict`` sets them.
        """
        super().__init__()
        self.shape = shape
        self.encode_observation = observation_encoder(
            shape.observation_shape, normalisation, shape.encoder, shape.parts
        )
        self.standardise_action = Standardise(shape.action_size)
        if normalisation is not None:
            self.standardise_action.fit(normalisation.action_mean, normalisation.action_std)
        features = self.encode_observation.features
        offset_size = 2 * OFFSET_FREQUENCIES if shape.horizon_conditioning else 0
        unit = shape.representation == "unit_norm"
        self.phi_network = MLP(
            features + shape.action_size + offset_size, shape.hidden, shape.representation_size, unit
        )
        # One more input marks the absorbing state, which has no observation.
        self.psi_network = MLP(features + 1, shape.hidden, shape.representation_size, unit)
        self.log_temperature = nn.Parameter(
            torch.tensor(math.log(shape.temperature)), requires_grad=shape.learned_temperature
        )

    @property
    def temperature(self) -> Tensor:
        """The temperature, a positive scalar."""
        return self.log_temperature.exp()

    def phi(self, observations: Tensor, actions: Tensor, offsets: Tensor | None = None) -> Tensor:
        """Representation of state-action pairs, (..., O) and (..., A) -> (..., D).

        The leading axes are broadcast, so a state with many actions is encoded once.

        Args:
            observations: s.
            actions: a.
            offsets: k, (...) int64; only, and always, with horizon conditioning.

        Raises:
            ValueError: offsets without horizon conditioning, or the reverse.
        """
        return self.finish(self.phi_network(self.phi_inputs(observations, actions, offsets)))

    def phi_inputs(self, observations: Tensor, actions: Tensor, offsets: Tensor | None = None) -> Tensor:
        """What phi's network receives; see ``phi``."""
        if (offsets is not None) != self.shape.horizon_conditioning:
            raise ValueError("give offsets if and only if the critic has horizon_conditioning")
        inputs = self.inputs(observations, actions)
        return inputs if offsets is None else _joined(inputs, offset_code(offsets))

    def inputs(self, observations: Tensor, actions: Tensor) -> Tensor:
        """What phi's network receives, without the offset: encoded states and standardised actions.

        (..., O) and (..., A) -> (..., features + A); the leading axes are broadcast.
        """
        return self.inputs_of(self.encode_observation(observations), actions)

    def inputs_of(self, features: Tensor, actions: Tensor) -> Tensor:
        """The same, of states that are encoded, (..., features)."""
        return _joined(features, self.standardise_action(actions))

    def psi(self, futures: Tensor, absorbed: Tensor) -> Tensor:
        """Representation of future states, (..., O) and (...) bool -> (..., D).

        For ``absorbed`` states, the encoded observation is replaced by zeros, and the indicator is 1.
        """
        return self.finish(self.psi_network(self.psi_inputs(futures, absorbed)))

    def psi_inputs(self, futures: Tensor, absorbed: Tensor) -> Tensor:
        """What psi's network receives, (..., O) and (...) -> (..., features + 1)."""
        flag = absorbed.unsqueeze(-1)
        inputs = torch.where(flag, 0.0, self.encode_observation(futures))
        return torch.cat([inputs, flag.to(inputs.dtype)], dim=-1)

    def factors(self, phi: Tensor, psi: Tensor) -> tuple[Tensor, Tensor]:
        """Return the factors of the logits, phi / temperature and psi, in single precision.

        At temperature 0.1, bfloat16 would round the logits to 0.04, so multiply them outside of autocast.
        """
        return phi.float() / self.temperature, psi.float()

    @property
    def bound(self) -> float | None:
        """Largest absolute value that a logit can have; None: unknown before it is computed."""
        if self.shape.representation == "raw" or self.shape.learned_temperature:
            return None
        return 1.0 / self.shape.temperature

    def logits(self, phi: Tensor, psi: Tensor) -> Tensor:
        """The logits f of all pairs, (B, D) and (K, D) -> (B, K), in single precision."""
        with torch.autocast(phi.device.type, enabled=False):
            left, right = self.factors(phi, psi)
            return left @ right.T

    def finish(self, representation: Tensor) -> Tensor:
        """Scale what a network returns, (..., D), which is linear, to phi or psi."""
        if self.shape.representation == "unit_norm":
            return representation  # which the network has scaled
        # This divides the logits by sqrt(D), so their spread does not grow with D.
        return representation.float() / math.sqrt(math.sqrt(self.shape.representation_size))
