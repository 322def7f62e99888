"""The objective of the published code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Generator, Tensor

from cvl_pipeline.episodes.sampling import Draws, Segments, SegmentSampler
from cvl_pipeline.errors import InputError
from cvl_pipeline.networks.actor import CategoricalActor
from cvl_pipeline.objectives.base import Objective, ObjectiveParameters, Setting
from cvl_pipeline.readout.q_function import QFunction
from cvl_pipeline.readout.references import labels
from cvl_pipeline.training.processes import own_share


@dataclass(frozen=True)
class NoisySegments(Segments):
    """Segments with the noise of the policy's actions, (B, A), and the labels of the futures, (B,)."""

    noise: Tensor
    labels: Tensor


class Published(Objective):
    """``0.95 (alpha log pi - exp(f(s, pi(s), s+)) r+) + 0.05 (-log pi(a | s))``, s+ a positive of (s, a).

    One future state, with its label r+, stands for the whole readout. 0.05 is ``cloning_share``, alpha
    ``entropy_weight``.
    """

    class Parameters(ObjectiveParameters):
        """The settings of ``published``."""

        objective: Literal["published"] = Field("published", description="The published code's objective.")
        cloning_share: float = Field(
            0.05, ge=0.0, le=1.0, description="Weight of cloning; the rest is the critic's."
        )
        entropy_weight: float = Field(0.0, ge=0.0, description="Alpha of alpha log pi.")

    needs_rewards = True

    def prepare(self, setting: Setting) -> None:
        """Sample segments as contrastive training does."""
        assert setting.rewards is not None  # checked before training begins
        if not isinstance(setting.q, QFunction):  # it needs a critic of future states
            raise InputError("policy_extraction.objective 'published' needs CVL's critic")
        self._critic = setting.q.critic
        shape, gamma = self._critic.shape, setting.q.readout.discount
        discount = gamma if shape.horizon_conditioning else shape.discount
        self._sampler = SegmentSampler(setting.transitions, discount, setting.train_episodes)
        rewards = setting.rewards.rewards.to(setting.train_index.device)
        self._rewards = labels(setting.transitions, rewards, discount, gamma)

    def draw(self, batches: int, size: int, generator: Generator) -> Sequence[tuple[Draws, Tensor]]:
        """Draw segments, and the noise of the policy's actions."""
        segments = self._sampler.draw(batches * size, generator).split(size)
        noise = torch.split(self.setting.actor.noise(batches * size, generator), size)
        return list(zip(segments, noise, strict=True))

    def read(self, drawn: tuple[Draws, Tensor]) -> NoisySegments:
        """Read this process's share of a batch."""
        segments = self._sampler.gather(drawn[0].map(own_share))
        rewards = self._rewards[segments.arrivals].masked_fill(segments.absorbed, 0.0)
        return NoisySegments(**vars(segments), noise=own_share(drawn[1]), labels=rewards)

    def loss(self, drawn: tuple[Draws, Tensor] | NoisySegments) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of one batch of segments."""
        parameters, actor, critic = self.parameters, self.setting.actor, self._critic
        segments = drawn if isinstance(drawn, NoisySegments) else self.read(drawn)
        observations, rewards = segments.observations, segments.labels
        psi = critic.psi(segments.futures, segments.absorbed)
        offsets = segments.offsets if critic.shape.horizon_conditioning else None
        if isinstance(actor, CategoricalActor):
            count = actor.shape.action_size
            candidates = torch.eye(count, device=observations.device).expand(len(observations), -1, -1)
            log_pi = actor.log_probs(observations)
            probabilities = log_pi.exp()  # (B, A): the mean over all actions
        else:
            candidates = actor.act_with_noise(
                observations, segments.noise.unsqueeze(1)
            )  # (B, 1, A): one sample
            log_pi = actor.log_prob(observations, candidates.squeeze(1)).unsqueeze(1)
            probabilities = torch.ones_like(log_pi)
        count = candidates.shape[1]
        phi = critic.phi(
            observations.unsqueeze(1),
            candidates,
            None if offsets is None else offsets.unsqueeze(1).expand(-1, count),
        )
        ratio = ((phi * psi.unsqueeze(1)).sum(-1) / critic.temperature).exp()  # (B, count)
        gain = ratio * rewards.unsqueeze(1) - parameters.entropy_weight * log_pi
        gain = (probabilities * gain).sum(1).mean()
        cloning = -actor.log_prob(observations, segments.actions).mean()
        share = parameters.cloning_share
        return share * cloning - (1.0 - share) * gain, {"gain": gain}
