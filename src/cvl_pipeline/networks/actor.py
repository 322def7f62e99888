"""Policy networks."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Generator, Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from cvl_pipeline.episodes.container import UNLESS_NONE, Normalisation, Transitions
from cvl_pipeline.episodes.parts import Layout
from cvl_pipeline.networks.arrays import as_rows
from cvl_pipeline.networks.encoder import observation_encoder
from cvl_pipeline.networks.mlp import MLP

HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)

SMALLEST_RANGE = 1e-6
"""Action ranges below it count as this: a dimension that never changes has no range."""


@dataclass(frozen=True)
class ActorShape:
    """Sizes needed to rebuild an actor before its weights are loaded."""

    observation_shape: tuple[int, ...]  # (O,), or (H, W, C) for images, or (B,) for packed parts
    action_size: int
    hidden: tuple[int, ...]
    encoder: dict[str, Any] = field(default_factory=dict)  # plain parameters
    parts: Layout | None = field(default=None, metadata=UNLESS_NONE)


class Policy(nn.Module):
    """A deterministic policy, which takes tensors or NumPy arrays."""

    shape: ActorShape
    discrete: bool = False
    """Whether actions are discrete: one-hot vectors as tensors, and integers in ``act``."""

    def act(self, observations: ArrayLike | Mapping[str, ArrayLike]) -> Any:
        """Return the actions for one observation or many, as the environment takes them.

        Args:
            observations: (O,) or (B, O) numbers of any type; images (H, W, C) or (B, H, W, C); or such arrays by name
                of the part, if observations have parts.

        Returns:
            (A,) or (B, A) float32 within the action bounds. Discrete actions are an integer, or (B,) int64.

        Raises:
            InputError: the observations lack a part, have another shape, are not finite numbers, or are images whose
                values are not whole numbers from 0 to 255.
        """
        wanted = tuple(self.shape.observation_shape)
        rows = as_rows(observations, wanted, "observations", "policy", self.shape.parts)
        single = rows.ndim == len(wanted)
        device = next(self.parameters()).device
        with torch.no_grad():
            actions = self.forward((rows.unsqueeze(0) if single else rows).to(device)).cpu().numpy()
        actions = actions.argmax(-1) if self.discrete else actions
        if not single:
            return actions
        return int(actions[0]) if self.discrete else actions[0]

    def __call__(self, observations: Any, *others: Any) -> Any:
        """Act on tensors, (..., O) -> (..., A), or on NumPy arrays and parts as ``act`` does."""
        if isinstance(observations, np.ndarray | Mapping):
            return self.act(observations)
        if isinstance(observations, Tensor) and observations.dtype == torch.float64:
            observations = observations.float()
        return super().__call__(observations, *others)


class Actor(Policy, ABC):
    """A stochastic policy pi(a | s) that acts by its mode."""

    def __init__(self, shape: ActorShape, normalisation: Normalisation | None = None) -> None:
        """Build the network.

        Args:
            shape: sizes.
            normalisation: statistics of the observations; None: ``load_state_dict`` sets them.
        """
        super().__init__()
        self.shape = shape
        self.encode_observation = observation_encoder(
            shape.observation_shape, normalisation, shape.encoder, shape.parts
        )
        self.network = MLP(self.encode_observation.features, shape.hidden, shape.action_size)

    @abstractmethod
    def forward(self, observations: Tensor) -> Tensor:
        """Mode of the policy, (..., O) -> (..., A)."""

    @abstractmethod
    def log_prob(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Log pi(a | s), (..., O) and (..., A) -> (...)."""

    @abstractmethod
    def noise(self, count: int, generator: Generator) -> Tensor:
        """Noise that makes the policy stochastic, (count, A); see ``act_with_noise``."""

    @abstractmethod
    def act_with_noise(self, observations: Tensor, noise: Tensor) -> Tensor:
        """One action of the policy per row of noise, (B, O) and (M, A) -> (B, M, A)."""

    def outputs(self, observations: Tensor) -> Tensor:
        """Outputs of the network, (..., O) -> (..., A): means before tanh, or logits."""
        outputs: Tensor = self.network(self.encode_observation(observations))
        return outputs.float()  # under autocast they are bfloat16


