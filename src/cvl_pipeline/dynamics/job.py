"""Training a critic as a job that several processes can share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd

from cvl_pipeline.dynamics.parameters import DynamicsParameters
from cvl_pipeline.episodes.data import EpisodeData
from cvl_pipeline.networks.critic import ContrastiveCritic
from cvl_pipeline.training.parameters import TrainingParameters

if TYPE_CHECKING:
    from cvl_pipeline.training.callbacks import Watcher


@dataclass(frozen=True)
class CriticJob:
    """Contrastive training on transitions alone."""

    data: EpisodeData
    parameters: DynamicsParameters
    seed: int
    name: ClassVar[str] = "critic"
    makes: ClassVar[str] = "critic"

    @property
    def training(self) -> TrainingParameters:
        """How many processes, among others."""
        return self.parameters.training

    def artifacts(self) -> dict[str, Any]:
        """Return the episodes, without their rewards."""
        return self.data.without_rewards().parts()

    def settings(self) -> dict[str, Any]:
        """Return parameters and seed."""
        return {"parameters": self.parameters.model_dump(mode="json"), "seed": self.seed}

    @classmethod
    def from_parts(cls, artifacts: Mapping[str, Any], settings: Mapping[str, Any]) -> CriticJob:
        """Make the job again from ``artifacts`` and ``settings``."""
        parameters = DynamicsParameters.model_validate(settings["parameters"])
        return cls(EpisodeData(**artifacts), parameters, settings["seed"])

    def run(
        self, checkpoints: Path | None, logs: Path | None, watch: Watcher | None
    ) -> tuple[ContrastiveCritic, pd.DataFrame]:
        """Train in this process."""
        # Not above: Lightning takes two seconds to import, which only training needs to wait for.
        from cvl_pipeline.dynamics.module import train_dynamics

        return train_dynamics(
            self.data, self.parameters, self.seed, checkpoints=checkpoints, logs=logs, watch=watch
        )
