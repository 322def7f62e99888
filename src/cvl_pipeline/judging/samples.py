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
    """A mean and its interval; None if one episode says nothing about others."""

    value: float
    low: float | None
    high: float | None

    def named(self, name: str) -> dict[str, float | None]:
        """Return the numbers by their names in reports."""
        return {name: self.value, f"{name}_ci_low": self.low, f"{name}_ci_high": self.high}


def estimate(
    values: Tensor,
    episodes: Tensor,
    confidence: float,
    seed: int,
    weights: Tensor | None = None,
    less: tuple[Tensor, Tensor] | None = None,
) -> Estimate:
    """Mean over steps, and an interval that resamples whole episodes.

    Steps of an episode depend on each other, so an interval over steps would be too narrow. If M networks made the
    estimates, each resample adds what one more network would be away from their mean, which Student's t tells from the
    spread of so few: to draw one of the M would cover 60 % with four of them, where 95 % are meant.

    Args:
        values: (M, N), estimates of M networks for N steps; or (N,).
        episodes: (N,) int64, the episode of each step.
        confidence: level of the interval.
        seed: of the resampling.
        weights: (N,) of the steps; None: equal ones.
        less: values and weights, (N,) each, whose mean is subtracted.
    """
    rows = values.double().reshape(-1, values.shape[-1]).numpy()
    _, place = np.unique(episodes.numpy(), return_inverse=True)
    alike = np.ones(len(place))

    def by_episode(row: Floats, weight: Floats) -> Floats:
        """Weighted sums and weights of the episodes, (2, E)."""
        return np.stack([np.bincount(place, weight * row), np.bincount(place, weight)])

    weight = alike if weights is None else weights.double().numpy()
    parts = [by_episode(rows.mean(0), weight)]
    if less is not None:
        parts.append(by_episode(*(part.double().numpy() for part in less)))

    def difference(taken: Any = slice(None)) -> float:
        means = [part[0, taken].sum() / part[1, taken].sum() for part in parts]
        return float(means[0] - sum(means[1:]))

    count, networks = parts[0].shape[1], len(rows)
    if count == 1:
        return Estimate(difference(), None, None)
    generator = np.random.default_rng(seed)
    means = np.array([difference(generator.integers(count, size=count)) for _ in range(RESAMPLES)])
    if networks > 1:
        spread = np.std(rows @ weight / weight.sum(), ddof=1) * (1.0 + 1.0 / networks) ** 0.5
        means += spread * generator.standard_t(networks - 1, RESAMPLES)
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(means, [tail, 1.0 - tail])
    return Estimate(difference(), float(low), float(high))
