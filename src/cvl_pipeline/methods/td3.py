"""What TD3+BC and ReBRAC share: TD3 (Fujimoto, van Hoof and Meger, ICML 2018).

Actor and critics take their gradients from the same weights, in one loss. The published codes update the critics first.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Generator, Tensor, nn

from cvl_pipeline.methods.off_policy import Fixed, OffPolicy, Steps, ValueParameters, follow
from cvl_pipeline.networks.actor import GaussianActor
from cvl_pipeline.schema import MOST_STEPS
from cvl_pipeline.training.processes import own_share
from cvl_pipeline.training.vector import Part


class TD3Parameters(ValueParameters):
    """The settings of TD3, as published."""

    policy_delay: int = Field(
        2, ge=1, le=MOST_STEPS, description="Gradient steps per update of the actor and of all targets."
    )
    target_noise: float = Field(
        0.2,
        ge=0.0,
        description="Standard deviation of the noise on the target actor's actions, in halves of the action range.",
    )
    noise_clip: float = Field(
        0.5, ge=0.0, description="Largest absolute value of that noise, in halves of the action range."
    )


class TD3(OffPolicy):
    """A deterministic actor, two Q functions, and targets of all; the subclass defines the loss.

    Attributes:
        turn: (), steps so far. It is a buffer, so checkpoints keep it and a CUDA graph can count.
    """

    actor: GaussianActor
    turn: Tensor

    def networks(self) -> None:
        """Build both Q."""
        self.q = self.ensemble()

    def finish(self) -> None:
        """Build the targets, and Q as the actor sees it."""
        self.target_q = copy.deepcopy(self.q).requires_grad_(False)
        self.target_actor = copy.deepcopy(self.actor).requires_grad_(False)
        self.fixed_q = Fixed(self.q)
        self.register_buffer("turn", torch.zeros((), dtype=torch.int64))

    def parts(self) -> Sequence[tuple[Iterable[nn.Parameter], Part]]:
        """The actor is updated less often than Q."""
        delayed = Part(interval=self.settings.policy_delay)
        return (self.q.parameters(), Part()), (self.actor.parameters(), delayed)

    def draw(self, batches: int, generator: Generator) -> Sequence[Any]:
        """Draw transitions, (B,) int64, and standard normal noise, (B, A)."""
        index = super().draw(batches, generator)
        noise = self.actor.noise(batches * self.training_parameters.batch_size, generator)
        return list(zip(index, noise.chunk(batches), strict=True))

    def move_targets(self) -> None:
        """Let the targets follow in the step after each update of the actor; call it first in the loss."""
        delay = self.settings.policy_delay
        rate = (self.turn % delay == 1 % delay) * self.settings.target_rate
        follow(self.target_q, self.q, rate)
        follow(self.target_actor, self.actor, rate)
        self.turn += 1

    def next_actions(self, step: Steps, noise: Tensor) -> Tensor:
        """The target actor's actions in the next states, with clipped noise (section 5.3), (B, A)."""
        limit, half_range = self.settings.noise_clip, self.actor.half_range
        smoothing = (self.settings.target_noise * own_share(noise)).clamp(-limit, limit)
        return self.actor.bounded(self.target_actor(step.next_states) + smoothing * half_range)
