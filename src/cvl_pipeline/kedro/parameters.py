"""All parameters of a run, checked together before anything starts."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate
from pathlib import PurePosixPath
from typing import Any

from pydantic import Field, ValidationInfo, field_validator, model_validator

from cvl_pipeline.deploy.parameters import ExportParameters
from cvl_pipeline.errors import has_secret
from cvl_pipeline.io.location import is_url
from cvl_pipeline.parameters import RENAMED, StageParameters
from cvl_pipeline.paths import UserPath
from cvl_pipeline.schema import Strict, effective, operational, validated
from cvl_pipeline.tuning.parameters import TuningParameters


class DataParameters(Strict):
    """Storage of artifacts."""

    root: UserPath = Field(
        "data",
        description="Folder of all artifacts, or its URL, such as `s3://bucket/folder`. See docs/remote.md.",
    )
    cache: UserPath = Field(
        "data/.cache",
        description="Folder on this machine for copies of files at a URL, unfinished training and logs.",
    )
    credentials: str | None = Field(
        None, description="Entry of credentials.yml with options of the URL's file system. null: none."
    )

    @field_validator("root", "cache")
    @classmethod
    def _stays_where_it_is_said_to_be(cls, path: str, info: ValidationInfo) -> str:
        if is_url(path):
            if info.field_name == "cache":
                raise ValueError("must be a folder of this machine")
            if has_secret(path):
                raise ValueError(
                    "must not contain a password or key: put it into credentials.yml, see data.credentials"
                )
            if "::" in path or path.startswith("file:"):
                raise ValueError("must be a path, or a URL of one file system, such as s3://bucket/folder")
        if not path.strip("/. ") or ".." in PurePosixPath(path).parts:
            raise ValueError("must be a folder of the project, or an absolute path, without '..'")
        if set("{}") & set(path):  # the catalog's patterns would take them for names of datasets
            raise ValueError("must be a path without braces")
        return path.rstrip("/")

    @model_validator(mode="after")
    def _credentials_are_for_urls(self) -> DataParameters:
        if self.credentials is not None and not is_url(self.root):
            raise ValueError("data.credentials is for a data.root that is a URL")
        return self


class RunParameters(StageParameters):
    """The whole parameter file."""

    data: DataParameters = operational(DataParameters(), description="Storage of artifacts.")
    tuned: bool = operational(
        False,
        description="Train with the best parameters that a study of this dataset found. --params still overrides them.",
    )
    tuning: TuningParameters = Field(
        TuningParameters(),
        description="Settings of the search: space, objectives and trials. See docs/studies.md.",
    )

    export: ExportParameters = Field(
        ExportParameters(), description="What `kedro run --pipelines export` exports. See docs/deploy.md."
    )

    @model_validator(mode="after")
    def _exported_methods_are_in_force(self) -> RunParameters:
        known = ["cvl", *self.baselines]
        for name in self.export.methods:
            if name not in known:
                raise ValueError(
                    f"export.methods: there is no method '{name}'; in force are {', '.join(known)}"
                )
        return self

    @property
    def stages(self) -> StageParameters:
        """The parameters of the stages alone."""
        return StageParameters(**{name: getattr(self, name) for name in StageParameters.model_fields})


def check_parameters(raw: dict[str, Any]) -> RunParameters:
    """Validate the merged parameter files and ``--params``.

    Raises:
        InputError: one line with every fault: the field's full name, its value, and the values it accepts.
    """
    return validated(RunParameters, raw, RENAMED)


def is_given(name: str, inputs: Iterable[str]) -> bool:
    """Return whether a parameter is among the inputs of a node, itself or in a group.

    Args:
        name: full name, such as ``reward.source``.
        inputs: of the node, such as ``params:reward``, or ``parameters``, which is all of them.
    """
    groups = {"parameters", *(f"params:{part}" for part in accumulate(name.split("."), "{}.{}".format))}
    return not groups.isdisjoint(inputs)


def counted_parameters(inputs: Iterable[str], parameters: RunParameters) -> dict[str, Any]:
    """Return the fields that a node's result follows from, as plain values by their full names.

    Args:
        inputs: names of the node's inputs; those that are no parameters are ignored.
        parameters: of the run.
    """
    given = set(inputs)
    return {name: value for name, value in effective(parameters).items() if is_given(name, given)}
