"""The names of the columns of a log of your own."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from cvl_pipeline.schema import Strict, listed

MOST_ACTIONS = 65536
"""Choices that discrete actions may have; larger codes are identifiers of something else."""


Name = Annotated[str, Field(min_length=1)]
# Kedro's --params cannot carry a list. There, one string holds several names with spaces between them.
Names = Annotated[tuple[Name, ...], BeforeValidator(listed), Field(min_length=1)]


class Columns(Strict):
    """Names of the columns (Parquet, CSV) or arrays (HDF5, NPZ; ``group/array`` inside groups) of a log.

    Several names, and everything that a pattern such as ``obs_*`` matches (``obs_2`` before ``obs_10``), are
    placed side by side. A string is split at blanks.

    With ``groups``, each group of the file is one episode, and all other names are paths within a group.
    """

    model_config = ConfigDict(coerce_numbers_to_str=True)  # a column may be called 0

    groups: Name | None = Field(
        None,
        description="HDF5: groups that are one episode each, such as `data/demo_*`, in natural order. null: the file "
        "is one table.",
    )
    observations: Names = Field(
        ("observations",),
        description="The observation that the row's action was chosen from. In groups, one row more: the last one.",
    )
    actions: Names = Field(("actions",), description="The action, as the environment executed it.")
    rewards: Name | None = Field(
        "rewards", description="The reward of the row's action. null: the log has none."
    )
    successes: Name | None = Field(
        None,
        description="Flag: the task counts as solved after the row. null: the log does not report success.",
    )
    terminated: Name | None = Field(
        "terminated",
        description="Flag: the world stopped after the row, such as at a fall or a goal that ends the episode.",
    )
    truncated: Name | None = Field(
        "truncated",
        description="Flag: the log of the episode stops after the row and the world did not, such as at a time "
        "limit.",
    )
    episode: Name | None = Field(
        None, description="Id of the episode, a number or text. Another value starts another episode."
    )
    step: Name | None = Field(
        None, description="Counts up by one within an episode. Read only to check that no row is missing."
    )
    next_observations: Names | None = Field(
        None, description="The observation that the row's action led to. null: the next row's observation."
    )
    discrete: bool = Field(False, description="Actions are numbers of choices, 0 to A - 1, in one column.")
    action_count: int | None = Field(
        None,
        ge=2,
        le=MOST_ACTIONS,
        description="Number A of choices, if actions are discrete. null: the largest number in the log, plus one.",
    )

    @model_validator(mode="after")
    def _fields_agree(self) -> Columns:
        if self.groups is not None and self.episode is not None:
            raise ValueError(
                "groups and episode both say which rows are an episode; set one of them to null (None in "
                "Python)"
            )
        if {self.groups, self.episode, self.terminated, self.truncated} == {None}:
            raise ValueError("one of groups, episode, terminated and truncated must say where episodes end")
        if self.terminated is not None and self.terminated == self.truncated:
            raise ValueError(
                f"terminated and truncated are both '{self.terminated}', but an episode ends by one of them"
            )
        if self.action_count is not None and not self.discrete:
            raise ValueError(
                "action_count is for discrete actions; set it to null (None in Python), or discrete to true"
            )
        return self

    def named(self) -> dict[str, tuple[str, ...]]:
        """Return the names of columns that each field gives; fields that are null are left out."""
        values = {field: getattr(self, field) for field in type(self).model_fields if field != "groups"}
        return {
            field: (value,) if isinstance(value, str) else value
            for field, value in values.items()
            if isinstance(value, str | tuple)
        }
