"""What all measures share: whole episodes with encoded observations, actions of a policy, bootstrap intervals."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor, nn
from torch.nn import functional

from cvl_pipeline.episodes.container import Rewards, Transitions
from cvl_pipeline.episodes.parts import unpacked
from cvl_pipeline.networks.actor import ActorShape
from cvl_pipeline.networks.critic import ContrastiveCritic

Floats = NDArray[np.float64]

ROWS, WIDE_ROWS = 4096, 256
"""Observations that a network takes at once; of images, and of observations with parts."""
RESAMPLES = 2000


@dataclass(frozen=True)
class Sample:
    """Whole episodes of a log, with encoded observations.

    Attributes:
        encoded: the episodes; observations are features, (N + E, F).
        index: (N,) int64, their transitions in the log.
        rewards: (N,) float32.
    """

    encoded: Transitions
    index: Tensor
    rewards: Tensor

    def __len__(self) -> int:
        """Number of transitions, N."""
        return len(self.index)

    @property
    def episodes(self) -> Tensor:
        """Number of the episode of each transition, (N,) int64, from 0."""
        return self.encoded.episode_of(torch.arange(len(self)))


@torch.no_grad()
def sample(
    critic: ContrastiveCritic,
    transitions: Transitions,
    labels: Rewards,
    episodes: Tensor,
    most: int,
    seed: int,
) -> Sample:
    """Encode whole episodes by the observation encoder of the critic, which has never seen a reward.

    Args:
        critic: whose encoder is used; for vectors, it standardises.
        transitions: the log.
        labels: rewards of all transitions.
        episodes: (M,) int64 ids to choose from.
        most: transitions; at least one episode is taken.
        seed: of the choice, if they have more.
    """
    order = episodes[torch.randperm(len(episodes), generator=Generator().manual_seed(seed))]
    fitting = transitions.lengths[order].cumsum(0) <= most
    chosen = order[fitting] if fitting.any() else order[:1]
    chosen = chosen.sort().values
    index = transitions.transition_index(chosen)
    bare = replace(transitions, observations=transitions.observations[:, :0], parts=None)  # nothing to copy
    part = bare.select(chosen)
    rows = torch.repeat_interleave(part.episode_starts[:-1] + torch.arange(len(chosen)), part.lengths + 1)
    within = torch.arange(len(rows)) - rows
    first = transitions.episode_starts[chosen] + chosen
    rows = torch.repeat_interleave(first, part.lengths + 1) + within
    size = WIDE_ROWS if transitions.wide else ROWS
    features = [
        critic.encode_observation(transitions.observations.index_select(0, block)).float()
        for block in torch.split(rows, size)
    ]
    return Sample(replace(part, observations=torch.cat(features)), index, labels.rewards[index])


@torch.no_grad()
def actions_of(policy: nn.Module, transitions: Transitions, index: Tensor, arrivals: bool = False) -> Tensor:
    """Actions of a policy as an environment executes them: within the bounds, or one-hot, (M,) -> (M, A).

    Args:
        policy: observations (B, O) to actions (B, A). A module of your own gets observations of several parts as a
            dictionary of tensors.
        transitions: the log.
        index: (M,) int64, transitions.
        arrivals: act in the states they lead to, not in those where they start.
    """
    take = transitions.arrivals if arrivals else transitions.states
    blocks = torch.split(index, WIDE_ROWS if transitions.wide else ROWS)
    return torch.cat([act(policy, take(block), transitions) for block in blocks])


@torch.no_grad()
def act(policy: nn.Module, observations: Tensor, transitions: Transitions) -> Tensor:
    """Executed actions in a few observations, (B, O) -> (B, A); see ``actions_of``."""
    ours = isinstance(getattr(policy, "shape", None), ActorShape)
    rows: Any = observations if ours else unpacked(observations, transitions.parts)
    actions: Tensor = policy(rows).float()
    if transitions.discrete:
        return functional.one_hot(actions.argmax(-1), actions.shape[-1]).float()
    return torch.minimum(torch.maximum(actions, transitions.action_low), transitions.action_high)


class Estimate(NamedTuple):
    """A mean and its interval."""

    value: float
    low: float
    high: float

    def named(self, name: str) -> dict[str, float]:
        """Return the numbers by their names in reports."""
        return {name: self.value, f"{name}_ci_low": self.low, f"{name}_ci_high": self.high}


def estimate(values: Tensor, episodes: Tensor, confidence: float, seed: int) -> Estimate:
    """Mean over steps, and a bootstrap interval that resamples whole episodes and networks.

    Steps of an episode depend on each other, so an interval over steps would be too narrow. With several networks,
    each resample takes one of them at random: each was fitted to a bootstrap sample of its own episodes.

    Args:
        values: (M, N), estimates of M networks for N steps; or (N,).
        episodes: (N,) int64, the episode of each step.
        confidence: level of the interval.
        seed: of the resampling.
    """
    rows = values.double().reshape(-1, values.shape[-1]).numpy()
    _, place = np.unique(episodes.numpy(), return_inverse=True)
    counts = np.bincount(place).astype(np.float64)
    sums = np.stack([np.bincount(place, row) for row in rows])
    generator = np.random.default_rng(seed)
    means = np.empty(RESAMPLES)
    for number in range(RESAMPLES):
        taken = generator.integers(len(counts), size=len(counts))
        member = generator.integers(len(sums))
        means[number] = sums[member, taken].sum() / counts[taken].sum()
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(means, [tail, 1.0 - tail])
    return Estimate(float(rows.mean()), float(low), float(high))
