"""ReBRAC: revisiting the minimalist approach to offline reinforcement learning (Tarasov et al., NeurIPS 2023)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from cvl_pipeline.methods.off_policy import OffPolicyMethod
from cvl_pipeline.methods.td3 import TD3, TD3Parameters
from cvl_pipeline.training.processes import average


class BehaviourRegularised(TD3):
    """TD3 with two penalties on the distance from the logged actions: one for the actor, one for Q.

    The next state of an episode's last step has no logged action, so Q has no penalty there.
    """

    def training_loss(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum of both losses of Q and of the actor's, each with its own penalty."""
        index, noise = batch
        rebrac = self.settings
        self.move_targets()
        step = self.steps(index)
        with torch.no_grad():
            next_actions = self.next_actions(step, noise)
            penalty = step.has_next * self.actor.distance(next_actions, step.next_actions).sum(-1)
            next_q = self.target_q(step.next_states, next_actions).amin(0) - rebrac.critic_bc * penalty
            target = step.rewards + rebrac.discount * step.goes_on * next_q
        q_loss = (self.q(step.states, step.actions) - target).square().mean(1).sum()
        actions = self.actor(step.states)
        q = self.fixed_q(step.states, actions).amin(0)
        scale = 1.0 / average(q.detach().abs().mean()).clamp(min=1e-6)
        cloning = self.actor.distance(actions, step.actions)
        policy_loss = rebrac.actor_bc * cloning.sum(-1).mean() - scale * q.mean()
        metrics = {"q": target.mean(), "cloning_error": cloning.mean(), "critic_penalty": penalty.mean()}
        return q_loss + policy_loss, metrics


class ReBRAC(OffPolicyMethod):
    """ReBRAC."""

    class Parameters(TD3Parameters):
        """The settings of ``rebrac``; the penalties are those published for walker2d-medium."""

        method: Literal["rebrac"] = Field(
            "rebrac",
            description="ReBRAC. For continuous actions. Published with `hidden` of three layers of 256, and "
            "batches of 1024 on D4RL's locomotion.",
        )
        actor_bc: float = Field(
            0.05,
            ge=0.0,
            description="Weight of the squared distance from the logged action against Q / mean |Q|. Published: "
            "0.001 for halfcheetah-medium, 0.01 for hopper-medium, 0.05 for walker2d-medium, 0.1 for pen-human.",
        )
        critic_bc: float = Field(
            0.1,
            ge=0.0,
            description="Reward that the same distance in the next state costs. Published, for unscaled rewards: "
            "0.01 for halfcheetah-medium and hopper-medium, 0.1 for walker2d-medium, 0.5 for pen-human.",
        )

    title = "ReBRAC"
    module = BehaviourRegularised
    discrete_actions = False
