"""Drawing contrastive segments: anchors, discounted future states and the marginal of both."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Generator, Tensor

from cvl_pipeline.episodes.container import Transitions


@dataclass(frozen=True)
class Segments:
    """A batch of anchors (s_t, a_t) and future states s_{t+k}.

    Attributes:
        observations: (B, O), s_t.
        actions: (B, A), a_t.
        futures: (B, O), s_{t+k}; where ``absorbed``, the episode's last observation (psi ignores it).
        absorbed: (B,) bool, k ran past a termination: the future is the absorbing state.
        arrivals: (B,) int64, the transition that led to the future state (its reward label is the
            future's reward); where ``absorbed``, the episode's last transition.
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
class Draws:
    """Where segments are in the log, before anything is read of it; (B,) int64 each but for the last.

    Attributes:
        anchors: transition indices t.
        offsets: k >= 1 in steps.
        rows: of the observations s_t.
        future_rows: of the observations s_{t+k}.
        arrivals: see Segments.
        absorbed: (B,) bool, likewise.
    """

    anchors: Tensor
    offsets: Tensor
    rows: Tensor
    future_rows: Tensor
    arrivals: Tensor
    absorbed: Tensor

    def map(self, change: Callable[[Tensor], Tensor]) -> Draws:
        """Every column changed alike."""
        return Draws(*(change(getattr(self, field.name)) for field in fields(self)))

    def split(self, sizes: list[int]) -> list[Draws]:
        """Consecutive draws of the given sizes."""
        parts = (getattr(self, field.name).split(sizes) for field in fields(self))
        return [Draws(*columns) for columns in zip(*parts, strict=True)]


class _LoggedFutures:
    """Sums ``c(L) = sum_{l=1..L} (1 - gamma^l)`` and their inverse, for episodes of any length.

    ``1 - gamma^l`` is the share of its future that the log shows of an anchor l steps before a timeout. The
    tables end where ``gamma^l`` is lost in rounding; from there on a share is one.
    """

    def __init__(self, discount: float, longest: int, device: torch.device) -> None:
        size = min(longest, math.ceil(-40.0 / math.log(discount)))  # exp(-40) < 2^-53
        steps = torch.arange(1, size + 1, device=device, dtype=torch.float64)
        self._shares = -torch.expm1(steps * math.log(discount))  # (size,)
        self._sums = self._shares.cumsum(0)
        self._all = size == longest

    def shares(self, steps: Tensor) -> Tensor:
        """``1 - gamma^L`` of each L >= 1, float64."""
        return self._shares[steps.clamp(max=len(self._shares)) - 1]

    def sums(self, steps: Tensor) -> Tensor:
        """c(L) of each L >= 1, float64."""
        within = steps.clamp(max=len(self._sums))
        return self._sums[within - 1] + (steps - within)

    def steps(self, sums: Tensor) -> Tensor:
        """The smallest L >= 1 with c(L) >= the given sum, int64."""
        steps = torch.searchsorted(self._sums, sums).clamp_(max=len(self._sums) - 1).add_(1)
        return steps if self._all else steps + (sums - self._sums[-1]).clamp_(min=0.0).ceil_().long()


def _draws(anchors: Tensor, offsets: Tensor, episodes: Tensor, steps_left: Tensor) -> Draws:
    """Where segments are whose anchors have the given episodes and L steps left."""
    rows = anchors + episodes
    reached = torch.minimum(offsets, steps_left)
    return Draws(anchors, offsets, rows, rows + reached, anchors + reached - 1, offsets > steps_left)


class SegmentSampler:
    """Draws pairs of a transition and a later state of its episode, each in proportion to ``gamma^(k-1)``.

    Over the states that the log shows, that is the discounted future-state distribution p_gamma
    (Mazoure et al. 2023, section 4.1): the offset k is geometric, k >= 1. With L steps left in the episode:

    * a **truncated** episode says nothing of what lies past its end, so pairs that reach past it do not
      exist: anchors are drawn in proportion to ``1 - gamma^L``, the share of their future that was logged,
      and k from the geometric distribution truncated to 1..L, by its inverse distribution function
      ``k = 1 + floor(log(1 - u (1 - gamma^L)) / log gamma)``;
    * a **terminated** episode stays at its end for ever, so k is not truncated, every anchor counts fully,
      and k > L is the absorbing state, whose reward is zero.

    Drawing anchors uniformly, as the paper does, would let the last steps before a timeout, of whose future
    next to nothing was seen, say as much as any other (measured in docs/truth.md).

    All of it is index arithmetic on the device that holds the transitions, which may be a file that is mapped
    into memory: nothing is kept but a few numbers an episode, and the work per segment does not grow with the
    data, but for one binary search among the episodes.
    """

    def __init__(self, transitions: Transitions, discount: float, episodes: Tensor | None = None) -> None:
        """Prepare to sample.

        Args:
            transitions: the log.
            discount: gamma in (0, 1), per step.
            episodes: (M,) int64 ids of those to draw from; None: all. Transitions keep their numbers.
        """
        self.transitions = transitions
        self.discount = discount
        self._log_discount = math.log(discount)
        device = transitions.actions.device
        chosen = (torch.arange(transitions.episodes) if episodes is None else episodes).to(device)
        self._lengths = transitions.lengths[chosen]
        terminated = transitions.terminated[chosen]
        self._terminates = bool(terminated.any())
        self._futures = _LoggedFutures(discount, int(self._lengths.max()), device)
        mass = torch.where(terminated, self._lengths, self._futures.sums(self._lengths))
        self._cumulative_mass = mass.cumsum(0)  # (M,)
        ends = transitions.episode_starts[chosen + 1]
        # In one table, because its rows lie far apart in a long log, and each look-up waits for memory. Whole
        # numbers are exact in double precision.
        self._table = torch.stack([mass, self._lengths, ends, chosen, terminated], dim=1)  # (M, 5)

    def sample(self, count: int, generator: Generator | None = None, per_episode: int = 1) -> Segments:
        """Draw ``count`` segments, each of which follows the law above; see ``draw``."""
        return self.gather(self.draw(count, generator, per_episode))

    def draw(self, count: int, generator: Generator | None = None, per_episode: int = 1) -> Draws:
        """Say where ``count`` segments are.

        Most of the work is the same for a few and for thousands of segments, so training draws those of many
        steps at once.

        Args:
            count: B.
            generator: of the draws.
            per_episode: consecutive segments that share an episode; 1: all are independent. With more, some
                of a batch's negatives come from the anchor's own episode, and to tell those from the positive
                the critic has to know what happens in an episode, not which episode it is.
        """
        # Double precision: at discount 0.999 and L = 1000 single precision visibly bends the law.
        draws = torch.rand(
            3, count, generator=generator, device=self._table.device, dtype=torch.float64
        )  # of the episode, the offset and the anchor
        place = draws[0, : -(-count // per_episode)] * self._cumulative_mass[-1]
        chosen = torch.searchsorted(self._cumulative_mass, place, right=True)
        table = self._table.index_select(0, chosen.clamp_(max=len(self._table) - 1))  # rounding
        if per_episode > 1:
            table = table.repeat_interleave(per_episode, dim=0)[:count]
        mass, lengths, ends, episodes, terminated = table.unbind(1)
        # Of a truncated episode, the last L anchors have the mass c(L); of a terminated one, L.
        mass_left = mass - draws[2] * mass
        steps_left = self._futures.steps(mass_left)
        if self._terminates:
            steps_left = torch.where(terminated > 0.0, mass_left.ceil().long(), steps_left)
        steps_left = torch.minimum(steps_left, lengths.long()).clamp_(min=1)  # rounding
        shown = self._futures.shares(steps_left)
        if self._terminates:
            shown = torch.where(terminated > 0.0, 1.0, shown)
        offsets = (shown.mul_(draws[1]).neg_().log1p_() / self._log_discount).long().add_(1)
        # Rounding can put a truncated offset one past its end; the law gives that no mass.
        within = torch.minimum(offsets, steps_left)
        offsets = torch.where(terminated > 0.0, offsets, within) if self._terminates else within
        return _draws(ends.long().sub_(steps_left), offsets, episodes.long(), steps_left)

    def segments(self, anchors: Tensor, offsets: Tensor) -> Segments:
        """The segments that start at the given transitions and reach ``offsets`` steps ahead, (B,) each."""
        episodes = self.transitions.episode_of(anchors)
        steps_left = self.transitions.episode_starts[episodes + 1] - anchors
        return self.gather(_draws(anchors, offsets, episodes, steps_left))

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

        The state that the p-th transition of its episode led to is reached from p anchors, with
        ``gamma^0 + ... + gamma^(p-1)``.

        Returns:
            Of the state that each transition of the chosen episodes led to, episode after episode, (N,)
            float64, and of the absorbing state, a scalar; they sum to one.
        """
        ends = self._lengths.cumsum(0)
        firsts = torch.repeat_interleave(ends - self._lengths, self._lengths)
        position = torch.arange(len(firsts), device=firsts.device) - firsts + 1
        states = self._futures.shares(position) / self._cumulative_mass[-1]
        return states, (1.0 - states.sum()).clamp(min=0.0) * self._terminates
