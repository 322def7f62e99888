"""Parameters of the export."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from cvl_pipeline.schema import Strict, Words


class ExportParameters(Strict):
    """What is exported, and how close the exported policy must be to the trained one."""

    methods: Annotated[Words, Field(min_length=1)] = Field(
        ("cvl",),
        description="Methods whose policies are exported: `cvl`, and names of `baselines`.",
    )
    value: bool = Field(
        True, description="Export Q of the behaviour policy beside each policy, for monitoring."
    )
    tolerance: float = Field(
        1e-4,
        gt=0.0,
        le=1.0,
        description="Largest difference of an action on held-out observations, as a share of the range of each of its "
        "numbers; of a value, as a share of the largest value.",
    )
    ties: float = Field(
        0.01,
        ge=0.0,
        le=1.0,
        description="Share of held-out observations in which a policy that chooses among candidates may choose another "
        "one, because two are as good.",
    )
    control_hz: float | None = Field(
        None, gt=0.0, description="Actions per second that the policy was trained for. null: unknown."
    )
    observation_names: Words = Field(
        (),
        description="Names of the numbers of an observation, in their order, such as `x[m]`; of all its "
        "vectors, if it has several parts. Empty: unknown.",
    )
    action_names: Words = Field(
        (), description="Names of the numbers of an action, in their order. Empty: unknown."
    )

    @field_validator("methods")
    @classmethod
    def _each_once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) != len(names):
            raise ValueError("names a method twice")
        return names
