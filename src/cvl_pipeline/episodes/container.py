"""The episode container, which every source fills and every stage reads.

The arrays may be a memory-mapped file that is larger than memory. Read only the rows you need: with
``states(index)``, with a ``SegmentSampler``, or in blocks of ``block_rows`` rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from cvl_pipeline.episodes.parts import Layout, unpacked

BLOCK = 1 << 16
"""Rows per block in a pass over all rows."""
BLOCK_BYTES = 1 << 22
"""Size of a block in such a pass if its rows are wide, such as those of cameras."""

UNLESS_ZERO = {"stored": "unless zero"}
"""Metadata of a field that a file leaves out while it is zero, so that files without it stay as they are."""

UNLESS_NONE = {"stored": "unless none"}
"""Metadata of a field that a file leaves out while it is None, for the same reason."""


def _zero() -> Tensor:
    return torch.zeros((), dtype=torch.int64)


def _zero_float() -> Tensor:
    return torch.zeros(())


def block_rows(array: Tensor) -> int:
    """Rows per block in a pass over all rows of an array: BLOCK, or as many as BLOCK_BYTES hold."""
    # Not that of io.pieces: everything that reads episodes would depend on the code that writes files.
    return max(1, min(BLOCK, BLOCK_BYTES // max(1, array.element_size() * math.prod(array.shape[1:]))))


@dataclass(frozen=True)
class Transitions:
    """Logged episodes, end to end, without their rewards.

    An episode of T steps has T actions and T + 1 observations; the last observation is the final state. With
    N transitions in E episodes, transition ``n`` of episode ``e`` leads from observation row ``n + e`` to row
    ``n + e + 1``.

    Attributes:
        observations: (N + E, O) float32; or images, (N + E, H, W, C) uint8; or packed rows of several parts,
            (N + E, B) uint8.
        actions: (N, A) float32, as the environment executed them.
        episode_starts: (E + 1,) int64, first transition of each episode; the last entry is N.
        terminated: (E,) bool, the environment ended the episode (a fall, a goal that ends it).
        truncated: (E,) bool, the log ended and the episode did not (a time limit).
        action_low: (A,) float32, smallest action that the environment accepts.
        action_high: (A,) float32, largest action that the environment accepts.
        discrete: () bool, there are A discrete actions and each logged action is a one-hot vector.
        actions_out_of_bounds: () int64, logged actions beyond the bounds that reading clipped or widened.
        largest_excess: () float32, the largest distance of these actions from the bounds.
        held_out: () int64, number of the last episodes that the source itself holds out from training; 0: a random
            share of all episodes is held out.
        parts: what packed rows hold; None: observations are one vector or one image.
    """

    observations: Tensor
    actions: Tensor
    episode_starts: Tensor
    terminated: Tensor
    truncated: Tensor
    action_low: Tensor
    action_high: Tensor
    discrete: Tensor = field(default_factory=lambda: torch.tensor(False))
    actions_out_of_bounds: Tensor = field(default_factory=_zero, metadata=UNLESS_ZERO)
    largest_excess: Tensor = field(default_factory=_zero_float, metadata=UNLESS_ZERO)
    held_out: Tensor = field(default_factory=_zero, metadata=UNLESS_ZERO)
    parts: Layout | None = field(default=None, metadata=UNLESS_NONE)

    @property
    def images(self) -> bool:
        """Whether an observation is one image."""
        return self.observations.ndim == 4

    @property
    def wide(self) -> bool:
        """Whether an observation is an image or has parts: it takes more memory than features of it."""
        return self.images or self.parts is not None

    def unpacked(self, observations: Tensor) -> Any:
        """Observations by name of their part, ``{name: (..., *shape)}``; the tensor itself if they have no parts."""
        return unpacked(observations, self.parts)

    def __len__(self) -> int:
        """Number of transitions, N."""
        return len(self.actions)

    @property
    def episodes(self) -> int:
        """Number of episodes, E."""
        return len(self.episode_starts) - 1

    @property
    def lengths(self) -> Tensor:
        """Number of steps per episode, (E,) int64."""
        return self.episode_starts.diff()

    def episode_of(self, transition: Tensor) -> Tensor:
        """Episode id of each transition index; any shape, int64."""
        return torch.searchsorted(self.episode_starts, transition, right=True) - 1

    def states(self, index: Tensor | None = None) -> Tensor:
        """Observations s_t at which the given transitions, (M,), start, (M, O); None: all transitions."""
        return self.observations.index_select(0, self.rows(index))

    def arrivals(self, index: Tensor | None = None) -> Tensor:
        """Observations s_{t+1} to which the given transitions, (M,), lead, (M, O); None: all transitions."""
        return self.observations.index_select(0, self.rows(index) + 1)

    def rows(self, index: Tensor | None) -> Tensor:
        """Rows of the observations at which the given transitions, (M,), start, (M,) int64; None: all transitions."""
        if index is None:
            index = torch.arange(len(self), device=self.actions.device)
        return index + self.episode_of(index)

    def to(self, device: torch.device | str) -> Transitions:
        """The same episodes on another device."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        moved: dict[str, Any] = {
            name: value.to(device) for name, value in values.items() if isinstance(value, Tensor)
        }
        return replace(self, **moved)

    def select(self, episodes: Tensor) -> Transitions:
        """Copy the given episodes, in the given order.

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
            parts=self.parts,
        )

    def transition_index(self, episodes: Tensor) -> Tensor:
        """Indices of all transitions of the given episodes, in their order, (M,) int64."""
        episodes = episodes.to(self.actions.device)
        lengths = self.lengths[episodes]
        ends = lengths.cumsum(0)
        count = torch.arange(int(lengths.sum()), device=lengths.device)
        within = count - torch.repeat_interleave(ends - lengths, lengths)
        return torch.repeat_interleave(self.episode_starts[episodes], lengths) + within


@dataclass(frozen=True)
class Rewards:
    """Reward and success labels of the transitions.

    Attributes:
        rewards: (N,) float32, on arrival: entry n belongs to the state that transition n leads to; all NaN if
            the log has no rewards.
        successes: (N,) bool, the task is solved in the state that transition n leads to.
        success_reported: () bool, the log says whether the task is solved. If not, ``successes`` is False
            everywhere and has no meaning.
        dropped_steps: () int64, logged steps that are not among the transitions; see ``episodes_from_steps``.
        dropped_episodes: () int64, episodes of which no step is left.
        dropped_reward: () float32, sum of the rewards of the dropped steps.
        dropped_successes: () int64, dropped steps in which the task was solved.
    """

    rewards: Tensor
    successes: Tensor
    success_reported: Tensor = field(default_factory=lambda: torch.tensor(True))
    dropped_steps: Tensor = field(default_factory=_zero, metadata=UNLESS_ZERO)
    dropped_episodes: Tensor = field(default_factory=_zero, metadata=UNLESS_ZERO)
    dropped_reward: Tensor = field(default_factory=_zero_float, metadata=UNLESS_ZERO)
    dropped_successes: Tensor = field(default_factory=_zero, metadata=UNLESS_ZERO)

    @property
    def missing(self) -> bool:
        """Whether the log has no rewards."""
        return bool(self.rewards.isnan().all())

    @property
    def reports_success(self) -> bool:
        """Whether ``successes`` has a meaning."""
        return bool(self.success_reported)

    def to(self, device: torch.device | str) -> Rewards:
        """The same labels on another device."""
        return Rewards(**{name: getattr(self, name).to(device) for name in self.__dataclass_fields__})

    def select(self, transition_index: Tensor) -> Rewards:
        """Return the labels of the given transitions, in the given order."""
        return Rewards(
            self.rewards[transition_index], self.successes[transition_index], self.success_reported
        )


@dataclass(frozen=True)
class Split:
    """Training and held-out episodes.

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
        observation_mean: (O,) float32; for images, (C,), over all pixels; for several parts, those of all parts, end to
            end (see ``Layout.statistics_of``).
        observation_std: same shape, at least the ``std_floor`` of the fit.
        action_mean: (A,) float32.
        action_std: (A,) float32, at least the same floor.
    """

    observation_mean: Tensor
    observation_std: Tensor
    action_mean: Tensor
    action_std: Tensor
