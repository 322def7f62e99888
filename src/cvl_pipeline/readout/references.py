"""Reference states, the samples of p(s') over which readouts sum the critic's density ratio."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
from torch import Generator, Tensor

from cvl_pipeline.episodes.container import Rewards, Transitions
from cvl_pipeline.episodes.preparation import logged_shares, observed_returns
from cvl_pipeline.episodes.sampling import SegmentSampler
from cvl_pipeline.networks.critic import ContrastiveCritic

CHUNK = 4096
"""Rows per chunk, here and in the readouts; limits the memory to CHUNK^2 numbers."""
ITERATIONS = 5
"""Iterations of Lloyd's algorithm; more iterations change the values less than the compression does."""
DEFENSIVE_SHARE = 0.5
"""Share of the references by reward that is sampled from the marginal. It limits every weight to twice the
marginal one and makes the normaliser estimable (a defensive mixture, Hesterberg 1995)."""


@dataclass(frozen=True)
class References:
    """Weighted future states that represent the marginal p(s').

    Attributes:
        psi: (K, D) representations.
        rewards: (K,) label: the reward on arrival, or a mean with those that follow it (see ``labels``); 0
            in the absorbing state.
        log_weights: (K,) log probability that each reference represents. The probabilities sum to one; only
            on average after sampling by reward, and to more after the correction by ``compress``.
    """

    psi: Tensor
    rewards: Tensor
    log_weights: Tensor

    def __len__(self) -> int:
        """Number of references, K."""
        return len(self.psi)


ABSORBED = -1
"""Index of the absorbing state, in place of a transition."""


@dataclass(frozen=True)
class FutureStates:
    """Logged future states and their weights, before the critic computes representations.

    Attributes:
        arrivals: (K,) int64, the transition that leads to each state; ABSORBED for the absorbing state.
        rewards: (K,), see References.
        log_weights: (K,), see References.
    """

    arrivals: Tensor
    rewards: Tensor
    log_weights: Tensor


def return_weight(discount: float, value_discount: float) -> float:
    """Weight of the return in the label of a future state, ``(gamma - c) / (gamma (1 - c))``; see ``labels``."""
    return (value_discount - discount) / (value_discount * (1.0 - discount))


def labels(transitions: Transitions, rewards: Tensor, discount: float, value_discount: float) -> Tensor:
    """Labels of the states that transitions lead to, whose mean over p_c gives values of discount gamma, (N,).

    The label is ``(1 - w) r + w (1 - gamma) G``: the reward on arrival, and the logged discounted return G from there
    on, the reward included, as a mean reward. With c the discount of the future-state distribution,
    ``w = (gamma - c) / (gamma (1 - c))`` makes

        Q(s, a) = 1/(1 - gamma) E_{s' ~ p_c(. | s, a)} [ label(s') ]

    exact. It is the identity ``Q = E_{p_c}[ r + (gamma - c) V ] / (1 - c)`` of TD(lambda) (Sutton 1988) with
    lambda = c / gamma, and V of a future state is read off the log instead of learned. In a truncated episode, G is
    divided by the logged share of its discounted future (see ``logged_shares``).

    Args:
        transitions: the log.
        rewards: (N,), of all transitions.
        discount: c.
        value_discount: gamma, at least c. If it is c, labels are the rewards.
    """
    weight = return_weight(discount, value_discount)
    if weight == 0.0:
        return rewards
    means = (1.0 - value_discount) * observed_returns(rewards.cpu(), transitions.to("cpu"), value_discount)
    return ((1.0 - weight) * rewards + weight * means.to(rewards.device)).float()


def future_states(
    transitions: Transitions,
    rewards: Rewards,
    discount: float,
    episodes: Tensor | None = None,
    value_discount: float | None = None,
    by_share: bool = True,
) -> FutureStates:
    """All logged future states with their exact probabilities under the training sampler.

    With a longer discount of the values, the reward becomes a label that holds the logged return too (see
    ``labels``). Where the log ends soon after a state, its return says little, so its probability is multiplied by
    the logged share of its future, as far as the label depends on the return. This is for weighted means: a sum that
    is not divided by its weights would fall towards the end of every truncated episode.

    Args:
        transitions: the log; the absorbing state is added if any of the episodes terminated.
        rewards: labels of all transitions.
        discount: discount c of the training sampler.
        episodes: (M,) int64 ids of the training episodes; None: all.
        value_discount: discount gamma of the values, at least c; None: c.
        by_share: whether probabilities are multiplied by the logged shares.
    """
    probabilities, absorbed = SegmentSampler(transitions, discount, episodes).marginal()
    episode_ids = torch.arange(transitions.episodes) if episodes is None else episodes
    arrivals = transitions.transition_index(episode_ids)
    wanted = discount if value_discount is None else value_discount
    values = labels(transitions, rewards.rewards.to(arrivals.device), discount, wanted)[arrivals]
    weight = return_weight(discount, wanted)
    if weight and by_share:
        shares = logged_shares(transitions, wanted)[arrivals]
        probabilities = probabilities * (1.0 - weight + weight * shares)
        total = probabilities.sum() + absorbed
        probabilities, absorbed = probabilities / total, absorbed / total
    if absorbed > 0:
        arrivals = torch.cat([arrivals, arrivals.new_full((1,), ABSORBED)])
        values = torch.cat([values, values.new_zeros(1)])
        probabilities = torch.cat([probabilities, absorbed.reshape(1)])
    return FutureStates(arrivals, values, probabilities.log().float())


