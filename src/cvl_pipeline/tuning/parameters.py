"""Parameters of tuning: the study, and the space it searches."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from cvl_pipeline.training.parameters import Strict
from cvl_pipeline.tuning.objectives import OBJECTIVES, known_objective


def _words(value: Any) -> Any:
    # Kedro's --params cannot carry a list: there, several names are one string with spaces between them.
    return value.split() if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_words)]


class Dimension(Strict):
    """What values one parameter may take."""

    type: Literal["float", "int", "categorical"]
    low: float | None = None  # float, int: smallest
    high: float | None = None  # float, int: largest
    log: bool = False  # float, int: search its logarithm
    step: float | None = Field(default=None, gt=0.0)  # float, int: distance of two neighbours; null: any
    choices: tuple[Any, ...] | None = None  # categorical: the values, of any kind, lists too
    when: dict[str, Any] | None = (
        None  # searched only when these parameters have these values, or one of a list
    )

    @model_validator(mode="after")
    def _is_whole(self) -> Dimension:
        bounds = (self.low, self.high)
        if self.type == "categorical":
            if not self.choices or len(self.choices) != len({repr(choice) for choice in self.choices}):
                raise ValueError("categorical needs choices, each of them once")
            if bounds != (None, None) or self.log or self.step is not None:
                raise ValueError("low, high, log and step are for float and int, not categorical")
            return self
        if self.choices is not None:
            raise ValueError(f"choices are for categorical, not {self.type}")
        if self.low is None or self.high is None or self.low > self.high:
            raise ValueError(f"{self.type} needs low and high, and low <= high")
        if self.log and (self.low <= 0.0 or self.step is not None):
            raise ValueError("log needs low > 0 and no step")
        if self.type == "int" and any(v is not None and v % 1 for v in (*bounds, self.step)):
            raise ValueError("low, high and step of an int must be whole numbers")
        return self


class TuningParameters(Strict):
    """What is searched, by which measure, and how."""

    study: str  # names the study and the folder of its artifacts
    storage: str | None  # entry of credentials.yml with the url of a database; null: a journal file
    trials: int = Field(
        ge=1
    )  # finished ones (complete or pruned) that the study ends with, however often begun
    workers: int | None = Field(
        ge=1
    )  # processes on this machine; null: one a GPU, or else one a core, at most 8
    objectives: Names  # what is optimised, see docs/tuning.md; several: their Pareto front
    measures: Names  # what else every trial measures, to be compared with the objectives
    seeds: int = Field(ge=1)  # trainings of a trial, each with its own seed; their mean counts
    returns_discount: float = Field(gt=0.0, lt=1.0)  # of the returns that returns_correlation ranks Q against
    sampler: Literal["tpe", "random", "nsgaii"]
    startup_trials: int = Field(ge=0)  # drawn at random before the sampler learns from them, and never pruned
    pruner: Literal["median", "none"]  # median: of a contrastive objective, ends what is worse half-way
    max_failures: int = Field(ge=0)  # trials that may fail before the study stops
    grace_seconds: float = Field(
        ge=60.0
    )  # without a sign of life, after which another machine's trial is dead
    space: dict[str, Dimension]  # by the parameter's full name, such as contrastive_dynamics.temperature

    @field_validator("study")
    @classmethod
    def _study_is_a_folder_name(cls, study: str) -> str:
        if not study.replace("_", "").replace("-", "").replace(".", "").isalnum() or study.startswith("."):
            raise ValueError("must be letters, digits, '.', '_' and '-': it names a folder")
        return study

    @field_validator("space", mode="before")
    @classmethod
    def _without_what_is_null(cls, space: Any) -> Any:
        # Environments are merged into the base's space: null is how one leaves a parameter of it out.
        if not isinstance(space, dict):
            return space
        return {name: dimension for name, dimension in space.items() if dimension is not None}

    @field_validator("objectives", "measures")
    @classmethod
    def _known_objectives(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            known_objective(name)
        return names

    @model_validator(mode="after")
    def _objectives_can_be_optimised(self) -> TuningParameters:
        if not self.objectives:
            raise ValueError("tuning.objectives is empty: name at least one")
        if len(set(self.measured)) < len(self.objectives) + len(self.measures):
            raise ValueError("tuning.objectives and tuning.measures name something twice")
        if len(self.objectives) > 1 and self.pruner != "none":
            raise ValueError("several tuning.objectives cannot be pruned: set tuning.pruner=none")
        if self.sampler == "nsgaii" and len(self.objectives) == 1:
            raise ValueError("tuning.sampler nsgaii is for several objectives; for one take tpe")
        return self

    @property
    def measured(self) -> tuple[str, ...]:
        """All that a trial measures, the objectives first."""
        return self.objectives + self.measures

    @property
    def directions(self) -> list[str]:
        """``minimize`` or ``maximize``, one an objective."""
        return [OBJECTIVES[name].direction for name in self.objectives]
