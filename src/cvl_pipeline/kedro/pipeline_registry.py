"""The pipelines that ``kedro run --pipelines`` knows.

They follow the parameters: one row of nodes per method in force, and no evaluation where no environment is known, but a
judgement from the log.
A hook sets the plan when Kedro has read the parameters, before it asks for the pipelines.
"""

from __future__ import annotations

from kedro.framework.project import pipelines
from kedro.pipeline import Pipeline

from cvl_pipeline.kedro.parameters import RunParameters
from cvl_pipeline.kedro.pipelines import (
    contrastive_dynamics,
    data_ingestion,
    evaluation,
    export,
    judging,
    policy_extraction,
    tuning,
    value_readout,
)
from cvl_pipeline.kedro.rows import Plan

_plans: list[Plan] = []


def plan_for(parameters: RunParameters) -> None:
    """Let the pipelines follow these parameters from now on."""
    _plans[:] = [Plan.of(parameters)]
    # Reset Kedro's cache, which may contain the pipelines of an earlier session.
    pipelines.configure(__name__)


def current_plan() -> Plan:
    """Return the plan in force; that of the default parameters, if nothing has been read."""
    return _plans[0] if _plans else Plan.of(RunParameters())


def register_stages() -> dict[str, Pipeline]:
    """Return one pipeline per stage, in the order that data flows."""
    plan = current_plan()
    return {
        "data_ingestion": data_ingestion.create_pipeline(),
        "contrastive_dynamics": contrastive_dynamics.create_pipeline(),
        "value_readout": value_readout.create_pipeline(),
        "policy_extraction": policy_extraction.create_pipeline(plan),
        "judging": judging.create_pipeline(plan),
        "evaluation": evaluation.create_pipeline(plan),
    }


def register_pipelines() -> dict[str, Pipeline]:
    """Return the stages, ``__default__``, which is all of them, ``export`` of policies, and ``tuning``, the search."""
    stages = register_stages()
    pipelines = {
        "__default__": sum(stages.values(), start=Pipeline([])),
        **stages,
        "export": export.create_pipeline(current_plan()),
        "tuning": tuning.create_pipeline(),
    }
    for node in {node for pipeline in pipelines.values() for node in pipeline.nodes}:
        # Kedro would import torch for the annotations, and warn that it cannot. The nodes check their parameters.
        vars(node.func)["__no_type_check__"] = True
    return pipelines
