"""Behaviour cloning: the control that uses neither critic nor rewards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from cvl_pipeline.objectives.base import Objective, ObjectiveParameters

if TYPE_CHECKING:
    from torch import Tensor


class BehaviourCloning(Objective):
    """``-log pi(a | s)``."""

    class Parameters(ObjectiveParameters):
        """The settings of ``bc``: none of its own."""

        objective: Literal["bc"] = Field("bc", description="Behaviour cloning, -log pi(a | s).")

    needs_critic = False

    def loss(self, drawn: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the negative log-likelihood of the logged actions."""
        batch = self.batch(drawn)
        return -self.setting.actor.log_prob(batch.observations, batch.actions).mean(), {}
