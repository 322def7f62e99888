from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from cvl_pipeline.objectives.base import ActorParameters
from cvl_pipeline.schema import operational_fields
from cvl_pipeline.testing.builders import training_parameters
from cvl_pipeline.training.parameters import TrainingParameters


@pytest.mark.parametrize(
    ("given", "sizes"), [("32 16", (32, 16)), (32, (32,)), ([32, 16], (32, 16)), ((), ()), ("", ())]
)
def test_hidden_layers_can_be_given_on_the_command_line(given: Any, sizes: tuple[int, ...]) -> None:
    assert ActorParameters(hidden=given).hidden == sizes


@pytest.mark.parametrize("given", ["32 wide", 0, "32 0", 1.5, None])
def test_hidden_layers_are_positive_integers(given: Any) -> None:
    with pytest.raises(ValidationError, match="hidden"):
        ActorParameters(hidden=given)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0), ("batch_size", 1), ("learning_rate", 0.0), ("learning_rate", float("nan")),
        ("learning_rate", float("inf")), ("validation_interval", 0), ("precision", "float16"),
        ("accelerator", "tpu"), ("devices", 0), ("nodes", 0), ("checkpoint_seconds", 0.0),
        ("checkpoint_steps", 0), ("loggers", "neptune"), ("momentum", 0.9),
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused(field: str, value: object) -> None:
    with pytest.raises(ValidationError, match=field):
        training_parameters(**{field: value})


def test_parameters_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        training_parameters().steps = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("devices", "nodes", "divides"), [(4, 1, True), (2, 8, True), (3, 1, False), (2, 3, False)]
)
def test_processes_must_share_the_batch_evenly(devices: int, nodes: int, divides: bool) -> None:
    given = {"batch_size": 16, "devices": devices, "nodes": nodes}
    if divides:
        assert training_parameters(**given).devices == devices
        return
    with pytest.raises(ValidationError, match=f"batch_size is 16, which {devices * nodes} processes"):
        training_parameters(**given)


@pytest.mark.parametrize(
    "address",
    ["", "node0", "node0:", ":29500", "http://node0:29500", "node0:port", "a b:1", "n:65536", "n:0"],
)
def test_rendezvous_is_a_host_and_a_port(address: str) -> None:
    assert training_parameters(rendezvous="node-0.cluster:29500").rendezvous == "node-0.cluster:29500"
    with pytest.raises(ValidationError, match=r"host:port, such as node0:29500"):
        training_parameters(rendezvous=address)


def test_settings_that_change_no_result_are_operational() -> None:
    assert operational_fields(TrainingParameters()) == {
        "devices", "nodes", "rendezvous", "checkpoint_seconds", "checkpoint_steps", "loggers",
    }  # fmt: skip


def test_several_loggers_may_be_one_string() -> None:
    assert training_parameters(loggers="tensorboard mlflow").loggers == ("tensorboard", "mlflow")
    assert TrainingParameters().loggers == ("tensorboard",)
