"""A small log, parameters and studies for tests of tuning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cvl_pipeline.environments.parameters import EvaluationParameters
from cvl_pipeline.episodes.parameters import IngestionParameters
from cvl_pipeline.episodes.preparation import fit_normalisation, split_episodes
from cvl_pipeline.io.artifacts import save_artifact
from cvl_pipeline.parameters import StageParameters
from cvl_pipeline.sources.parameters import DatasetParameters
from cvl_pipeline.testing.builders import (
    DATASET,
    dynamics_parameters,
    make_rewards,
    make_transitions,
    policy_parameters,
    readout_parameters,
    reward_parameters,
)
from cvl_pipeline.tuning.parameters import TuningParameters
from cvl_pipeline.tuning.storage import StudyLocation
from cvl_pipeline.tuning.study import open_study, prepare, signature
from cvl_pipeline.tuning.trial import Log
from cvl_pipeline.tuning.worker import KINDS, Specification

SPACE: dict[str, Any] = {
    "contrastive_dynamics.temperature": {"type": "float", "low": 0.1, "high": 1.0, "log": True},
    "contrastive_dynamics.training.steps": {"type": "int", "low": 4, "high": 12, "step": 4},
}


def make_stages(**changes: Any) -> StageParameters:
    values: dict[str, Any] = {
        "seed": 0,
        "dataset": DatasetParameters(**DATASET),
        "reward": reward_parameters(),
        "data_ingestion": IngestionParameters(validation_fraction=0.3, std_floor=1e-3, workers=1),
        "contrastive_dynamics": dynamics_parameters(),
        "value_readout": readout_parameters(),
        "policy_extraction": policy_parameters(),
        "evaluation": EvaluationParameters(
            environment=None, episode_steps=None, episodes=2, confidence=0.95, workers=1
        ),
    }
    return StageParameters(**(values | changes))


def make_tuning(**changes: Any) -> TuningParameters:
    values: dict[str, Any] = {
        "study": "study", "storage": None, "trials": 4, "workers": 1,
        "objectives": ("returns_correlation",), "measures": (), "seeds": 1, "returns_discount": 0.9,
        "sampler": "tpe", "startup_trials": 2, "pruner": "none", "max_failures": 2, "grace_seconds": 60.0,
        "space": SPACE,
    }  # fmt: skip
    return TuningParameters(**(values | changes))


def make_log(stages: StageParameters) -> Log:
    transitions = make_transitions([12, 9, 15, 11, 14, 10, 13, 12], [True, False] * 4)
    split = split_episodes(transitions, stages.data_ingestion.validation_fraction, stages.seed)
    normalisation = fit_normalisation(transitions, split, stages.data_ingestion.std_floor)
    return Log(transitions, make_rewards(transitions), split, normalisation)


def make_specification(
    folder: Path, tuning: TuningParameters, url: str | None = None, name: str = "name"
) -> Specification:
    """A study that has been begun, and what a worker needs to know of it."""
    stages = make_stages()
    log = make_log(stages)
    for kind in KINDS:
        save_artifact(folder / "inputs" / f"{kind}.safetensors", kind, getattr(log, kind))
    specification = Specification(
        folder, StudyLocation(folder / "journal.log", url), name, stages, tuning, 0, 1, 0
    )
    study = open_study(specification.location, name, tuning, 0)
    prepare(study, signature(stages, tuning, "data"), tuning, stages, specification.records)
    return specification
