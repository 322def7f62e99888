"""Behaviour cloning: the control."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from cvl_pipeline.methods.base import Method, MethodParameters
from cvl_pipeline.objectives.base import TrainedPolicy
from cvl_pipeline.objectives.bc import BehaviourCloning

if TYPE_CHECKING:
    from cvl_pipeline.episodes.data import EpisodeData
    from cvl_pipeline.readout.q_function import QFunction


class BC(Method):
    """Clones the logged actions: same data, network and gradient steps, no critic and no rewards."""

    class Parameters(MethodParameters):
        """The settings of ``bc``: none of its own."""

        method: Literal["bc"] = Field("bc", description="Behaviour cloning.")

    title = "BC (control)"
    needs_rewards = False

    def train(
        self,
        data: EpisodeData,
        seed: int,
        *,
        values: QFunction | None = None,
        checkpoints: Path | None = None,
        logs: Path | None = None,
    ) -> TrainedPolicy:
        """Clone the behaviour."""
        # Not above: it imports torch and Lightning, which only training needs to wait for.
        from cvl_pipeline.objectives.training import train_policy

        objective = BehaviourCloning.Parameters(**self.parameters.actor_settings)
        return train_policy(data.without_rewards(), objective, seed, checkpoints=checkpoints, logs=logs)
