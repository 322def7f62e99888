"""Implicit Q-Learning (Kostrikov, Nair and Levine, ICLR 2022)."""

from __future__ import annotations

import copy
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from cvl_pipeline.methods.off_policy import OffPolicy, OffPolicyMethod, ValueParameters, follow
from cvl_pipeline.networks.mlp import MLP
from cvl_pipeline.training.processes import gather


class ImplicitQLearning(OffPolicy):
    """Updates V, both Q and the policy in one gradient step; the published code updates V first."""

    def networks(self) -> None:
        """Build Q and V."""
        self.q = self.ensemble()
        self.v = MLP(self.q.features, self.settings.hidden, 1)

    def finish(self) -> None:
        """Build the target of Q."""
        self.target_q = copy.deepcopy(self.q).requires_grad_(False)

    def training_loss(self, batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum of equations 5 to 7 of the paper; each term reaches its own network alone.

        Q and V share the encoder of images, so both train it.
        """
        iql = self.settings
        follow(self.target_q, self.q, iql.target_rate)
        step = self.steps(batch)
        encoded = self.q.encode_observation
        value = self.v(encoded(step.states)).squeeze(-1)
        with torch.no_grad():
            advantage = self.target_q(step.states, step.actions).amin(0) - value
            next_value = self.v(encoded(step.next_states)).squeeze(-1)
            target = step.rewards + iql.discount * step.goes_on * next_value
            spread = gather(advantage).std()  # of the whole batch, which several processes may share
            scale = spread.clamp(min=1e-6) if iql.scale_advantage else 1.0
            weights = (iql.beta * advantage / scale).exp().clamp(max=iql.max_weight)
        error = advantage + value.detach() - value
        asymmetry = torch.where(error > 0, iql.expectile, 1.0 - iql.expectile)
        v_loss = (asymmetry * error.square()).mean()
        q_loss = (self.q(step.states, step.actions) - target).square().mean(1).sum()
        policy_loss = -(weights * self.actor.log_prob(step.states, step.actions)).mean()
        return v_loss + q_loss + policy_loss, {"q": target.mean(), "advantage_std": spread}


class IQL(OffPolicyMethod):
    """Implicit Q-Learning."""

    class Parameters(ValueParameters):
        """The settings of ``iql``; the defaults are published, but for scaled rewards."""

        method: Literal["iql"] = Field("iql", description="Implicit Q-Learning.")
        expectile: float = Field(0.7, gt=0.5, lt=1.0, description="Expectile of Q that V regresses on.")
        beta: float = Field(3.0, ge=0.0, description="Inverse temperature of the advantage weights.")
        max_weight: float = Field(100.0, gt=0.0, description="Largest weight of a transition.")
        scale_advantage: bool = Field(
            False,
            description="Divide advantages by their standard deviation in the batch, so that beta means the same "
            "for any reward.",
        )

    title = "IQL"
    module = ImplicitQLearning
