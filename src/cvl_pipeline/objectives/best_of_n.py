"""The policy that asks the critic every time it acts."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Generator, Tensor, nn

from cvl_pipeline.errors import InputError
from cvl_pipeline.networks.actor import Actor, Policy
from cvl_pipeline.objectives.base import ObjectiveParameters
from cvl_pipeline.objectives.bc import BehaviourCloning
from cvl_pipeline.readout.action_values import ActionValues
from cvl_pipeline.readout.q_function import QFunction
from cvl_pipeline.schema import MOST_UNITS
from cvl_pipeline.training.seeds import stream_seed


class BestOfN(Policy):
    """Acts by the best, in Q, of N actions that a cloned stochastic policy proposes.

    The same N rows of noise make the proposals in every state, so the policy is deterministic. The first
    proposal is the mode.
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
        self.discrete = actor.discrete
        self.critic = q.critic
        self.readout = q.readout
        self.register_buffer("proposals", proposals)

    @torch.no_grad()
    def forward(self, observations: Tensor) -> Tensor:
        """Actions, (B, O) -> (B, A)."""
        mode = self.actor(observations).unsqueeze(1)
        candidates = torch.cat([mode, self.actor.act_with_noise(observations, self.proposals)], dim=1)
        best = QFunction(self.critic, self.readout).of_actions(observations, candidates).argmax(1)
        return candidates[torch.arange(candidates.shape[0]), best]  # len() would be a constant in an export


class BestOfNProposals(BehaviourCloning):
    """Clones the behaviour; the critic chooses among the clone's proposals when the policy acts."""

    class Parameters(ObjectiveParameters):
        """The settings of ``best_of_n``."""

        objective: Literal["best_of_n"] = Field(
            "best_of_n", description="Sample actions from a cloned policy and take the one with the best Q."
        )
        proposals: int = Field(
            32,
            ge=1,
            le=MOST_UNITS,
            description="Number N of actions that the cloned policy proposes beside its mode.",
        )

    needs_critic = True
    acts_with_noise = True

    def policy(self, actor: Actor, values: ActionValues | None, seed: int) -> nn.Module:
        """Return the policy that asks the critic."""
        if not isinstance(values, QFunction):  # the policy's artifact keeps a critic and a readout
            raise InputError("policy_extraction.objective 'best_of_n' needs CVL's critic")
        generator = Generator().manual_seed(stream_seed(seed, "proposals", 0))
        return BestOfN(actor, values.frozen("cpu"), actor.noise(self.parameters.proposals, generator))