class GaussianActor(Actor):
    """``pi(a | s) = N(mean(s), diag(std^2))`` with the mean squashed into the action bounds by tanh.

    The noise is added after squashing, and its scale does not depend on the state. The density of a squashed
    sample would be infinite at the bounds, where logs have many actions that the environment clipped.

    ``log_std`` is the logarithm of ``std`` in halves of the action range, so that it means the same in any unit.
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
            normalisation: statistics of the observations; None: ``load_state_dict`` sets them.
            action_bounds: lowest and highest action, (A,) each; None: ``load_state_dict`` sets them.
        """
        super().__init__(shape, normalisation)
        low, high = action_bounds or (-torch.ones(shape.action_size), torch.ones(shape.action_size))
        self.register_buffer("action_low", low.clone())
        self.register_buffer("action_high", high.clone())
        self.log_std = nn.Parameter(torch.zeros(shape.action_size))

    @property
    def half_range(self) -> Tensor:
        """Half of the action range, (A,); where the bounds are equal, a small number."""
        return ((self.action_high - self.action_low) / 2.0).clamp(min=SMALLEST_RANGE)

    @property
    def std(self) -> Tensor:
        """Standard deviation of the noise, (A,), in the action's units."""
        if torch.is_grad_enabled():
            limited: Tensor = _Limited.apply(self.log_std, self.LOG_STD_RANGE)  # type: ignore[no-untyped-call]
        else:  # such as in the export, which cannot trace functions with a gradient of their own
            limited = self.log_std.clamp(*self.LOG_STD_RANGE)
        return limited.exp() * self.half_range

    def distance(self, actions: Tensor, others: Tensor) -> Tensor:
        """Squared distances by dimension, in halves of the action range, (..., A) and (..., A) -> (..., A)."""
        return ((actions - others) / self.half_range).square()

    def forward(self, observations: Tensor) -> Tensor:
        """Mode of the policy, (..., O) -> (..., A), within the action bounds."""
        return self.squash(self.outputs(observations))

    def squash(self, outputs: Tensor) -> Tensor:
        """Action of outputs of any size, by tanh, (..., A) -> (..., A), within the action bounds."""
        squashed = torch.tanh(outputs)
        return self.bounded(self.action_low + (squashed + 1.0) / 2.0 * (self.action_high - self.action_low))

    def log_prob(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Log pi(a | s), (..., O) and (..., A) -> (...)."""
        if self.network.variable is not None and torch.is_grad_enabled() and not actions.requires_grad:
            outputs = self.outputs(observations)
            bounds = self.action_low, self.action_high
            fused: Tensor = _LogProb.apply(outputs, self.log_std, actions, *bounds, self.LOG_STD_RANGE)  # type: ignore[no-untyped-call]
            return fused
        std = self.std
        error = (actions - self(observations)) / std
        density: Tensor = -0.5 * error.square() - std.log() - HALF_LOG_TWO_PI
        return density.sum(-1)

    def noise(self, count: int, generator: Generator) -> Tensor:
        """Standard normal noise, (count, A)."""
        return torch.randn(count, self.shape.action_size, generator=generator, device=generator.device)

    def act_with_noise(self, observations: Tensor, noise: Tensor) -> Tensor:
        """``mean(s) + std * noise``, clipped to the bounds, (B, M, A); differentiable within them."""
        return self.bounded(self(observations).unsqueeze(1) + self.std * noise)

    def bounded(self, actions: Tensor) -> Tensor:
        """The nearest actions within the bounds, (..., A)."""
        return torch.minimum(torch.maximum(actions, self.action_low), self.action_high)


def _inward(gradient: Tensor, excess: Tensor) -> Tensor:
    """Drop gradients whose descent would move values further out of their range; ``excess`` is how far they are out.

    A clamp would drop all of them, so that a value which an optimiser moved out of the range could not return.
    """
    return gradient.masked_fill(excess * gradient < 0.0, 0.0)


class _Limited(torch.autograd.Function):
    """``clamp`` from which values can return; see ``_inward``."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, limits: tuple[float, float]) -> Tensor:
        """Return the values within the limits."""
        limited = values.clamp(*limits)
        ctx.save_for_backward(values - limited)
        return limited

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Return the gradient of the values."""
        (excess,) = ctx.saved_tensors
        return _inward(gradient, excess), None


class _LogProb(torch.autograd.Function):
    """``GaussianActor.log_prob`` of the network's outputs, while it is trained.

    Its twenty operations on a few numbers per row would take a fifth of a training step, most of it in autograd.
    """

    @staticmethod
    def forward(
        ctx: Any,
        outputs: Tensor,
        log_std: Tensor,
        actions: Tensor,
        low: Tensor,
        high: Tensor,
        log_std_range: tuple[float, float],
    ) -> Tensor:
        """Return log pi, (..., A) and (..., A) -> (...)."""
        squashed = outputs.tanh()
        half_range = (high - low) / 2.0
        mean = torch.addcmul(low, squashed + 1.0, half_range)
        limited, width = log_std.clamp(*log_std_range), half_range.clamp(min=SMALLEST_RANGE)
        std = limited.exp() * width
        error = (actions - mean).div_(std)  # in standard deviations
        density = (error.square().mul_(-0.5)).sum(-1)
        ctx.save_for_backward(squashed, error, log_std - limited, half_range / std)
        return density.sub_(limited.sum() + width.log().sum() + len(log_std) * HALF_LOG_TWO_PI)

    @staticmethod
    @once_differentiable  # a training loss is differentiated once
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the outputs and of log_std."""
        squashed, error, excess, ratio = ctx.saved_tensors
        scaled = error * gradient.unsqueeze(-1)
        of_log_std = (scaled * error).reshape(-1, len(excess)).sum(0).sub_(gradient.sum())
        slope = squashed.square().neg_().add_(1.0).mul_(ratio)
        return scaled.mul_(slope), _inward(of_log_std, excess), None, None, None, None


class CategoricalActor(Actor):
    """``pi(a | s) = softmax(network(s))`` over discrete actions, which are one-hot vectors."""

    discrete = True

    def forward(self, observations: Tensor) -> Tensor:
        """Most likely action, one-hot, (..., O) -> (..., A)."""
        return self._one_hot(self.outputs(observations))

    def log_probs(self, observations: Tensor) -> Tensor:
        """Log pi of every action, (..., O) -> (..., A)."""
        return functional.log_softmax(self.outputs(observations), dim=-1)

    def log_prob(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Log pi(a | s), (..., O) and one-hot (..., A) -> (...)."""
        return (self.log_probs(observations) * actions).sum(-1)

    def noise(self, count: int, generator: Generator) -> Tensor:
        """Gumbel noise, (count, A): the argmax of log pi + noise is distributed as pi (Gumbel 1954)."""
        uniform = torch.rand(count, self.shape.action_size, generator=generator, device=generator.device)
        return -(-uniform.clamp(min=1e-20).log()).log()

    def act_with_noise(self, observations: Tensor, noise: Tensor) -> Tensor:
        """Actions with the largest log pi + noise, one-hot, (B, M, A)."""
        return self._one_hot(self.log_probs(observations).unsqueeze(1) + noise)

    def _one_hot(self, scores: Tensor) -> Tensor:
        return functional.one_hot(scores.argmax(-1), self.shape.action_size).to(scores.dtype)


def make_actor(
    transitions: Transitions,
    normalisation: Normalisation,
    hidden: tuple[int, ...],
    encoder: dict[str, Any] | None = None,
) -> Actor:
    """Build the actor for episodes: categorical if actions are discrete, else Gaussian.

    Args:
        transitions: the episodes, which define the shapes of observations and actions.
        normalisation: statistics of the observations.
        hidden: sizes of the hidden layers.
        encoder: plain parameters of the observations' encoder; None: ``auto``.
    """
    shape = ActorShape(
        observation_shape=tuple(transitions.observations.shape[1:]),
        action_size=transitions.actions.shape[1],
        hidden=hidden,
        encoder=encoder or {},
        parts=transitions.parts,
    )
    if transitions.discrete:
        return CategoricalActor(shape, normalisation)
    return GaussianActor(shape, normalisation, (transitions.action_low, transitions.action_high))
