"""Parameters that every training stage shares."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Hidden = tuple[Annotated[int, Field(ge=1)], ...]
"""Sizes of hidden layers, first to last."""


def _listed(value: Any) -> Any:
    if isinstance(value, str):
        return value.split()
    return [value] if isinstance(value, int | float) else value


# Kedro's --params cannot carry a list: there, several numbers are one string with spaces between them, and a
# single one is a bare number.
Integers = Annotated[tuple[int, ...], BeforeValidator(_listed)]
Floats = Annotated[tuple[float, ...], BeforeValidator(_listed)]


class Strict(BaseModel):
    """A frozen model that refuses unknown fields, so that a typo never passes silently."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TrainingParameters(Strict):
    """How a network is trained."""

    steps: int = Field(ge=1)  # gradient steps
    batch_size: int = Field(ge=2)
    learning_rate: float = Field(gt=0.0)  # of Adam at the first step; falls to zero along half a cosine
    validation_interval: int = Field(ge=1)  # gradient steps between held-out measurements and checkpoints
    precision: Literal["float32", "bfloat16"]  # of the networks' matrix products; losses stay in float32
    accelerator: Literal["auto", "cpu", "gpu"]  # auto takes an NVIDIA or AMD GPU if there is one
