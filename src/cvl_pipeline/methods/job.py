"""Training a policy as a job that several processes can share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd
from torch import nn

from cvl_pipeline.episodes.data import EpisodeData
from cvl_pipeline.imports import check_return, named
from cvl_pipeline.methods.base import METHODS
from cvl_pipeline.schema import Strict
from cvl_pipeline.training.parameters import TrainingParameters

if TYPE_CHECKING:
    from cvl_pipeline.readout.q_function import QFunction
    from cvl_pipeline.training.callbacks import Watcher

# Named, not imported: a method without a critic must not depend on the code of readouts.
Q_FUNCTION = "cvl_pipeline.readout.q_function:QFunction"


@dataclass(frozen=True)
class PolicyJob:
    """One method's training.

    Attributes:
        data: the episodes; with rewards if the method needs them.
        parameters: of the method.
        seed: of the run.
        values: critic and readout, if the method needs them.
    """

    data: EpisodeData
    parameters: Strict
    seed: int
    values: QFunction | None = None
    name: ClassVar[str] = "policy"
    makes: ClassVar[str] = "policy"

    @property
    def training(self) -> TrainingParameters:
        """How many processes, among others."""
        return METHODS.create(self.parameters).training

    def artifacts(self) -> dict[str, Any]:
        """Return the episodes, and critic and readout if there are any."""
        q = self.values
        return self.data.parts() | ({"critic": q.critic, "readout": q.readout} if q else {})

    def settings(self) -> dict[str, Any]:
        """Return parameters and seed."""
        return {"parameters": self.parameters.model_dump(mode="json"), "seed": self.seed}

    @classmethod
    def from_parts(cls, artifacts: Mapping[str, Any], settings: Mapping[str, Any]) -> PolicyJob:
        """Make the job again from ``artifacts`` and ``settings``."""
        parts = dict(artifacts)
        critic, readout = parts.pop("critic", None), parts.pop("readout", None)
        values = named(Q_FUNCTION)(critic, readout) if critic is not None and readout is not None else None
        parameters = METHODS.validate(settings["parameters"])
        return cls(EpisodeData(**parts), parameters, settings["seed"], values)

    def run(
        self, checkpoints: Path | None, logs: Path | None, watch: Watcher | None
    ) -> tuple[nn.Module, pd.DataFrame]:
        """Train in this process; policies are not watched."""
        method = METHODS.create(self.parameters)
        trained: Any = method.train(
            self.data, self.seed, values=self.values, checkpoints=checkpoints, logs=logs
        )
        whole = isinstance(trained, tuple) and len(trained) == 2
        valid = whole and isinstance(trained[0], nn.Module) and isinstance(trained[1], pd.DataFrame)
        check_return(method, "train", trained, valid=valid, expected="TrainedPolicy(policy, history)")
        policy, history = trained
        return policy, history
