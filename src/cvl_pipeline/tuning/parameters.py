"""Parameters of tuning: the study, and the space it searches."""

from __future__ import annotations

from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import Field, field_validator, model_validator

from cvl_pipeline.errors import look_up
from cvl_pipeline.schema import MOST_PROCESSES, MOST_STEPS, Strict, Words, operational
from cvl_pipeline.tuning.objectives import OBJECTIVES

Number = TypeVar("Number", int, float)

STAGES = ("dataset", "data_ingestion", "contrastive_dynamics", "value_readout", "policy_extraction")
"""Stages whose parameters can be searched. The others define the evaluation, or do not affect trials."""


class DimensionParameters(Strict):
    """The settings that every dimension of a space has."""

    when: dict[str, Any] | None = Field(
        None, description="Search it only when these parameters have these values, or one of a list."
    )

    @field_validator("when")
    @classmethod
    def _conditions_can_be_met(cls, when: dict[str, Any] | None) -> dict[str, Any] | None:
        for name, wanted in (when or {}).items():
            if wanted in ([], ()):
                raise ValueError(f"{name} has no value: name one, or a list of them")
        return when

    @property
    def examples(self) -> tuple[Any, ...]:
        """Values that the parameter must accept."""
        raise NotImplementedError


class _Range(DimensionParameters, Generic[Number]):
    type: str
    low: Number = Field(description="Smallest value.")
    high: Number = Field(description="Largest value.")
    log: bool = Field(False, description="Search its logarithm.")
    step: Number | None

    @model_validator(mode="after")
    def _is_whole(self) -> _Range[Number]:
        if self.low > self.high:
            raise ValueError(f"{self.type} needs low and high, and low <= high")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log needs low > 0 and no step")
        return self

    @property
    def examples(self) -> tuple[Any, ...]:
        """Smallest and largest value."""
        return self.low, self.high


class Float(_Range[float]):
    """A range of numbers."""

    type: Literal["float"] = Field("float", description="A range of numbers.")
    step: float | None = Field(None, gt=0.0, description="Distance between values. null: any value.")


class Int(_Range[int]):
    """A range of whole numbers."""

    type: Literal["int"] = Field("int", description="A range of whole numbers.")
    step: int | None = Field(None, gt=0, le=MOST_STEPS, description="Distance between values. null: 1.")


class Categorical(DimensionParameters):
    """A list of values."""

    type: Literal["categorical"] = Field("categorical", description="A list of values.")
    choices: tuple[Any, ...] = Field(description="The values, of any kind, lists too.")

    @model_validator(mode="after")
    def _is_whole(self) -> Categorical:
        if not self.choices or len(self.choices) != len({repr(choice) for choice in self.choices}):
            raise ValueError("categorical needs choices, each of them once")
        return self

    @property
    def examples(self) -> tuple[Any, ...]:
        """All values."""
        return self.choices


Dimension = Annotated[Float | Int | Categorical, Field(discriminator="type")]
"""The values that one parameter may take."""

SPACE: dict[str, Float | Int | Categorical] = {
    "contrastive_dynamics.temperature": Float(low=0.03, high=0.5, log=True),
    "contrastive_dynamics.training.learning_rate": Float(low=1e-4, high=1e-2, log=True),
    "contrastive_dynamics.training.steps": Int(low=500, high=6000, step=500),
    "contrastive_dynamics.representation_size": Categorical(choices=(16, 64, 256)),
    "contrastive_dynamics.hidden": Categorical(choices=([64, 64], [256, 256], [256, 256, 256])),
}


