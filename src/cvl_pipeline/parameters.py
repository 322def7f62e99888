"""The parameters of all stages, checked together."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any, TypeVar

from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from cvl_pipeline.dynamics.parameters import DynamicsParameters
from cvl_pipeline.environments.parameters import EvaluationParameters
from cvl_pipeline.episodes.parameters import IngestionParameters
from cvl_pipeline.errors import InputError
from cvl_pipeline.objectives.parameters import PolicyParameters
from cvl_pipeline.readout.parameters import ReadoutParameters, RewardParameters
from cvl_pipeline.sources.parameters import DatasetParameters
from cvl_pipeline.training.parameters import Strict

Model = TypeVar("Model", bound=BaseModel)


class StageParameters(Strict):
    """What is common, and one model a stage."""

    seed: int = Field(ge=0)  # of collection, initial weights, batches, references and evaluation
    dataset: DatasetParameters
    reward: RewardParameters
    data_ingestion: IngestionParameters
    contrastive_dynamics: DynamicsParameters
    value_readout: ReadoutParameters
    policy_extraction: PolicyParameters
    evaluation: EvaluationParameters

    @model_validator(mode="after")
    def _readout_has_the_critics_discount(self) -> StageParameters:
        wanted, dynamics = self.value_readout.discount, self.contrastive_dynamics
        if wanted not in (None, dynamics.discount) and not dynamics.horizon_conditioning:
            raise ValueError(
                f"value_readout.discount is {wanted}, but contrastive_dynamics.discount {dynamics.discount}; "
                "only with contrastive_dynamics.horizon_conditioning=true does one critic serve any discount"
            )
        return self


def validated(model: type[Model], values: dict[str, Any]) -> Model:
    """Make a model of nested values.

    Raises:
        InputError: one line with every fault: the field's full name, its value, and what it may be.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        faults = "; ".join(_describe(model, detail) for detail in error.errors())
        raise InputError(f"parameters: {faults}") from None


def fields_at(model: type[BaseModel], path: Iterable[Any]) -> list[str]:
    """Names of the fields of the model that a path of field names leads to; none if it leads to no model."""
    current: Any = model
    for part in path:
        current = _inner(current).get(part)
        if current is None:
            return []
    return list(_inner(current))


def _inner(annotation: Any) -> dict[str, Any]:
    """Annotations of a model's fields, by name."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {name: field.annotation for name, field in annotation.model_fields.items()}
    return {}


def _describe(model: type[BaseModel], detail: ErrorDetails) -> str:
    *parents, last = detail["loc"] or ("",)
    name = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        known = fields_at(model, parents)
        close = get_close_matches(str(last), known, n=1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        return f"unknown field '{name}': {hint}known here: {', '.join(known)}"
    if detail["type"] == "missing":
        return f"field '{name}' is missing"
    message = detail["msg"].removeprefix("Value error, ")
    text = f"{message[0].lower()}{message[1:]}"
    if not name:  # about several stages together: the message names them
        return text
    if isinstance(detail["input"], dict):  # a whole stage's values would bury the message
        return f"'{name}': {text}"
    return f"'{name}' is {detail['input']!r}: {text}"
