"""Contrastive Value Learning: a policy extracted from the values of the contrastive critic."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from cvl_pipeline.methods.base import Method
from cvl_pipeline.objectives.base import OBJECTIVES, ObjectiveParameters, TrainedPolicy
from cvl_pipeline.schema import Choice, Strict
from cvl_pipeline.training.parameters import TrainingParameters

if TYPE_CHECKING:
    from cvl_pipeline.episodes.data import EpisodeData
    from cvl_pipeline.readout.q_function import QFunction


def _default_objective() -> ObjectiveParameters:
    # By name: a policy of another objective must not depend on the code of the default one.
    return OBJECTIVES.validate({})  # type: ignore[return-value]


class CVL(Method):
    """Contrastive Value Learning (Mazoure et al. 2023), with any objective."""

    class Parameters(Strict):
        """The settings of ``cvl``."""

        method: Literal["cvl"] = Field("cvl", description="Contrastive Value Learning.")
        extraction: Annotated[ObjectiveParameters, Choice(OBJECTIVES)] = Field(
            default_factory=_default_objective,
            description="The objective and its settings, as in `policy_extraction`.",
        )

    title = "CVL"
    needs_critic = True

    @classmethod
    def inherited(cls, policy_extraction: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings of the objective that the method takes over as a baseline."""
        return {"extraction": dict(policy_extraction)}

    @property
    def training(self) -> TrainingParameters:
        """How the policy is trained."""
        extraction: ObjectiveParameters = self.parameters.extraction
        return extraction.training

    def train(
        self,
        data: EpisodeData,
        seed: int,
        *,
        values: QFunction | None = None,
        checkpoints: Path | None = None,
        logs: Path | None = None,
    ) -> TrainedPolicy:
        """Extract a policy from the frozen critic."""
        # Not above: it imports torch and Lightning, which only training needs to wait for.
        from cvl_pipeline.objectives.training import train_policy

        return train_policy(
            data, self.parameters.extraction, seed, values=values, checkpoints=checkpoints, logs=logs
        )
