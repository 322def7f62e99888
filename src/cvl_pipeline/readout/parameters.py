"""Parameters of the value_readout stage."""

from __future__ import annotations

from pydantic import Field

from cvl_pipeline.training.parameters import Strict


class ReadoutParameters(Strict):
    """How values are read out of the critic."""

    references: int = Field(ge=1)  # K, reference states drawn by the training sampler
