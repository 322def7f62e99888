"""The episode container: what every source fills and every stage reads.

Its arrays may be a file that is mapped into memory, larger than memory itself, so what reads them takes the
rows it needs: ``states(index)``, a ``SegmentSampler``, or blocks of ``BLOCK`` rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

BLOCK = 1 << 16
"""Rows that a pass over all of them takes at once."""


@dataclass(frozen=True)
class Transitions:
    """Logged episodes without their rewards, laid end to end.

    An episode of T steps has T actions and T + 1 observations, the last being where the log ends, so
    with N transitions in E episodes transition ``n`` of episode ``e`` leads from observation row
    ``n + e`` to row ``n + e + 1``.

    Attributes:
        observations: (N + E, O) float32, or images, (N + E, H, W, C) uint8.
        actions: (N, A) float32, as the environment executed them.
        episode_starts: (E + 1,) int64, first transition of each episode; the last entry is N.
        terminated: (E,) bool, the world stopped (a fall, a goal that ends the episode).
        truncated: (E,) bool, the log stopped and the world did not (a time limit).
        action_low: (A,) float32, the smallest action the environment accepts.
        action_high: (A,) float32, the largest.
        discrete: () bool, there are A actions to choose from and each logged one is a one-hot vector.
    """

    observations: Tensor
    actions: Tensor
    episode_starts: Tensor
    terminated: Tensor
    truncated: Tensor
    action_low: Tensor
    action_high: Tensor
    discrete: Tensor = field(default_factory=lambda: torch.tensor(False))

    @property
    def images(self) -> bool:
        """Whether observations are images."""
        return self.observations.ndim == 4

    def __len__(self) -> int:
        """Number of transitions, N."""
        return len(self.actions)

    @property
    def episodes(self) -> int:
        """Number of episodes, E."""
        return len(self.episode_starts) - 1

    @property
    def lengths(self) -> Tensor:
        """Steps of each episode, (E,) int64."""
        return self.episode_starts.diff()

    def episode_of(self, transition: Tensor) -> Tensor:
        """Episode that each transition index belongs to; any shape, int64."""
        return torch.searchsorted(self.episode_starts, transition, right=True) - 1

    def states(self, index: Tensor | None = None) -> Tensor:
        """Observation that each of the given transitions, (M,), or of all starts from, (M, O): s_t."""
        return self.observations.index_select(0, self._rows(index))

    def arrivals(self, index: Tensor | None = None) -> Tensor:
        """Observation that each of the given transitions, (M,), or of all leads to, (M, O): s_{t+1}."""
        return self.observations.index_select(0, self._rows(index) + 1)

    def _rows(self, index: Tensor | None) -> Tensor:
        if index is None:
            index = torch.arange(len(self), device=self.actions.device)
        return index + self.episode_of(index)

    def to(self, device: torch.device | str) -> Transitions:
        """The same episodes on another device."""
        return Transitions(**{name: getattr(self, name).to(device) for name in self.__dataclass_fields__})

    def select(self, episodes: Tensor) -> Transitions:
        """A copy of the given episodes alone, in the given order.

        Args:
            episodes: (M,) int64 episode ids.
        """
        rows = self.transition_index(episodes)
        shift = torch.repeat_interleave(torch.arange(len(episodes)), self.lengths[episodes])
        starts = torch.cat([torch.zeros(1, dtype=torch.int64), self.lengths[episodes].cumsum(0)])
        observations = torch.empty(
            (len(rows) + len(episodes), *self.observations.shape[1:]), dtype=self.observations.dtype
        )
        new_rows = torch.arange(len(rows)) + shift
        observations[new_rows] = self.observations[rows + self.episode_of(rows)]
        last = starts[1:] + torch.arange(len(episodes))
        observations[last] = self.observations[self.episode_starts[episodes + 1] + episodes]
        return Transitions(
            observations=observations,
            actions=self.actions[rows],
            episode_starts=starts,
            terminated=self.terminated[episodes],
            truncated=self.truncated[episodes],
            action_low=self.action_low,
            action_high=self.action_high,
            discrete=self.discrete,
        )

    def transition_index(self, episodes: Tensor) -> Tensor:
        """Indices of all transitions of the given episodes, episode after episode, (M,) int64."""
        episodes = episodes.to(self.actions.device)
        lengths = self.lengths[episodes]
        ends = lengths.cumsum(0)
        count = torch.arange(int(lengths.sum()), device=lengths.device)
        within = count - torch.repeat_interleave(ends - lengths, lengths)
        return torch.repeat_interleave(self.episode_starts[episodes], lengths) + within


@dataclass(frozen=True)
class Rewards:
    """What the log says about how good each transition was, apart from the transitions themselves.

    Attributes:
        rewards: (N,) float32, counted on arrival: entry n belongs to the state that transition n led to; all
            NaN where the log has none.
        successes: (N,) bool, the task counts as solved in the state that transition n led to.
    """

    rewards: Tensor
    successes: Tensor

    @property
    def missing(self) -> bool:
        """Whether the log says nothing of rewards."""
        return bool(self.rewards.isnan().all())

    def select(self, transition_index: Tensor) -> Rewards:
        """The labels of the given transitions, in the given order."""
        return Rewards(self.rewards[transition_index], self.successes[transition_index])


@dataclass(frozen=True)
class Split:
    """Which episodes train and which are held out.

    Attributes:
        train: (M,) int64 episode ids, ascending.
        validation: (E - M,) int64 episode ids, ascending.
    """

    train: Tensor
    validation: Tensor


@dataclass(frozen=True)
class Normalisation:
    """Per-dimension statistics of the training episodes.

    Attributes:
        observation_mean: (O,) float32; of images, (C,), over all pixels.
        observation_std: likewise, never below the floor it was fitted with.
        action_mean: (A,) float32.
        action_std: (A,) float32, likewise.
    """

    observation_mean: Tensor
    observation_std: Tensor
    action_mean: Tensor
    action_std: Tensor