class TuningParameters(Strict):
    """Settings of the search: space, objectives and trials."""

    study: str = Field("study", description="Name of the study and of the folder of its artifacts.")
    storage: str | None = operational(
        None, description="Entry of credentials.yml with the url of a database. null: a journal file."
    )
    trials: int = Field(
        30,
        ge=1,
        le=MOST_STEPS,
        description="Finished trials (complete or pruned) that the study ends with, over all runs.",
    )
    workers: int | None = operational(
        None,
        ge=1,
        le=MOST_PROCESSES,
        description="Processes on this machine. null: one per GPU, or else one per core, at most 8.",
    )
    objectives: Words = Field(
        ("returns_correlation",),
        description="Objectives to optimise. Several objectives: their Pareto front.",
    )
    measures: Words = Field((), description="Other objectives that every trial measures, for comparison.")
    seeds: int = Field(
        1, ge=1, le=MOST_STEPS, description="Trainings per trial, each with its own seed. Their mean counts."
    )
    returns_discount: float = Field(
        0.99, gt=0.0, lt=1.0, description="Discount of the returns that returns_correlation ranks Q against."
    )
    sampler: Literal["tpe", "random", "nsgaii"] = Field(
        "tpe", description="Optuna sampler that proposes points."
    )
    startup_trials: int = Field(
        8,
        ge=0,
        le=MOST_STEPS,
        description="Random trials before the sampler learns from them. They are never pruned.",
    )
    pruner: Literal["median", "none"] = Field(
        "none", description="`median` ends trials whose contrastive objective is below the median half-way."
    )
    max_failures: int = operational(
        10, ge=0, le=MOST_STEPS, description="Trials that may fail before the study stops."
    )
    grace_seconds: float = operational(
        300.0,
        ge=60.0,
        description="Seconds without a heartbeat after which another machine's trial is dead.",
    )
    space: dict[str, Dimension] = Field(
        SPACE,
        description="Dimensions by the parameter's full name, such as `contrastive_dynamics.temperature`.",
    )

    @field_validator("storage")
    @classmethod
    def _is_an_entry(cls, name: str | None) -> str | None:
        if name is not None and "://" in name:
            raise ValueError(
                "must be the name of an entry of credentials.yml; write the URL there, as its url"
            )
        return name

    @field_validator("study")
    @classmethod
    def _study_is_a_folder_name(cls, study: str) -> str:
        if not study.replace("_", "").replace("-", "").replace(".", "").isalnum() or study.startswith("."):
            raise ValueError("must be letters, digits, '.', '_' and '-': it names a folder")
        return study

    @field_validator("space", mode="before")
    @classmethod
    def _without_null(cls, space: Any) -> Any:
        # Environments are merged into the space of conf/base: null removes a parameter from it.
        if not isinstance(space, dict):
            return space
        return {name: dimension for name, dimension in space.items() if dimension is not None}

    @field_validator("objectives", "measures")
    @classmethod
    def _known_objectives(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            look_up("objective", name, OBJECTIVES)
        return names

    @model_validator(mode="after")
    def _objectives_can_be_optimised(self) -> TuningParameters:
        if not self.objectives:
            raise ValueError("tuning.objectives is empty: name at least one")
        if len(set(self.measured)) < len(self.objectives) + len(self.measures):
            raise ValueError("tuning.objectives and tuning.measures name something twice")
        if len(self.objectives) > 1 and self.pruner != "none":
            raise ValueError("several tuning.objectives cannot be pruned: set tuning.pruner=none")
        if self.pruner != "none" and OBJECTIVES[self.objectives[0]].column is None:
            watched = " or ".join(name for name, objective in OBJECTIVES.items() if objective.column)
            raise ValueError(
                f"tuning.objectives {self.objectives[0]} is known only when a trial ends, so nothing can be "
                f"pruned: set tuning.pruner=none, or use {watched}"
            )
        if self.sampler == "nsgaii" and len(self.objectives) == 1:
            raise ValueError("tuning.sampler nsgaii is for several objectives; for one use tpe")
        return self

    @property
    def measured(self) -> tuple[str, ...]:
        """Everything that a trial measures, the objectives first."""
        return self.objectives + self.measures

    @property
    def directions(self) -> list[str]:
        """``minimize`` or ``maximize``, one per objective."""
        return [OBJECTIVES[name].direction for name in self.objectives]
