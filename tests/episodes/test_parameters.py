from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from cvl_pipeline.episodes.parameters import IngestionParameters

INGESTION: dict[str, Any] = {"validation_fraction": 0.1, "std_floor": 0.001, "workers": None}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("validation_fraction", 0.0),
        ("validation_fraction", 1.0),
        ("std_floor", 0.0),
        ("workers", 0),
        ("workers", -1),
    ],
)
def test_ingestion_values_out_of_range_are_refused(field: str, value: object) -> None:
    with pytest.raises(ValidationError, match=field):
        IngestionParameters(**(INGESTION | {field: value}))


def test_workers_may_be_left_to_the_machine() -> None:
    assert IngestionParameters(**INGESTION).workers is None
    assert IngestionParameters(**(INGESTION | {"workers": 3})).workers == 3
