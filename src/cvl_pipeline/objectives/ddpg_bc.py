"""Deterministic policy gradient with behaviour cloning."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from cvl_pipeline.networks.actor import CategoricalActor, GaussianActor
from cvl_pipeline.objectives.base import Objective, ObjectiveParameters
from cvl_pipeline.training.processes import average


class DDPGPlusBC(Objective):
    """``-alpha Q(s, pi(s)) / mean |Q| + (pi(s) - a)^2`` (Fujimoto and Gu 2021, with CVL's Q).

    With discrete actions Q is the policy's mean over all of them and the second term ``-log pi(a | s)``.
    """

    class Parameters(ObjectiveParameters):
        """The settings of ``ddpg_bc``."""

        objective: Literal["ddpg_bc"] = Field(
            "ddpg_bc",
            description="Maximise Q(s, pi(s)), minus the squared distance to the logged action, in halves of the "
            "action range.",
        )
        alpha: float = Field(1.0, ge=0.0, description="Weight of Q / mean |Q| against the cloning error.")

    def loss(self, drawn: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the cloning error minus the weighted Q of the policy's actions."""
        batch, actor, q = self.batch(drawn), self.setting.actor, self.setting.q
        if isinstance(actor, CategoricalActor):
            log_probs = actor.log_probs(batch.observations)
            values = (log_probs.exp() * q.of_all_actions(batch.observations)).sum(-1)
            error = -(log_probs * batch.actions).sum(-1).mean()
        else:
            actions = actor(batch.observations)
            values = q(batch.observations, actions)
            assert isinstance(actor, GaussianActor)  # the only other one
            error = actor.distance(actions, batch.actions).mean()
        scale = average(values.detach().abs().mean()).clamp(min=1e-6)
        return error - self.parameters.alpha * values.mean() / scale, {"q": values.mean()}
