"""Drawing contrastive segments: anchors, discounted future states and the marginal of both."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from cvl_pipeline.trajectories.container import Transitions


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

    All of it is index arithmetic on the device that holds the transitions; the work per segment does not grow
    with the data, but for one binary search.
    """

    def __init__(self, transitions: Transitions, discount: float) -> None:
        """Prepare to sample.

        Args:
            transitions: the episodes to draw from.
            discount: gamma in (0, 1), per step.
        """
        self.transitions = transitions
        self.discount = discount
        self._log_discount = math.log(discount)
        index = torch.arange(len(transitions), device=transitions.actions.device)
        self._cumulative_mass = self._mass(index).cumsum(0)  # (N,)

    def sample(self, count: int, generator: Generator | None = None, per_episode: int = 1) -> Segments:
        """Draw ``count`` segments, each of which follows the law above.

        Args:
            count: B.
            generator: of the draws.
            per_episode: segments that share an episode; 1: all are independent. With more, some of a batch's
                negatives come from the anchor's own episode, and to tell those from the positive the critic
                has to know what happens in an episode, not which episode it is.
        """
        device = self.transitions.actions.device
        # Double precision: at discount 0.999 and L = 1000 single precision visibly bends the law.
        draws = torch.rand(3, count, generator=generator, device=device, dtype=torch.float64)
        mass = self._cumulative_mass
        anchors = self._anchors(draws[0] * mass[-1])
        if per_episode > 1:
            first = anchors[: -(-count // per_episode)].repeat_interleave(per_episode)[:count]
            episodes = self.transitions.episode_of(first)
            starts = self.transitions.episode_starts
            low = torch.where(starts[episodes] > 0, mass[starts[episodes] - 1], 0.0)
            anchors = self._anchors(low + draws[2] * (mass[starts[episodes + 1] - 1] - low))
        return self.segments(anchors, self._offsets(anchors, draws[1]))

    def segments(self, anchors: Tensor, offsets: Tensor) -> Segments:
        """The segments that start at the given transitions and reach ``offsets`` steps ahead, (B,) each."""
        data = self.transitions
        episodes = data.episode_of(anchors)
        steps_left = data.episode_starts[episodes + 1] - anchors
        rows = anchors + episodes
        reached = torch.minimum(offsets, steps_left)
        return Segments(
            observations=data.observations[rows],
            actions=data.actions[anchors],
            futures=data.observations[rows + reached],
            absorbed=offsets > steps_left,
            arrivals=anchors + reached - 1,
            anchors=anchors,
            offsets=offsets,
        )

    def marginal(self) -> tuple[Tensor, Tensor]:
        """Exact probability of every future state under ``sample``.

        The state that the p-th transition of its episode led to is reached from p anchors, with
        ``gamma^0 + ... + gamma^(p-1)``.

        Returns:
            Of the state that each transition led to, (N,) float64, and of the absorbing state, a scalar; they
            sum to one.
        """
        data = self.transitions
        index = torch.arange(len(data), device=data.actions.device)
        position = index - data.episode_starts[data.episode_of(index)] + 1
        states = -torch.expm1(position.double() * self._log_discount) / self._cumulative_mass[-1]
        return states, (1.0 - states.sum()).clamp(min=0.0) * data.terminated.any()

    def _anchors(self, mass: Tensor) -> Tensor:
        """The transitions at which the cumulative mass passes the given values."""
        anchors = torch.searchsorted(self._cumulative_mass, mass, right=True)
        return anchors.clamp(max=len(self.transitions) - 1)  # rounding

    def _steps_left(self, anchors: Tensor) -> tuple[Tensor, Tensor]:
        """L of each anchor, and whether its episode terminated."""
        episodes = self.transitions.episode_of(anchors)
        return self.transitions.episode_starts[episodes + 1] - anchors, self.transitions.terminated[episodes]

    def _mass(self, anchors: Tensor) -> Tensor:
        """Share of each anchor's discounted future that the log shows, float64."""
        steps_left, terminated = self._steps_left(anchors)
        return torch.where(terminated, 1.0, -torch.expm1(steps_left.double() * self._log_discount))

    def _offsets(self, anchors: Tensor, u: Tensor) -> Tensor:
        steps_left, terminated = self._steps_left(anchors)
        offsets = 1 + (torch.log1p(-u * self._mass(anchors)) / self._log_discount).floor().long()
        # Rounding can put a truncated offset one past its end; the law gives that no mass.
        return torch.where(terminated, offsets, torch.minimum(offsets, steps_left))