@torch.no_grad()
def represent(critic: ContrastiveCritic, transitions: Transitions, states: FutureStates) -> References:
    """Compute the psi of future states, chunk by chunk, and return them as references."""
    psi = torch.cat(
        [
            critic.psi(transitions.arrivals(part.clamp(min=0)), part == ABSORBED)
            for part in torch.split(states.arrivals, CHUNK)
        ]
    )
    return References(psi, states.rewards, states.log_weights)


def all_references(
    critic: ContrastiveCritic,
    transitions: Transitions,
    rewards: Rewards,
    episodes: Tensor | None = None,
    value_discount: float | None = None,
) -> References:
    """References for all logged future states, with exact probabilities; see ``future_states``."""
    discount = critic.shape.discount
    return represent(
        critic, transitions, future_states(transitions, rewards, discount, episodes, value_discount)
    )


Drawn = TypeVar("Drawn", References, FutureStates)


def draw_references(everything: Drawn, count: int, by_reward: bool, generator: Generator) -> Drawn:
    """Sample ``count`` references with replacement, so that weighted means stay unbiased.

    Args:
        everything: all references, or all future states, which is cheaper because they have no psi yet.
        count: number of references, K.
        by_reward: sample half of them in proportion to |reward|, for sparse rewards.
        generator: random generator.
    """
    probabilities = everything.log_weights.double().exp()
    proposal = probabilities / probabilities.sum()
    magnitude = proposal * everything.rewards.double().abs()
    if by_reward and magnitude.sum() > 0:
        proposal = DEFENSIVE_SHARE * proposal + (1.0 - DEFENSIVE_SHARE) * magnitude / magnitude.sum()
    # Systematic resampling: one uniform number, evenly spaced points of the distribution.
    offset = torch.rand(1, generator=generator, device=proposal.device, dtype=torch.float64)
    points = (torch.arange(count, device=proposal.device) + offset) / count
    index = torch.searchsorted(proposal.cumsum(0), points, right=True).clamp(max=len(proposal) - 1)
    log_weights = (probabilities[index] / proposal[index] / count).log().float()
    samples = {field.name: getattr(everything, field.name)[index] for field in fields(everything)}
    return replace(everything, **samples | {"log_weights": log_weights})


def compress(references: References, count: int, temperature: Tensor, generator: Generator) -> References:
    """Replace the references by ``count`` weighted prototypes: clusters in psi space, by Lloyd's algorithm.

    A prototype represents its cluster with the cluster's probability, mean psi and mean reward. It keeps the
    first two cumulants of ``log mean exp(phi . psi / T)`` over the cluster. The mean psi gives the first. The
    second, for an unknown direction of phi, is ``|phi|^2 trace(cov psi) / (2 D T^2)`` with |phi| = 1.

    Args:
        references: K references.
        count: number of prototypes; if K is not larger, the references are returned unchanged.
        temperature: the critic's temperature.
        generator: selects the initial centres.
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
        occupied = mass > 0
        centres = torch.where(occupied.unsqueeze(1), sums / mass.clamp(min=1e-30).unsqueeze(1), centres)
    reward = weights.new_zeros(count).index_add_(0, nearest, weights * references.rewards)
    spread = (references.psi - centres[nearest]).square().sum(1)
    variance = weights.new_zeros(count).index_add_(0, nearest, weights * spread)
    mass, centres = mass[occupied], centres[occupied]
    second_cumulant = variance[occupied] / mass / centres.shape[1] / (2.0 * temperature**2)
    return References(centres, reward[occupied] / mass, mass.log() + second_cumulant)


def _nearest(points: Tensor, centres: Tensor) -> Tensor:
    """Index of the nearest centre for each point, (K,)."""
    half_norms = 0.5 * centres.square().sum(1)
    return torch.cat([(rows @ centres.T - half_norms).argmax(1) for rows in torch.split(points, CHUNK)])
