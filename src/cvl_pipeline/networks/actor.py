"""Policies' networks."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from cvl_pipeline.episodes.container import Normalisation
from cvl_pipeline.networks.encoder import ObservationEncoder
from cvl_pipeline.networks.mlp import mlp


@dataclass(frozen=True)
class ActorShape:
    """What is needed to rebuild an actor before its weights are loaded."""

    observation_shape: tuple[int, ...]  # (O,), or (H, W, C) of images
    action_size: int
    hidden: tuple[int, ...]


class Actor(nn.Module, ABC):
    """A stochastic policy pi(a | s) whose mode is what acts."""

    def __init__(self, shape: ActorShape, normalisation: Normalisation | None = None) -> None:
        """Build the network.

        Args:
            shape: sizes.
            normalisation: statistics of the observations; None leaves them to ``load_state_dict``.
        """
        super().__init__()
        self.shape = shape
        self.encode_observation = ObservationEncoder(shape.observation_shape, normalisation)
        self.network = mlp(self.encode_observation.features, shape.hidden, shape.action_size)

    @abstractmethod
    def forward(self, observations: Tensor) -> Tensor:
        """The mode of the policy, (..., O) -> (..., A)."""

    @abstractmethod
    def log_prob(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Log pi(a | s), (..., O) and (..., A) -> (...)."""

    @abstractmethod
    def noise(self, count: int, generator: Generator) -> Tensor:
        """What makes the policy stochastic, (count, A); see ``act_with_noise``."""

    @abstractmethod
    def act_with_noise(self, observations: Tensor, noise: Tensor) -> Tensor:
        """One action of the policy for each row of noise, (B, O) and (M, A) -> (B, M, A)."""

    def description(self) -> dict[str, Any]:
        """The shape as plain values, for storage."""
        return asdict(self.shape)

    def _outputs(self, observations: Tensor) -> Tensor:
        outputs: Tensor = self.network(self.encode_observation(observations))
        return outputs.float()  # autocast leaves bfloat16


class GaussianActor(Actor):
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
        super().__init__(shape, normalisation)
        low, high = action_bounds or (-torch.ones(shape.action_size), torch.ones(shape.action_size))
        self.register_buffer("action_low", low.clone())
        self.register_buffer("action_high", high.clone())
        self.log_std = nn.Parameter(torch.zeros(shape.action_size))

    @property
    def std(self) -> Tensor:
        """Standard deviation of the noise, (A,), in the action's units."""
        return self.log_std.clamp(*self.LOG_STD_RANGE).exp()

    def forward(self, observations: Tensor) -> Tensor:
        """The mode of the policy, (..., O) -> (..., A), within the action bounds."""
        squashed = torch.tanh(self._outputs(observations))
        return self._bounded(self.action_low + (squashed + 1.0) / 2.0 * (self.action_high - self.action_low))

    def log_prob(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Log pi(a | s), (..., O) and (..., A) -> (...)."""
        error = (actions - self(observations)) / self.std
        density: Tensor = -0.5 * error.square() - self.std.log() - 0.5 * math.log(2.0 * math.pi)
        return density.sum(-1)

    def noise(self, count: int, generator: Generator) -> Tensor:
        """Standard normal, (count, A)."""
        return torch.randn(count, self.shape.action_size, generator=generator, device=generator.device)

    def act_with_noise(self, observations: Tensor, noise: Tensor) -> Tensor:
        """``mean(s) + std * noise``, clipped to the bounds, (B, M, A); differentiable within them."""
        return self._bounded(self(observations).unsqueeze(1) + self.std * noise)

    def _bounded(self, actions: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(actions, self.action_low), self.action_high)


class CategoricalActor(Actor):
    """``pi(a | s) = softmax(network(s))`` over discrete actions, which are one-hot vectors throughout."""

    def forward(self, observations: Tensor) -> Tensor:
        """The likeliest action, one-hot, (..., O) -> (..., A)."""
        return self._one_hot(self._outputs(observations))

    def log_probs(self, observations: Tensor) -> Tensor:
        """Log pi of every action, (..., O) -> (..., A)."""
        return functional.log_softmax(self._outputs(observations), dim=-1)

    def log_prob(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Log pi(a | s), (..., O) and one-hot (..., A) -> (...)."""
        return (self.log_probs(observations) * actions).sum(-1)

    def noise(self, count: int, generator: Generator) -> Tensor:
        """Gumbel, (count, A): the largest of log pi + noise is distributed as pi (Gumbel 1954)."""
        uniform = torch.rand(count, self.shape.action_size, generator=generator, device=generator.device)
        return -(-uniform.clamp(min=1e-20).log()).log()

    def act_with_noise(self, observations: Tensor, noise: Tensor) -> Tensor:
        """The action whose log pi + noise is largest, one-hot, (B, M, A)."""
        return self._one_hot(self.log_probs(observations).unsqueeze(1) + noise)

    def _one_hot(self, scores: Tensor) -> Tensor:
        return functional.one_hot(scores.argmax(-1), self.shape.action_size).to(scores.dtype)
