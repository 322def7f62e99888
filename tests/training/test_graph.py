from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from cvl_pipeline.dynamics.module import ContrastiveDynamics
from cvl_pipeline.methods.crl import CRL, GoalReaching
from cvl_pipeline.objectives.training import PolicyExtraction
from cvl_pipeline.testing.builders import (
    dynamics_parameters,
    make_data,
    make_discrete_transitions,
    make_rewards,
    make_transitions,
    policy_parameters,
    training_parameters,
)
from cvl_pipeline.training import module as offline
from cvl_pipeline.training import prefetch
from cvl_pipeline.training.graph import WARM_UP, StepGraph, captured
from cvl_pipeline.training.module import DRAWN, OfflineModule
from cvl_pipeline.training.vector import Adam
from tests.methods.toys import OFF_POLICY, method_parameters, off_policy_module
from tests.objectives.toys import network_q

STEPS = DRAWN + 9
"""Two blocks of batches."""
METHODS = [*OFF_POLICY, "cql, discrete"]


def _module(kind: str, device: str) -> tuple[OfflineModule, Adam]:
    make = make_discrete_transitions if kind.endswith("discrete") else make_transitions
    transitions = make([30] * 12, [False] * 12)
    data = make_data(transitions, 10, make_rewards(transitions))
    training = {"steps": 200, "validation_interval": 100}
    module: OfflineModule
    if kind == "critic":
        module = ContrastiveDynamics(data, dynamics_parameters(training), 0)
    elif kind == "bc":
        module = PolicyExtraction(data, policy_parameters(training, objective="bc"), 0)
    elif kind.startswith("crl"):
        parameters = {"hidden": (8,), "extraction": kind.split()[1]}
        chosen = CRL.Parameters.model_validate(
            parameters | {"training": training_parameters(**training).model_dump()}
        )
        module = GoalReaching(data, chosen, 0, network_q(transitions).critic)
    else:
        module = off_policy_module(data, method_parameters(kind.removesuffix(", discrete"), training))
    module.to(device)
    module.on_fit_start()
    optimizer = module.configure_optimizers()
    assert isinstance(optimizer, Adam)
    return module, optimizer


def _trained(kind: str, device: str, graph: bool, capture: bool = False) -> dict[str, Any]:
    module, optimizer = _module(kind, device)
    sums: dict[str, Tensor] = {}

    def add(name: str, value: Tensor) -> None:
        sums[name] = sums[name] + value if name in sums else value

    module._count = lambda steps: None  # type: ignore[method-assign]  # for a trainer, which there is not
    losses = []
    step_graph = StepGraph(module, optimizer, 0, 25, capture) if graph else None
    for first in range(0, STEPS, 25):
        count = min(25, STEPS - first)
        if step_graph is None:
            module._sums = sums
            losses.append(module._run(optimizer, first, count))
            sums = module._sums
        else:
            losses.append(step_graph.run(first, count, add))
    module.stop_prefetching()
    return {"losses": torch.cat(losses).cpu(), "weights": dict(module.state_dict()), "sums": sums}


def _assert_equal(one: dict[str, Any], other: dict[str, Any]) -> None:
    torch.testing.assert_close(one["losses"], other["losses"], rtol=1e-4, atol=1e-5)
    for part in ("weights", "sums"):
        assert one[part].keys() == other[part].keys()
        for name, value in one[part].items():
            torch.testing.assert_close(value, other[part][name], rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("kind", ["critic", "bc", "crl ddpg_bc", "crl awr", *METHODS])
def test_steps_from_a_block_are_those_of_batches(kind: str) -> None:
    _assert_equal(_trained(kind, "cpu", graph=True), _trained(kind, "cpu", graph=False))


@pytest.mark.parametrize("bytes_of_a_block", [2**25, 5000, 1])
@pytest.mark.parametrize("kind", ["critic", "bc", "crl ddpg_bc", "crl awr"])
def test_steps_from_rows_that_are_read_ahead_are_those_of_batches(
    kind: str, bytes_of_a_block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = _trained(kind, "cpu", graph=False)
    monkeypatch.setattr(offline, "fits", lambda *_: False)
    monkeypatch.setattr(prefetch, "BLOCK_BYTES", bytes_of_a_block)
    _assert_equal(_trained(kind, "cpu", graph=True), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("bytes_of_a_block", [2**25, 1])
def test_a_captured_step_takes_rows_that_are_read_ahead(
    bytes_of_a_block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offline, "fits", lambda *_: False)
    monkeypatch.setattr(prefetch, "BLOCK_BYTES", bytes_of_a_block)
    _assert_equal(
        _trained("critic", "cuda", graph=True, capture=True), _trained("critic", "cuda", graph=False)
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", ["critic", "bc", "crl ddpg_bc", "crl awr", *METHODS])
def test_a_captured_step_is_the_step(kind: str) -> None:
    _assert_equal(_trained(kind, "cuda", graph=True, capture=True), _trained(kind, "cuda", graph=False))


def test_every_step_before_the_capture_begins_at_the_same_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block may have one batch, so the place after it is no place."""
    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name in ("Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda device: stream)
    for name in ("stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", SimpleNamespace)
    place, places = torch.zeros(1), []

    def step() -> None:
        places.append(float(place))
        place.add_(1)

    captured(step, [place], torch.device("cpu"))
    assert places == [0.0] * (WARM_UP + 1)
    assert float(place) == 0.0


def test_a_batch_that_is_not_made_of_tensors_has_no_graph() -> None:
    module, optimizer = _module("bc", "cpu")
    module.draw = lambda batches, generator: ["a"] * batches  # type: ignore[method-assign]
    with pytest.raises(TypeError, match="a batch is a str"):
        StepGraph(module, optimizer, 0, 25, capture=False)
