"""TD3+BC: a minimalist approach to offline reinforcement learning (Fujimoto and Gu, NeurIPS 2021)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from cvl_pipeline.methods.off_policy import OffPolicyMethod
from cvl_pipeline.methods.td3 import TD3, TD3Parameters
from cvl_pipeline.training.processes import average


class TD3PlusBC(TD3):
    """TD3 whose actor also clones the logged actions."""

    def training_loss(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum of both losses of Q and of the actor's, equations 3 and 5 of the paper."""
        index, noise = batch
        self.move_targets()
        step = self.steps(index)
        with torch.no_grad():
            next_q = self.target_q(step.next_states, self.next_actions(step, noise)).amin(0)
            target = step.rewards + self.settings.discount * step.goes_on * next_q
        q_loss = (self.q(step.states, step.actions) - target).square().mean(1).sum()
        actions = self.actor(step.states)
        (q,) = self.fixed_q(step.states, actions, 1)  # the first one alone, as published
        scale = self.settings.alpha / average(q.detach().abs().mean()).clamp(min=1e-6)  # lambda
        cloning = self.actor.distance(actions, step.actions).mean()
        policy_loss = cloning - scale * q.mean()
        return q_loss + policy_loss, {"q": target.mean(), "cloning_error": cloning}


class TD3BC(OffPolicyMethod):
    """TD3+BC."""

    class Parameters(TD3Parameters):
        """The settings of ``td3_bc``; the defaults are published, but for scaled rewards."""

        method: Literal["td3_bc"] = Field("td3_bc", description="TD3+BC. For continuous actions.")
        alpha: float = Field(
            2.5,
            ge=0.0,
            description="Weight of Q / mean |Q| against the cloning error; 2.5 on all of D4RL's locomotion.",
        )

    title = "TD3+BC"
    module = TD3PlusBC
    discrete_actions = False
