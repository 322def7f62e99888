"""The pipelines that ``kedro run --pipelines`` knows."""

from __future__ import annotations

from kedro.pipeline import Pipeline

from cvl_pipeline.kedro.pipelines import (
    contrastive_dynamics,
    data_ingestion,
    evaluation,
    policy_extraction,
    tuning,
    value_readout,
)


def register_stages() -> dict[str, Pipeline]:
    """One pipeline a stage, in the order that data flows."""
    return {
        "data_ingestion": data_ingestion.create_pipeline(),
        "contrastive_dynamics": contrastive_dynamics.create_pipeline(),
        "value_readout": value_readout.create_pipeline(),
        "policy_extraction": policy_extraction.create_pipeline(),
        "evaluation": evaluation.create_pipeline(),
    }


def register_pipelines() -> dict[str, Pipeline]:
    """The stages, ``__default__``, which is all of them, and ``tuning``, which searches their parameters."""
    stages = register_stages()
    return {
        "__default__": sum(stages.values(), start=Pipeline([])),
        **stages,
        "tuning": tuning.create_pipeline(),
    }
