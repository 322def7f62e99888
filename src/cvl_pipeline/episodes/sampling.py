"""Sampling of contrastive segments: anchors, discounted future states and their marginal distribution."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Generator, Tensor

from cvl_pipeline.episodes.container import Transitions


@dataclass(frozen=True)
class _Columns:
    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Apply ``change`` to every column."""
        return type(self)(*(change(getattr(self, field.name)) for field in fields(self)))


@dataclass(frozen=True)
class Segments(_Columns):
    """A batch of anchors (s_t, a_t) and future states s_{t+k}.

    Attributes:
        observations: (B, O), s_t.
        actions: (B, A), a_t.
        futures: (B, O), s_{t+k}; if ``absorbed``, the last observation of the episode (psi ignores it).
        absorbed: (B,) bool, k exceeds the steps before a termination, so the future is the absorbing state.
        arrivals: (B,) int64, the transition that leads to the future state (its reward label is the reward
            of the future state); if ``absorbed``, the last transition of the episode.
        anchors: (B,) int64, the transition index t.
        offsets: (B,) int64, k >= 1 in steps.
    """

    observations: Tensor
    actions: Tensor
    futures: Tensor
    absorbed: Tensor
    arrivals: Tensor
    anchors: Tensor
    offsets: Tensor


@dataclass(frozen=True)
class Draws(_Columns):
    """Positions of segments in the log, without their data; (B,) int64 each, except ``absorbed``.

    Attributes:
        anchors: transition indices t.
        offsets: k >= 1 in steps.
        rows: rows of the observations s_t.
        future_rows: rows of the observations s_{t+k}.
        arrivals: see Segments.
        absorbed: (B,) bool, see Segments.
    """

    anchors: Tensor
    offsets: Tensor
    rows: Tensor
    future_rows: Tensor
    arrivals: Tensor
    absorbed: Tensor

    def split(self, size: int) -> list[Draws]:
        """Split into consecutive draws of the given size."""
        parts = (getattr(self, field.name).split(size) for field in fields(self))
        return [Draws(*columns) for columns in zip(*parts, strict=True)]


class _LoggedFutures:
    """Sums ``c(L) = sum_{l=1..L} (1 - gamma^l)`` and their inverse, for episodes of any length.

    ``1 - gamma^l`` is the logged share of the future of an anchor l steps before a timeout. The tables end
    where rounding removes ``gamma^l``; beyond them, the share is one.
    """

    def __init__(self, discount: float, longest: int, device: torch.device) -> None:
        size = min(longest, math.ceil(-40.0 / math.log(discount)))  # exp(-40) < 2^-53
        steps = torch.arange(1, size + 1, device=device, dtype=torch.float64)
        self._shares = -torch.expm1(steps * math.log(discount))  # (size,)
        self._sums = self._shares.cumsum(0)
        self._all = size == longest

    def shares(self, steps: Tensor) -> Tensor:
        """``1 - gamma^L`` for each L >= 1, float64."""
        return self._shares[steps.clamp(max=len(self._shares)) - 1]

    def sums(self, steps: Tensor) -> Tensor:
        """c(L) for each L >= 1, float64."""
        within = steps.clamp(max=len(self._sums))
        return self._sums[within - 1] + (steps - within)

    def steps(self, sums: Tensor) -> Tensor:
        """Smallest L >= 1 with c(L) >= the given sum, int64."""
        steps = torch.searchsorted(self._sums, sums).clamp_(max=len(self._sums) - 1).add_(1)
        return steps if self._all else steps + (sums - self._sums[-1]).clamp_(min=0.0).ceil_().long()


