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
    """Draws segments whose future state follows the discounted future-state distribution p_gamma.

    The anchor t is uniform over transitions and the offset k ~ Geometric(1 - discount), k >= 1
    (Mazoure et al. 2023, section 4.1). With L steps left in the episode:

    * a **truncated** episode says nothing of what lies past its end, so k is drawn from the geometric
      distribution truncated to 1..L and renormalised, by its inverse distribution function
      ``k = 1 + floor(log(1 - u (1 - discount^L)) / log discount)``;
    * a **terminated** episode stays at its end for ever, so k is not truncated and k > L is the
      absorbing state, whose reward is zero.

    All of it is index arithmetic on the device that holds the transitions; the work per segment does not grow
    with the data, but for one binary search among the episodes.
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

    def sample(self, count: int, generator: Generator | None = None) -> Segments:
        """Draw ``count`` independent segments."""
        data = self.transitions
        device = data.actions.device
        anchors = torch.randint(len(data), (count,), generator=generator, device=device)
        episodes = data.episode_of(anchors)
        steps_left = data.episode_starts[episodes + 1] - anchors  # L >= 1
        # Double precision: at discount 0.999 and L = 1000 single precision visibly bends the law.
        u = torch.rand(count, generator=generator, device=device, dtype=torch.float64)
        open_ended = data.terminated[episodes]
        mass = torch.where(open_ended, 1.0, -torch.expm1(steps_left.double() * self._log_discount))
        offsets = 1 + (torch.log1p(-u * mass) / self._log_discount).floor().long()
        absorbed = open_ended & (offsets > steps_left)
        reached = torch.minimum(offsets, steps_left)
        # Rounding can put a truncated offset one past its end; the law gives that no mass.
        offsets = torch.where(open_ended, offsets, reached)
        rows = anchors + episodes
        return Segments(
            observations=data.observations[rows],
            actions=data.actions[anchors],
            futures=data.observations[rows + reached],
            absorbed=absorbed,
            arrivals=anchors + reached - 1,
            anchors=anchors,
            offsets=offsets,
        )
