"""A small log, parameters and studies for tests of tuning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cvl_pipeline.episodes.data import EpisodeData
from cvl_pipeline.io.artifacts import save_artifact
from cvl_pipeline.parameters import StageParameters
from cvl_pipeline.testing.builders import (
    DATASET,
    dynamics_parameters,
    make_rewards,
    make_transitions,
    policy_parameters,
    readout_parameters,
)
from cvl_pipeline.tuning.parameters import TuningParameters
from cvl_pipeline.tuning.storage import StudyLocation
from cvl_pipeline.tuning.study import open_study, prepare, signature
from cvl_pipeline.tuning.worker import Specification

SPACE: dict[str, Any] = {
    "contrastive_dynamics.temperature": {"type": "float", "low": 0.1, "high": 1.0, "log": True},
    "contrastive_dynamics.training.steps": {"type": "int", "low": 4, "high": 12, "step": 4},
}


def make_stages(**changes: Any) -> StageParameters:
    values: dict[str, Any] = {
        "dataset": DATASET,
        "data_ingestion": {"validation_fraction": 0.3, "workers": 1},
        "contrastive_dynamics": dynamics_parameters(),
        "value_readout": readout_parameters(),
        "policy_extraction": policy_parameters(),
        "evaluation": {"episodes": 2, "workers": 1},
    }
    return StageParameters.model_validate(values | changes)


def make_tuning(**changes: Any) -> TuningParameters:
    values: dict[str, Any] = {
        "trials": 4, "workers": 1, "returns_discount": 0.9, "startup_trials": 2, "max_failures": 2,
        "grace_seconds": 60.0, "space": SPACE,
    }  # fmt: skip
    return TuningParameters(**(values | changes))


def make_log(stages: StageParameters) -> EpisodeData:
    """Eight random episodes, prepared as the stages say."""
    transitions = make_transitions([12, 9, 15, 11, 14, 10, 13, 12], [True, False] * 4)
    return EpisodeData.prepare(transitions, make_rewards(transitions), stages.data_ingestion, stages.seed)


def make_specification(
    folder: Path, tuning: TuningParameters, url: str | None = None, name: str = "name"
) -> Specification:
    """Start a study, and specify it for a worker."""
    stages = make_stages()
    for kind, part in make_log(stages).parts().items():
        save_artifact(folder / "inputs" / f"{kind}.safetensors", kind, part)
    specification = Specification(
        folder, StudyLocation(folder / "journal.log", url), name, stages, tuning, 0, 1, 0
    )
    study = open_study(specification.location, name, tuning, 0)
    prepare(study, signature(stages, tuning, "data"), tuning, stages, specification.records)
    return specification
