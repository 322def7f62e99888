"""What a person's log calls its columns."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from cvl_pipeline.training.parameters import Strict

MOST_ACTIONS = 65536
"""Choices that discrete actions may have; larger codes are identifiers of something else."""


def _listed(value: Any) -> Any:
    if isinstance(value, str):
        return value.split()
    return [value] if isinstance(value, int) else value


Name = Annotated[str, Field(min_length=1)]
# Kedro's --params cannot carry a list: there, several names are one string with spaces between them.
Names = Annotated[tuple[Name, ...], BeforeValidator(_listed), Field(min_length=1)]


class Columns(Strict):
    """What a log calls its columns (Parquet, CSV) or arrays (HDF5, NPZ; ``group/array`` inside groups).

    Several names, and what a pattern such as ``obs_*`` matches (``obs_2`` before ``obs_10``), are laid side
    by side. A string is split at blanks.

    With ``groups``, each group of the file is one episode, and all other names are paths within a group.
    """

    model_config = ConfigDict(coerce_numbers_to_str=True)  # a column may be called 0

    groups: Name | None  # HDF5: one episode each, such as data/demo_*, in natural order; null: one table
    observations: Names  # what the action of the row was chosen from; in groups, one row more: where it ended
    actions: Names  # what was done then, as the environment executed it
    rewards: Name | None  # what the action of the row earned; null: the log has none
    successes: Name | None  # flag: the task counts as solved after the row; null: never
    terminated: Name | None  # flag: the world stopped after the row (a fall, a goal that ends the episode)
    truncated: Name | None  # flag: the episode's log stops after the row and the world did not (a time limit)
    episode: Name | None  # id of the episode, a number or text: another value starts another episode
    step: Name | None  # counts up by one within an episode; read only to check that no row is missing
    next_observations: Names | None  # what the row's action led to; null: the next row says it
    discrete: bool  # actions are numbers of choices, 0 to A - 1, in one column
    action_count: int | None = Field(ge=2, le=MOST_ACTIONS)  # A, if discrete; null: the largest logged + 1

    @model_validator(mode="after")
    def _fields_agree(self) -> Columns:
        if self.groups is not None and self.episode is not None:
            raise ValueError("groups and episode both say which rows are an episode; set one of them to null")
        if {self.groups, self.episode, self.terminated, self.truncated} == {None}:
            raise ValueError("one of groups, episode, terminated and truncated must say where episodes end")
        if self.terminated is not None and self.terminated == self.truncated:
            raise ValueError(
                f"terminated and truncated are both '{self.terminated}', but an episode ends by one of them"
            )
        if self.action_count is not None and not self.discrete:
            raise ValueError("action_count is for discrete actions; set it to null or discrete to true")
        return self

    def named(self) -> dict[str, tuple[str, ...]]:
        """The names of columns that each field gives, fields that are null left out."""
        values = {field: getattr(self, field) for field in type(self).model_fields if field != "groups"}
        return {
            field: (value,) if isinstance(value, str) else value
            for field, value in values.items()
            if isinstance(value, str | tuple)
        }
