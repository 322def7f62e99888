"""Reference states: what the critic's density ratio is weighed against."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
from torch import Generator, Tensor

from cvl_pipeline.episodes.container import Rewards, Transitions
from cvl_pipeline.episodes.sampling import SegmentSampler
from cvl_pipeline.networks.critic import ContrastiveCritic

CHUNK = 4096
"""Rows taken at once, here and in the readouts: bounds the memory at CHUNK^2 numbers."""
ITERATIONS = 5
"""Of Lloyd's algorithm; more changed the values by less than the compression itself does."""
DEFENSIVE_SHARE = 0.5
"""Share of reward-proportional references drawn from the marginal, so that no weight exceeds twice its own
and the normaliser is estimated too (a defensive mixture, Hesterberg 1995)."""


@dataclass(frozen=True)
class References:
    """Future states that stand for the marginal p(s'), with their weights.

    Attributes:
        psi: (K, D) representations.
        rewards: (K,) reward on arrival; 0 in the absorbing state.
        log_weights: (K,) logarithm of the probability that each stands for; together one, but only on average
            where they were drawn by reward, and more by a factor where ``compress`` corrected them.
    """

    psi: Tensor
    rewards: Tensor
    log_weights: Tensor

    def __len__(self) -> int:
        """K."""
        return len(self.psi)


ABSORBED = -1
"""Stands for the transition that led to the absorbing state."""


@dataclass(frozen=True)
class FutureStates:
    """Logged future states and their weights, before the critic looks at them.

    Attributes:
        arrivals: (K,) int64, the transition that led to each; ABSORBED for the absorbing state.
        rewards: (K,) as in References.
        log_weights: (K,) likewise.
    """

    arrivals: Tensor
    rewards: Tensor
    log_weights: Tensor


def future_states(
    transitions: Transitions, rewards: Rewards, discount: float, episodes: Tensor | None = None
) -> FutureStates:
    """Every logged future state, with its exact probability under the training sampler.

    Args:
        transitions: the log; the absorbing state is added if any of the episodes terminated.
        rewards: labels of all transitions.
        discount: that training sampled with.
        episodes: (M,) int64 ids of those that trained; None: all.
    """
    probabilities, absorbed = SegmentSampler(transitions, discount, episodes).marginal()
    chosen = torch.arange(transitions.episodes) if episodes is None else episodes
    arrivals = transitions.transition_index(chosen)
    labels = rewards.rewards.to(arrivals.device)[arrivals]
    if absorbed > 0:
        arrivals = torch.cat([arrivals, arrivals.new_full((1,), ABSORBED)])
        labels = torch.cat([labels, labels.new_zeros(1)])
        probabilities = torch.cat([probabilities, absorbed.reshape(1)])
    return FutureStates(arrivals, labels, probabilities.log().float())


@torch.no_grad()
def represent(critic: ContrastiveCritic, transitions: Transitions, states: FutureStates) -> References:
    """The references that future states are to a critic: their psi, chunk by chunk."""
    psi = torch.cat(
        [
            critic.psi(transitions.arrivals(part.clamp(min=0)), part == ABSORBED)
            for part in torch.split(states.arrivals, CHUNK)
        ]
    )
    return References(psi, states.rewards, states.log_weights)


def all_references(
    critic: ContrastiveCritic, transitions: Transitions, rewards: Rewards, episodes: Tensor | None = None
) -> References:
    """Every logged future state with its exact probability; see ``future_states``."""
    return represent(
        critic, transitions, future_states(transitions, rewards, critic.shape.discount, episodes)
    )


Drawn = TypeVar("Drawn", References, FutureStates)


def draw_references(everything: Drawn, count: int, by_reward: bool, generator: Generator) -> Drawn:
    """Draw ``count`` of the references with replacement, so that weighted means stay unbiased.

    Args:
        everything: all of them, with psi or, which takes less work, before.
        count: K.
        by_reward: draw half of them in proportion to |reward|, for rewards that most states do not have.
        generator: of the draw.
    """
    probabilities = everything.log_weights.double().exp()
    proposal = probabilities / probabilities.sum()
    magnitude = proposal * everything.rewards.double().abs()
    if by_reward and magnitude.sum() > 0:
        proposal = DEFENSIVE_SHARE * proposal + (1.0 - DEFENSIVE_SHARE) * magnitude / magnitude.sum()
    # Systematic resampling: one uniform number, every stretch of the distribution as often as it should be.
    offset = torch.rand(1, generator=generator, device=proposal.device, dtype=torch.float64)
    points = (torch.arange(count, device=proposal.device) + offset) / count
    index = torch.searchsorted(proposal.cumsum(0), points, right=True).clamp(max=len(proposal) - 1)
    log_weights = (probabilities[index] / proposal[index] / count).log().float()
    drawn = {field.name: getattr(everything, field.name)[index] for field in fields(everything)}
    return replace(everything, **drawn | {"log_weights": log_weights})


def compress(references: References, count: int, temperature: Tensor, generator: Generator) -> References:
    """Replace the references by ``count`` weighted prototypes: clusters in psi space, by Lloyd's algorithm.

    A prototype stands for its cluster with the cluster's probability, mean psi and mean reward. Of
    ``log mean exp(phi . psi / T)`` over a cluster it keeps the first two cumulants: the mean psi gives the
    first, and the second, with phi's direction unknown, is ``|phi|^2 trace(cov psi) / (2 D T^2)``, |phi| = 1.

    Args:
        references: K of them.
        count: prototypes; references that are fewer are returned as they are.
        temperature: of the critic.
        generator: of the first centres.
    """
    if len(references) <= count:
        return references
    weights = references.log_weights.double().exp().float()
    order = torch.randperm(len(references), generator=generator, device=weights.device)
    centres = references.psi[order[:count]]
    for _ in range(ITERATIONS):
        nearest = _nearest(references.psi, centres)
        mass = weights.new_zeros(count).index_add_(0, nearest, weights)
        sums = torch.zeros_like(centres).index_add_(0, nearest, weights.unsqueeze(1) * references.psi)
        kept = mass > 0
        centres = torch.where(kept.unsqueeze(1), sums / mass.clamp(min=1e-30).unsqueeze(1), centres)
    reward = weights.new_zeros(count).index_add_(0, nearest, weights * references.rewards)
    spread = (references.psi - centres[nearest]).square().sum(1)
    variance = weights.new_zeros(count).index_add_(0, nearest, weights * spread)
    mass, centres = mass[kept], centres[kept]
    second_cumulant = variance[kept] / mass / centres.shape[1] / (2.0 * temperature**2)
    return References(centres, reward[kept] / mass, mass.log() + second_cumulant)


def _nearest(points: Tensor, centres: Tensor) -> Tensor:
    """Index of the nearest centre of each point, (K,)."""
    half_norms = 0.5 * centres.square().sum(1)
    return torch.cat([(rows @ centres.T - half_norms).argmax(1) for rows in torch.split(points, CHUNK)])
