"""The parameters of all stages, checked together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from cvl_pipeline.dynamics.parameters import DynamicsParameters
from cvl_pipeline.environments.parameters import EvaluationParameters
from cvl_pipeline.episodes.parameters import IngestionParameters
from cvl_pipeline.errors import InputError
from cvl_pipeline.judging.parameters import JudgingParameters
from cvl_pipeline.methods.base import METHODS
from cvl_pipeline.methods.bc import BC
from cvl_pipeline.objectives.awr import AdvantageWeightedRegression
from cvl_pipeline.objectives.base import OBJECTIVES, ActorParameters, ObjectiveParameters, PolicyTraining
from cvl_pipeline.readout.parameters import (
    READOUTS,
    REWARDS,
    ExactParameters,
    LoggedReward,
    ReadoutParameters,
    RewardParameters,
    ValueReportParameters,
)
from cvl_pipeline.schema import LARGEST_SEED, Choice, Strict, merged
from cvl_pipeline.sources.base import SOURCES, SourceParameters
from cvl_pipeline.sources.metaworld import MetaWorld

RENAMED = {
    "contrastive_dynamics.logsumexp_penalty": "contrastive_dynamics.loss.logsumexp_penalty",
    "value_readout.compared_transitions": "value_report.compared_transitions",
    "policy_extraction.baseline": "policy_extraction.state_value",
    "policy_extraction.baseline_actions": "policy_extraction.state_value.actions",
    "policy_extraction.value_steps": "policy_extraction.state_value.steps",
}
"""New spellings of old parameters, for error messages."""
RESERVED_NAMES = {
    "cvl": "CVL itself",
    "behaviour": "the data in the results",
    "dynamics": "the critic's history",
    **dict.fromkeys(("critic", "judging_critic", "judging_critics", "results"), "a folder of logs"),
}
"""Names that a baseline cannot have, and what has them already: files or results would overwrite each other."""
REWARD_FREE = "reward_free_"
"""Prefix of the artifacts of methods that need no rewards."""


class StageParameters(Strict):
    """Parameters that all stages share, and one model per stage."""

    seed: int = Field(
        0,
        ge=0,
        le=LARGEST_SEED,
        description="Seed of collection, initial weights, batches, reference states and evaluation.",
    )
    dataset: Annotated[SourceParameters, Choice(SOURCES)] = Field(
        MetaWorld.Parameters(), description="The episodes, and the folder of their artifacts."
    )
    reward: Annotated[RewardParameters, Choice(REWARDS)] = Field(
        LoggedReward(), description="What counts as good. The dynamics never see it."
    )
    data_ingestion: IngestionParameters = Field(
        IngestionParameters(), description="How episodes are prepared for training."
    )
    contrastive_dynamics: DynamicsParameters = Field(
        DynamicsParameters(), description="What the contrastive critic is and how it is trained."
    )
    value_readout: Annotated[ReadoutParameters, Choice(READOUTS)] = Field(
        ExactParameters(), description="How values are read out of the critic."
    )
    value_report: ValueReportParameters = Field(
        ValueReportParameters(), description="How values are judged on held-out episodes."
    )
    policy_extraction: Annotated[ObjectiveParameters, Choice(OBJECTIVES)] = Field(
        AdvantageWeightedRegression.Parameters(), description="How CVL's policy is extracted from the values."
    )
    baselines: Annotated[dict[str, Any], Choice(METHODS, mapping=True)] = Field(
        {"bc": BC.Parameters()},
        description="Methods that are trained and evaluated beside CVL, by a name of yours. A name that is a method's "
        "chooses it. Network and training follow policy_extraction unless they are set; a method that learns values "
        "takes the gradient steps of critic, regression and policy together, 7500 by default.",
    )
    evaluation: EvaluationParameters = Field(
        EvaluationParameters(), description="How policies are judged in the real environment."
    )
    judging: JudgingParameters = Field(
        JudgingParameters(), description="How policies are judged from the log alone. See docs/deploy.md."
    )

    @model_validator(mode="before")
    @classmethod
    def _baselines_follow_policy_extraction(cls, values: Any) -> Any:
        return with_inherited(values) if isinstance(values, Mapping) else values

    @model_validator(mode="after")
    def _critic_is_no_more_far_sighted_than_the_readout(self) -> StageParameters:
        wanted, dynamics = self.value_readout.discount, self.contrastive_dynamics
        if wanted is not None and wanted < dynamics.discount and not dynamics.horizon_conditioning:
            raise ValueError(
                f"value_readout.discount is {wanted}, but contrastive_dynamics.discount is {dynamics.discount}, which "
                "is longer: lower that, raise value_readout.discount (null: the same), or set "
                "contrastive_dynamics.horizon_conditioning=true, for any discount"
            )
        return self

    @model_validator(mode="after")
    def _judging_critic_is_no_more_far_sighted_than_its_values(self) -> StageParameters:
        wanted, dynamics = self.judging.discount, self.contrastive_dynamics
        contrastive = self.judging.critic == "contrastive"
        if contrastive and wanted and wanted < dynamics.discount and not dynamics.horizon_conditioning:
            raise ValueError(
                f"judging.discount is {wanted}, but contrastive_dynamics.discount, which judging.critic=contrastive "
                f"uses, is {dynamics.discount}, which is longer: raise judging.discount, or take "
                "judging.critic=regression"
            )
        return self

    @model_validator(mode="after")
    def _names_of_baselines_are_free(self) -> StageParameters:
        for name in self.baselines:
            if name in RESERVED_NAMES:
                raise ValueError(
                    f"baselines: '{name}' is the name of {RESERVED_NAMES[name]}; choose another name"
                )
            if name.startswith(REWARD_FREE):
                raise ValueError(
                    f"baselines: '{name}' begins with '{REWARD_FREE}', as the artifacts of methods that need no "
                    "rewards do; choose another name"
                )
        return self


def with_inherited(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in what baselines take over from policy_extraction: network, encoder and training.

    A method that learns its values itself takes the gradient steps of critic, regression and policy together.

    Args:
        values: plain values of StageParameters.
    """
    result = dict(values)
    baselines = result.get("baselines", {"bc": {}})
    policy = _plain(result.get("policy_extraction"))
    if not isinstance(baselines, Mapping):
        return result
    try:
        OBJECTIVES.validate(policy)
    except (ValidationError, PydanticCustomError):  # reported once, not for every baseline again
        return result
    shared = {name: policy[name] for name in ActorParameters.model_fields if name in policy}
    choice = Choice(METHODS, mapping=True)
    entries: dict[str, Any] = {}
    for label, value in baselines.items():
        given = {METHODS.field: value} if isinstance(value, str) else value  # a bare name is enough
        entries[label] = given
        if not isinstance(given, Mapping):
            continue
        try:
            method = METHODS[METHODS.name_in(given, choice.default_for(label))]
        except InputError:  # validation reports it
            continue
        lower = method.inherited(shared)
        if method.learns_values and "training" in method.Parameters.model_fields:
            training = lower.get("training")
            training = dict(training) if isinstance(training, Mapping) else {}
            lower["training"] = training | {"steps": _all_steps(result)}
        entries[label] = merged(method.Parameters, lower, given)
    return result | {"baselines": entries}


def _plain(part: Any) -> Mapping[str, Any]:
    """Return a stage's parameters as plain values; none if they are a bare name or faulty."""
    if isinstance(part, BaseModel):
        return part.model_dump(mode="json")
    return part if isinstance(part, Mapping) else {}


def _all_steps(values: Mapping[str, Any]) -> int:
    """Gradient steps of all of CVL's networks in plain values."""
    steps = _steps(values, "contrastive_dynamics") + _steps(values)
    try:
        readout: Any = READOUTS.validate(_plain(values.get("value_readout")))
    except (InputError, ValidationError, PydanticCustomError):  # validation of the readout reports it
        return steps
    return steps + (readout.regression.all_steps if readout.regression else 0)


def _steps(values: Mapping[str, Any], stage: str = "policy_extraction") -> int:
    """Gradient steps of a stage in plain values."""
    defaults = {"policy_extraction": PolicyTraining(), "contrastive_dynamics": DynamicsParameters().training}
    steps = _plain(_plain(values.get(stage)).get("training")).get("steps")
    return steps if isinstance(steps, int) else defaults[stage].steps
