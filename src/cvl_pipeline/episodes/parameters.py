"""Parameters of the data_ingestion stage."""

from __future__ import annotations

from pydantic import Field

from cvl_pipeline.training.parameters import Strict


class IngestionParameters(Strict):
    """How episodes are prepared for training."""

    validation_fraction: float = Field(gt=0.0, lt=1.0)  # share of whole episodes held out
    std_floor: float = Field(gt=0.0)  # standard deviations below it count as it, in the input's units
    workers: int | None = Field(ge=1)  # processes that collect; null: one a core
