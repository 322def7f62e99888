"""Q(s, a) of the behaviour policy: a critic combined with a readout."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from cvl_pipeline.episodes.container import BLOCK, Transitions
from cvl_pipeline.networks.critic import ContrastiveCritic
from cvl_pipeline.readout.readouts import Readout
from cvl_pipeline.readout.references import CHUNK


@dataclass(frozen=True)
class QFunction:
    """Action values from a critic, trained without rewards, and a readout, which contains the rewards."""

    critic: ContrastiveCritic
    readout: Readout

    def __call__(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Q, (B, O) and (B, A) -> (B,); differentiable in both."""
        return self.readout.values(self.phi(observations, actions))

    def phi(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Inputs of the readout: (B, D), or (B, H, D) for a horizon-conditioned critic."""
        horizons = self.readout.horizons
        if not len(horizons):
            return self.critic.phi(observations, actions)
        return self.critic.phi(observations.unsqueeze(1), actions.unsqueeze(1), horizons.unsqueeze(0))

    @torch.no_grad()
    def in_batches(self, observations: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Q and effective sample size of many pairs, (N, O) and (N, A) -> (N,) each."""
        values, sizes = [], []
        rows = max(1, CHUNK // max(1, len(self.readout.horizons)))
        for start in range(0, len(actions), rows):
            part = slice(start, start + rows)
            value, size = self.readout.values_and_sample_size(self.phi(observations[part], actions[part]))
            values.append(value)
            sizes.append(size)
        return torch.cat(values), torch.cat(sizes)

    def of_transitions(
        self, transitions: Transitions, index: Tensor, actions: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Q and effective sample size of logged states with logged actions, (M,) each.

        Args:
            transitions: the log.
            index: (M,) int64, transitions that provide the states.
            actions: (M,) int64, transitions that provide the actions; None: the same.
        """
        actions = index if actions is None else actions
        parts = [
            self.in_batches(transitions.states(rows), transitions.actions.index_select(0, taken))
            for rows, taken in zip(torch.split(index, BLOCK), torch.split(actions, BLOCK), strict=True)
        ]
        values, sizes = zip(*parts, strict=True)
        return torch.cat(values), torch.cat(sizes)

    def of_all_actions(self, observations: Tensor) -> Tensor:
        """Q of every discrete action, (B, O) -> (B, A); actions are one-hot."""
        count = self.critic.shape.action_size
        actions = torch.eye(count, device=observations.device)
        values = self(observations.repeat_interleave(count, dim=0), actions.repeat(len(observations), 1))
        return values.reshape(len(observations), count)

    def frozen(self, device: torch.device | str) -> QFunction:
        """Copy the function to a device, without gradients for its weights; the original is unchanged."""
        return QFunction(copy.deepcopy(self.critic).to(device).requires_grad_(False), self.readout.to(device))