class SegmentSampler:
    """Samples pairs of a transition and a later state of its episode in proportion to ``gamma^(k-1)``.

    On the logged states, this is the discounted future-state distribution p_gamma (Mazoure et al. 2023,
    section 4.1): the offset k is geometric, k >= 1. With L steps left in the episode:

    * A **truncated** episode has no data after its end, so no pair reaches past it. Anchors are sampled in
      proportion to ``1 - gamma^L``, the logged share of their future. The offset k follows the geometric
      distribution truncated to 1..L, by its inverse distribution function
      ``k = 1 + floor(log(1 - u (1 - gamma^L)) / log gamma)``.
    * A **terminated** episode stays in the absorbing state, whose reward is zero. So k is not truncated,
      every anchor counts fully, and k > L means the absorbing state.

    The paper samples anchors uniformly. That gives the last steps before a timeout full weight, although
    almost none of their future is logged (measured in docs/truth.md).

    Sampling is index arithmetic on the device of the transitions, which may be a memory-mapped file. The
    sampler stores a few numbers per episode. The work per segment does not depend on the size of the data,
    except for one binary search over the episodes.
    """

    def __init__(self, transitions: Transitions, discount: float, episodes: Tensor | None = None) -> None:
        """Prepare to sample.

        Args:
            transitions: the log.
            discount: gamma in (0, 1), per step.
            episodes: (M,) int64 ids of the episodes to sample from; None: all. Transition indices refer to
                the whole log.
        """
        self.transitions = transitions
        self.discount = discount
        self._log_discount = math.log(discount)
        device = transitions.actions.device
        episode_ids = (torch.arange(transitions.episodes) if episodes is None else episodes).to(device)
        self._lengths = transitions.lengths[episode_ids]
        terminated = transitions.terminated[episode_ids]
        self._terminates = bool(terminated.any())
        self._futures = _LoggedFutures(discount, int(self._lengths.max()), device)
        mass = torch.where(terminated, self._lengths, self._futures.sums(self._lengths))
        self._cumulative_mass = mass.cumsum(0)  # (M,)
        ends = transitions.episode_starts[episode_ids + 1]
        # One table instead of five columns: rows of a long log are far apart, and each look-up waits for
        # memory. Integers are exact in double precision.
        self._table = torch.stack([mass, self._lengths, ends, episode_ids, terminated], dim=1)  # (M, 5)

    def sample(self, count: int, generator: Generator | None = None, per_episode: int = 1) -> Segments:
        """Sample ``count`` segments from the distribution above; see ``draw``."""
        return self.gather(self.draw(count, generator, per_episode))

    def draw(self, count: int, generator: Generator | None = None, per_episode: int = 1) -> Draws:
        """Sample the positions of ``count`` segments.

        Most of the cost does not depend on ``count``, so training samples the segments of many steps at once.

        Args:
            count: number of segments, B.
            generator: random generator.
            per_episode: number of consecutive segments that share an episode; 1: all are independent. With
                more, some negatives of a batch come from the anchor's own episode. To distinguish them from
                the positive, the critic must learn the course of the episode, not only its identity.
        """
        # Double precision: with discount 0.999 and L = 1000, single precision visibly distorts the offsets.
        draws = torch.rand(
            3, count, generator=generator, device=self._table.device, dtype=torch.float64
        )  # for the episode, the offset and the anchor
        place = draws[0, : -(-count // per_episode)] * self._cumulative_mass[-1]
        index = torch.searchsorted(self._cumulative_mass, place, right=True)
        table = self._table.index_select(0, index.clamp_(max=len(self._table) - 1))  # rounding
        if per_episode > 1:
            table = table.repeat_interleave(per_episode, dim=0)[:count]
        mass, lengths, ends, episodes, terminated = table.unbind(1)
        # The last L anchors have the mass c(L) in a truncated episode and L in a terminated one.
        mass_left = mass - draws[2] * mass
        steps_left = self._futures.steps(mass_left)
        if self._terminates:
            steps_left = torch.where(terminated > 0.0, mass_left.ceil().long(), steps_left)
        steps_left = torch.minimum(steps_left, lengths.long()).clamp_(min=1)  # rounding
        share = self._futures.shares(steps_left)
        if self._terminates:
            share = torch.where(terminated > 0.0, 1.0, share)
        offsets = (share.mul_(draws[1]).neg_().log1p_() / self._log_discount).long().add_(1)
        # Rounding can put an offset one step past the end of a truncated episode, which has no mass.
        within = torch.minimum(offsets, steps_left)
        offsets = torch.where(terminated > 0.0, offsets, within) if self._terminates else within
        anchors = ends.long().sub_(steps_left)
        rows = anchors + episodes.long()
        return Draws(anchors, offsets, rows, rows + within, anchors + within - 1, offsets > steps_left)

    def gather(self, draws: Draws) -> Segments:
        """Read the segments from the log."""
        data = self.transitions
        return Segments(
            observations=data.observations.index_select(0, draws.rows),
            actions=data.actions.index_select(0, draws.anchors),
            futures=data.observations.index_select(0, draws.future_rows),
            absorbed=draws.absorbed,
            arrivals=draws.arrivals,
            anchors=draws.anchors,
            offsets=draws.offsets,
        )

    def marginal(self) -> tuple[Tensor, Tensor]:
        """Exact probability of every future state under ``sample``.

        The state after the p-th transition of an episode is reachable from p anchors, with total weight
        ``gamma^0 + ... + gamma^(p-1)``.

        Returns:
            Probabilities of the state after each transition of the sampled episodes, episode after episode,
            (N,) float64, and of the absorbing state, a scalar; they sum to one.
        """
        ends = self._lengths.cumsum(0)
        firsts = torch.repeat_interleave(ends - self._lengths, self._lengths)
        position = torch.arange(len(firsts), device=firsts.device) - firsts + 1
        states = self._futures.shares(position) / self._cumulative_mass[-1]
        return states, (1.0 - states.sum()).clamp(min=0.0) * self._terminates
