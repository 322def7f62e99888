from __future__ import annotations

import pytest
from pydantic import ValidationError

from cvl_pipeline.episodes.parameters import IngestionParameters
from cvl_pipeline.schema import operational_fields


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
        IngestionParameters.model_validate({field: value})


def test_every_setting_has_a_default_and_a_description() -> None:
    assert IngestionParameters() == IngestionParameters(
        validation_fraction=0.1, std_floor=0.001, workers=None
    )
    for name, field in IngestionParameters.model_fields.items():
        assert field.description, name


def test_the_number_of_workers_changes_no_result() -> None:
    assert IngestionParameters(workers=3).workers == 3
    assert operational_fields(IngestionParameters()) == {"workers"}
