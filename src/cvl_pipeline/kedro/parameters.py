"""All parameters of a run, checked together before anything starts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import accumulate
from pathlib import PurePosixPath
from typing import Any

from pydantic import ValidationInfo, field_validator, model_validator

from cvl_pipeline.io.location import is_url
from cvl_pipeline.parameters import StageParameters, validated
from cvl_pipeline.readout.parameters import ReadoutParameters
from cvl_pipeline.training.parameters import OPERATION, Strict
from cvl_pipeline.tuning.parameters import TuningParameters


class DataParameters(Strict):
    """Where artifacts lie."""

    root: str  # a folder, or the URL of one
    cache: str  # folder on this machine: copies of what lies at a URL, unfinished training, logs
    credentials: str | None  # entry of credentials.yml with options of the URL's file system; null: none

    @field_validator("root", "cache")
    @classmethod
    def _stays_where_it_is_said_to_be(cls, path: str, info: ValidationInfo) -> str:
        if is_url(path):
            if info.field_name == "cache":
                raise ValueError("must be a folder of this machine")
            if "::" in path or path.startswith("file:"):
                raise ValueError("must be a path, or a URL of one file system, such as s3://bucket/folder")
        if not path.strip("/. ") or path.startswith("~") or ".." in PurePosixPath(path).parts:
            raise ValueError(
                "must be a folder of the project or, to lie outside of it, absolute, without '..'"
            )
        return path.rstrip("/")

    @model_validator(mode="after")
    def _credentials_are_for_urls(self) -> DataParameters:
        if self.credentials is not None and not is_url(self.root):
            raise ValueError("data.credentials is for a data.root that is a URL")
        return self


class RunParameters(StageParameters):
    """The whole parameter file."""

    data: DataParameters
    tuned: bool  # take the best parameters that a study of this dataset found; --params still overrides them
    tuning: TuningParameters

    @property
    def stages(self) -> StageParameters:
        """Those of the stages alone."""
        return StageParameters(**{name: getattr(self, name) for name in StageParameters.model_fields})


def check_parameters(raw: dict[str, Any]) -> RunParameters:
    """Validate the merged parameter files and ``--params``.

    Raises:
        InputError: one line with every fault: the field's full name, its value, and what it may be.
    """
    return validated(RunParameters, raw)


WITHOUT_EFFECT = (
    *(
        f"{stage}.training.{field}"
        for stage in ("contrastive_dynamics", "policy_extraction")
        for field in OPERATION
    ),
    "data_ingestion.workers",
    "evaluation.workers",
    "dataset.path",  # what lies there counts, not where it lies
    *(f"data.{field}" for field in DataParameters.model_fields),
    "tuned",  # the parameters that it puts in place count
    *(f"tuning.{field}" for field in ("storage", "workers", "max_failures", "grace_seconds")),
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
