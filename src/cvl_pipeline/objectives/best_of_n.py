"""The policy that asks the critic every time it acts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cvl_pipeline.networks.actor import Actor
from cvl_pipeline.readout.q_function import QFunction


class BestOfN(nn.Module):
    """Acts by the best, in Q, of N actions that a cloned stochastic policy proposes.

    Proposals are made of the same N rows of noise in every state, so the policy is deterministic. Their first
    is the mode.
    """

    proposals: Tensor

    def __init__(self, actor: Actor, q: QFunction, proposals: Tensor) -> None:
        """Combine the parts.

        Args:
            actor: the cloned policy.
            q: judges its proposals.
            proposals: noise of the actor, (N, A).
        """
        super().__init__()
        self.actor = actor
        self.shape = actor.shape
        self.critic = q.critic
        self.readout = q.readout
        self.register_buffer("proposals", proposals)

    @torch.no_grad()
    def forward(self, observations: Tensor) -> Tensor:
        """Actions, (B, O) -> (B, A)."""
        mode = self.actor(observations).unsqueeze(1)
        candidates = torch.cat([mode, self.actor.act_with_noise(observations, self.proposals)], dim=1)
        batch, count, size = candidates.shape
        values = QFunction(self.critic, self.readout)(
            observations.repeat_interleave(count, dim=0), candidates.reshape(-1, size)
        )
        best = values.reshape(batch, count).argmax(1)
        return candidates[torch.arange(batch), best]
