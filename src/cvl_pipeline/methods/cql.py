"""Conservative Q-Learning, CQL(H) (Kumar et al., NeurIPS 2020)."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Generator, Tensor, nn
from torch.nn import functional

from cvl_pipeline.episodes.data import EpisodeData
from cvl_pipeline.methods.off_policy import (
    Fixed,
    OffPolicy,
    OffPolicyMethod,
    ValueParameters,
    follow,
)
from cvl_pipeline.networks.actor import HALF_LOG_TWO_PI, CategoricalActor, GaussianActor
from cvl_pipeline.networks.mlp import MLP
from cvl_pipeline.training.processes import own_share
from cvl_pipeline.training.vector import Part

LOG_STD_RANGE = (-20.0, 2.0)
"""Limits of the log standard deviation before tanh, as published."""


class ConservativeActorCritic(OffPolicy):
    """Two conservative Q, and a soft actor-critic's policy: a Gaussian, squashed by tanh.

    Its mean is the actor's. Its standard deviation has a network that only training needs, because the actor acts by
    its mode. Densities are those of actions scaled to (-1, 1).
    """

    actor: GaussianActor

    def networks(self) -> None:
        """Build both Q, the standard deviation and the temperature of the entropy."""
        self.q = self.ensemble()
        self.log_std = MLP(self.q.features, self.settings.hidden, len(self.normalisation.action_mean))
        self.log_temperature = nn.Parameter(torch.zeros(()))

    def finish(self) -> None:
        """Build the target of Q, and Q as the actor sees it."""
        self.target_q = copy.deepcopy(self.q).requires_grad_(False)
        self.fixed_q = Fixed(self.q)

    def parts(self) -> Sequence[tuple[Iterable[nn.Parameter], Part]]:
        """The policy learns more slowly than Q."""
        policy = [*self.actor.parameters(), *self.log_std.parameters(), self.log_temperature]
        return (self.q.parameters(), Part()), (policy, Part(rate=self.settings.actor_rate))

    def draw(self, batches: int, generator: Generator) -> Sequence[Any]:
        """Draw transitions, (B,) int64, uniform numbers, (B, N, A), and standard normal ones, (B, 2, N + 1, A)."""
        index = super().draw(batches, generator)
        rows, samples = batches * self.training_parameters.batch_size, self.settings.samples
        size, device = self.actor.shape.action_size, self.device
        uniform = torch.rand(rows, samples, size, generator=generator, device=device)
        normal = torch.randn(rows, 2, samples + 1, size, generator=generator, device=device)
        return list(zip(index, uniform.chunk(batches), normal.chunk(batches), strict=True))

    def sample(self, states: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Actions of the policy and their log densities, (B, O) and (B, N, A) -> (B, N, A) and (B, N)."""
        # The policy does not train Q's encoder.
        log_std = self.log_std(self.q.encode_observation(states).detach()).clamp(*LOG_STD_RANGE).unsqueeze(1)
        outputs = self.actor.outputs(states).unsqueeze(1) + log_std.exp() * noise
        log_slope = 2.0 * (math.log(2.0) - outputs - functional.softplus(-2.0 * outputs))  # of tanh
        density = -0.5 * noise.square() - log_std - HALF_LOG_TWO_PI - log_slope
        return self.actor.squash(outputs), density.sum(-1)

    def training_loss(self, batch: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum of the losses of Q (equation 4), of the policy and of the temperature."""
        index, uniform, normal = batch[0], own_share(batch[1]), own_share(batch[2])
        cql, low, high = self.settings, self.actor.action_low, self.actor.action_high
        follow(self.target_q, self.q, cql.target_rate)
        step = self.steps(index)
        # N samples are for the conservative term, and the last one for the policy and for the target.
        actions, log_probs = self.sample(step.states, normal[:, 0])
        with torch.no_grad():
            later, later_log_probs = self.sample(step.next_states, normal[:, 1])
            next_q = self.target_q(step.next_states, later[:, -1]).amin(0)
            target = step.rewards + cql.discount * step.goes_on * next_q
            logged, anywhere = step.actions.unsqueeze(1), low + uniform * (high - low)
            candidates = torch.cat([logged, anywhere, later[:, :-1], actions[:, :-1]], 1)
            uniform_density = torch.full_like(uniform[..., 0], -math.log(2.0) * len(low))
            densities = torch.cat([uniform_density, later_log_probs[:, :-1], log_probs[:, :-1]], 1)
        values = self.q(step.states.unsqueeze(1), candidates)
        q = values[..., 0]
        # log of the integral of exp Q, by importance sampling (appendix F)
        log_integral = torch.logsumexp(values[..., 1:] - densities, -1) - math.log(densities.shape[1])
        gap = (log_integral - q).mean(1).sum()
        q_loss = (q - target).square().mean(1).sum() + cql.weight(discrete=False) * gap
        entropy = -log_probs[:, -1].mean()
        temperature = self.log_temperature.exp().detach()
        policy_loss = -self.fixed_q(step.states, actions[:, -1]).amin(0).mean() - temperature * entropy
        temperature_loss = self.log_temperature * (entropy.detach() + len(low))  # the entropy shall be -A
        metrics = {"q": target.mean(), "gap": gap / len(q), "entropy": entropy, "temperature": temperature}
        return q_loss + policy_loss + temperature_loss, metrics


class ConservativeDQN(OffPolicy):
    """For discrete actions: the actor's logits are Q, so it acts greedily.

    ``softmax(Q)`` is the policy that the maximum in CQL(H) has, and the conservative term is its ``-log pi(a | s)``.
    """

    actor: CategoricalActor

    def networks(self) -> None:
        """Build nothing: the actor is Q."""

    def finish(self) -> None:
        """Build the target."""
        self.target_actor = copy.deepcopy(self.actor).requires_grad_(False)

    def training_loss(self, batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of Q (equation 4), with the targets of double DQN (van Hasselt et al., AAAI 2016)."""
        cql = self.settings
        follow(self.target_actor, self.actor, cql.target_rate)
        step = self.steps(batch)
        with torch.no_grad():
            best = self.actor(step.next_states)  # one-hot
            next_q = (self.target_actor.outputs(step.next_states) * best).sum(-1)
            target = step.rewards + cql.discount * step.goes_on * next_q
        values = self.actor.outputs(step.states)
        q = (values * step.actions).sum(-1)
        gap = (torch.logsumexp(values, -1) - q).mean()
        loss = (q - target).square().mean() + cql.weight(discrete=True) * gap
        return loss, {"q": target.mean(), "gap": gap}


class CQL(OffPolicyMethod):
    """Conservative Q-Learning."""

    class Parameters(ValueParameters):
        """The settings of ``cql``; the defaults are published, but for scaled rewards.

        The published code begins with a phase of cloning, which is left out.
        """

        method: Literal["cql"] = Field(
            "cql",
            description="Conservative Q-Learning, CQL(H), without its variant with a Lagrange multiplier. Published "
            "with `hidden` of three layers of 256.",
        )
        conservative_weight: float | None = Field(
            None,
            ge=0.0,
            description="Weight of the conservative term against the squared error of Q. null: 5, or 1 if actions are "
            "discrete. Published: 5 or 10 on D4RL's locomotion, 0.5 to 4 on Atari, whose actions are discrete.",
        )
        samples: int = Field(
            10,
            ge=1,
            le=1000,
            description="Actions of each kind in the conservative term: uniform, of the policy, and of the policy in "
            "the next state. A step's time grows with it. For continuous actions.",
        )
        actor_rate: float = Field(
            1.0 / 3.0,
            gt=0.0,
            description="Learning rate of the policy and of its temperature, as a share of `training.learning_rate`; "
            "published 1e-4 beside 3e-4. For continuous actions.",
        )

        def weight(self, *, discrete: bool) -> float:
            """The weight of the conservative term."""
            if self.conservative_weight is None:
                return 1.0 if discrete else 5.0
            return self.conservative_weight

    title = "CQL"
    module = ConservativeActorCritic

    def module_for(self, data: EpisodeData) -> type[OffPolicy]:
        """Discrete actions need no policy of their own."""
        return ConservativeDQN if data.transitions.discrete else self.module
