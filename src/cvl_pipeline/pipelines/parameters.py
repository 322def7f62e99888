"""All parameters of a run, checked together before anything starts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from itertools import accumulate
from typing import Any

from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from cvl_pipeline.dynamics.parameters import DynamicsParameters
from cvl_pipeline.errors import InputError
from cvl_pipeline.policies.parameters import PolicyParameters
from cvl_pipeline.readout.parameters import ReadoutParameters, RewardParameters
from cvl_pipeline.rollouts.parameters import EvaluationParameters
from cvl_pipeline.sources.parameters import DatasetParameters
from cvl_pipeline.training.parameters import OPERATION, Strict
from cvl_pipeline.trajectories.parameters import IngestionParameters


class RunParameters(Strict):
    """The whole parameter file: what is common, and one model a stage."""

    seed: int = Field(ge=0)  # of collection, initial weights, batches, references and evaluation
    dataset: DatasetParameters
    reward: RewardParameters
    data_ingestion: IngestionParameters
    contrastive_dynamics: DynamicsParameters
    value_readout: ReadoutParameters
    policy_extraction: PolicyParameters
    evaluation: EvaluationParameters

    @model_validator(mode="after")
    def _readout_has_the_critics_discount(self) -> RunParameters:
        wanted, dynamics = self.value_readout.discount, self.contrastive_dynamics
        if wanted not in (None, dynamics.discount) and not dynamics.horizon_conditioning:
            raise ValueError(
                f"value_readout.discount is {wanted}, but contrastive_dynamics.discount {dynamics.discount}; "
                "only with contrastive_dynamics.horizon_conditioning=true does one critic serve any discount"
            )
        return self


def check_parameters(raw: dict[str, Any]) -> RunParameters:
    """Validate the merged parameter files and ``--params``.

    Raises:
        InputError: one line with every fault: the field's full name, its value, and what it may be.
    """
    try:
        return RunParameters.model_validate(raw)
    except ValidationError as error:
        faults = "; ".join(_describe(detail) for detail in error.errors())
        raise InputError(f"parameters: {faults}") from None


WITHOUT_EFFECT = (
    *(
        f"{stage}.training.{field}"
        for stage in ("contrastive_dynamics", "policy_extraction")
        for field in OPERATION
    ),
    "data_ingestion.workers",
    "evaluation.workers",
    "dataset.path",  # what lies there counts, not where it lies
)
"""Fields that change no result."""

READ = {
    "data_ingestion.ingest": ("data_ingestion", ("workers",)),
    "data_ingestion.split": ("data_ingestion", ("validation_fraction",)),
    "data_ingestion.normalise": ("data_ingestion", ("std_floor",)),
    "value_readout.read_out": (
        "value_readout",
        tuple(field for field in ReadoutParameters.model_fields if field != "compared_transitions"),
    ),
    "value_readout.evaluate": ("value_readout", ("compared_transitions",)),
    "policy_extraction.clone": ("policy_extraction", ("hidden", "training")),
    "evaluation.roll_out": ("evaluation", ("environment", "episode_steps", "episodes", "workers")),
    "evaluation.roll_out_bc": ("evaluation", ("environment", "episode_steps", "episodes", "workers")),
    "evaluation.score": ("evaluation", ("environment",)),
    "evaluation.summarise": ("evaluation", ("environment", "episode_steps", "confidence")),
}
"""The fields that a node reads of a stage's parameters, where it is given all and reads few."""


def counted_parameters(node: str, inputs: Iterable[str], parameters: RunParameters) -> dict[str, Any]:
    """The fields that a node's result follows from, as plain values.

    Args:
        node: its name.
        inputs: names of what it is given, such as ``params:reward``, or ``parameters``, which is all of them;
            what is no parameter is passed over.
        parameters: of the run.

    Returns:
        Values by their full names, such as ``reward.source``.
    """
    every = _flat(parameters.model_dump(mode="json"))
    given = set(inputs)
    stage, read = READ.get(node, ("", ()))
    found = {}
    for name, value in every.items():
        whole = ["parameters", *(f"params:{part}" for part in accumulate(name.split("."), "{}.{}".format))]
        if name in WITHOUT_EFFECT or not given & set(whole):
            continue
        if name.split(".")[0] != stage or name.split(".")[1] in read:
            found[name] = value
    return found


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def _describe(detail: ErrorDetails) -> str:
    *parents, last = detail["loc"] or ("",)
    name = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        known = _fields(parents)
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


def _fields(path: Iterable[Any]) -> list[str]:
    model: Any = RunParameters
    for part in path:
        field = model.model_fields.get(part)
        model = field.annotation if field else None
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            return []
    return list(model.model_fields)
