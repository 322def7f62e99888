from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from cvl_pipeline.dynamics.parameters import DynamicsParameters
from cvl_pipeline.testing.builders import dynamics_parameters


def test_defaults_are_valid_and_survive_a_round_trip() -> None:
    parameters = DynamicsParameters()
    assert DynamicsParameters.model_validate(parameters.model_dump(mode="json")) == parameters


def test_raw_representations_have_no_learned_temperature() -> None:
    with pytest.raises(ValidationError, match="learned_temperature needs unit_norm"):
        dynamics_parameters(representation="raw", learned_temperature=True)
    assert dynamics_parameters(representation="raw").representation == "raw"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("discount", 0.0), ("discount", 1.0), ("temperature", 0.0), ("temperature", float("nan")),
        ("representation", "sphere"), ("representation_size", 0), ("hidden", (0,)),
        ("segments_per_episode", 0), ("validation_batches", 0), ("keep", "first"), ("patience", 0),
        ("logsumexp_penalty", 0.1),
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused(field: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=field):
        dynamics_parameters(**{field: value})
