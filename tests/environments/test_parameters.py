from __future__ import annotations

import pytest
from pydantic import ValidationError

from cvl_pipeline.environments.parameters import EvaluationParameters
from cvl_pipeline.schema import operational_fields


@pytest.mark.parametrize(
    ("field", "value"),
    [("episodes", 0), ("episode_steps", 0), ("confidence", 0.0), ("confidence", 1.0), ("workers", 0)],
)
def test_evaluation_values_out_of_range_are_refused(field: str, value: object) -> None:
    with pytest.raises(ValidationError, match=field):
        EvaluationParameters.model_validate({field: value})


def test_every_setting_has_a_default_and_a_description() -> None:
    assert EvaluationParameters().environment is None
    for name, field in EvaluationParameters.model_fields.items():
        assert field.description, name


def test_the_number_of_workers_changes_no_result() -> None:
    assert operational_fields(EvaluationParameters()) == {"workers"}
