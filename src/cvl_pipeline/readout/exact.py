"""The exact readout: values as self-normalised importance-weighted rewards of reference states."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from cvl_pipeline.networks.critic import ContrastiveCritic
from cvl_pipeline.readout.parameters import ReadoutParameters
from cvl_pipeline.training.seeds import stream_seed
from cvl_pipeline.trajectories.container import Rewards, Split, Transitions
from cvl_pipeline.trajectories.sampling import SegmentSampler

CHUNK = 4096
"""Queries, and references, taken at once: bounds the memory at CHUNK^2 numbers."""


@dataclass(frozen=True)
class Readout:
    """Reference states z_1..z_K, drawn from the marginal of the negatives, with their rewards.

    Attributes:
        psi: (K, D) representations of the references.
        rewards: (K,) reward on arrival at each reference; 0 in the absorbing state.
        temperature: scalar, the critic's.
        discount: scalar float64, the critic's gamma.
    """

    psi: Tensor
    rewards: Tensor
    temperature: Tensor
    discount: Tensor

    def to(self, device: torch.device | str) -> Readout:
        """The same readout on another device."""
        return Readout(**{name: getattr(self, name).to(device) for name in self.__dataclass_fields__})

    def values(self, phi: Tensor) -> Tensor:
        """Q of each query, (B, D) -> (B,); differentiable with respect to ``phi``.

        ``Q(s, a) = 1/(1 - gamma) sum_j softmax_j(f(s, a, z_j)) r_j``: since the references follow p(s')
        and ``f = log p_gamma(s' | s, a) / p(s')``, the softmax weights are self-normalised importance
        weights (Mazoure et al. 2023, equation 6, with the normaliser estimated on the same references,
        which cancels any constant c(s, a) in f).
        """
        return self.values_and_sample_size(phi)[0]

    def values_and_sample_size(self, phi: Tensor) -> tuple[Tensor, Tensor]:
        """Q and the effective sample size ``1 / sum_j w_j^2`` in [1, K] of each query, (B,) each.

        One pass over the references, with sums relative to the largest logit so far.
        """
        queries = phi / self.temperature
        highest = phi.new_full((len(phi), 1), -torch.inf)
        total, squares, reward = (phi.new_zeros(len(phi)) for _ in range(3))
        for start in range(0, len(self.psi), CHUNK):
            logits = queries @ self.psi[start : start + CHUNK].T  # (B, chunk)
            # The maximum cancels in every ratio, so no gradient need pass through it.
            new_highest = torch.maximum(highest, logits.detach().amax(1, keepdim=True))
            fade = (highest - new_highest).exp().squeeze(1)
            weights = (logits - new_highest).exp()
            total = total * fade + weights.sum(1)
            squares = squares * fade**2 + (weights**2).sum(1)
            reward = reward * fade + weights @ self.rewards[start : start + CHUNK]
            highest = new_highest
        return reward / total / (1.0 - self.discount), total**2 / squares


@torch.no_grad()
def build_readout(
    critic: ContrastiveCritic,
    transitions: Transitions,
    rewards: Rewards,
    split: Split,
    parameters: ReadoutParameters,
    seed: int,
) -> Readout:
    """Draw references from the marginal of the future states that training contrasted, and label them.

    Args:
        critic: the trained critic.
        transitions: all episodes; the references come from the training ones.
        rewards: their labels.
        split: which episodes train.
        parameters: the stage's.
        seed: of the draw.
    """
    train = transitions.select(split.train)
    labels = rewards.select(transitions.transition_index(split.train))
    generator = Generator().manual_seed(stream_seed(seed, "references", 0))
    segments = SegmentSampler(train, critic.shape.discount).sample(parameters.references, generator)
    return Readout(
        psi=critic.psi(segments.futures, segments.absorbed),
        rewards=labels.rewards[segments.arrivals].masked_fill(segments.absorbed, 0.0),
        temperature=critic.temperature.detach().clone(),
        discount=torch.tensor(critic.shape.discount, dtype=torch.float64),
    )


@torch.no_grad()
def state_action_values(
    critic: ContrastiveCritic, readout: Readout, observations: Tensor, actions: Tensor
) -> tuple[Tensor, Tensor]:
    """Q and effective sample size of many pairs, (N, O) and (N, A) -> (N,) each, in batches."""
    values, sizes = [], []
    for start in range(0, len(actions), CHUNK):
        batch = slice(start, start + CHUNK)
        value, size = readout.values_and_sample_size(critic.phi(observations[batch], actions[batch]))
        values.append(value)
        sizes.append(size)
    return torch.cat(values), torch.cat(sizes)
