"""Parameters of the data_ingestion stage."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cvl_pipeline.schema import MOST_PROCESSES, Strict, operational

OutOfBounds = Literal["refuse", "clip", "widen"]
"""What happens to logged actions beyond the bounds."""


class IngestionParameters(Strict):
    """How episodes are prepared for training."""

    validation_fraction: float = Field(
        0.1,
        gt=0.0,
        lt=1.0,
        description="Share of the episodes that is held out from training. Episodes are not cut.",
    )
    std_floor: float = Field(
        1e-3,
        gt=0.0,
        description="Smallest standard deviation that inputs are divided by, in the input's units.",
    )
    workers: int | None = operational(
        None, ge=1, le=MOST_PROCESSES, description="Processes that collect episodes. null: one per core."
    )
