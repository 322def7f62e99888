from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from benchmarks.fleet import (
    Runner,
    Single,
    Size,
    difference,
    fleet_of,
    measure_gpu,
    random_log,
    single_module,
)

from benchmarks import fleet
from cvl_pipeline.api import EpisodeData
from cvl_pipeline.training.module import DRAWN

CPU, SMALL = torch.device("cpu"), Size((16, 8), 12)


@pytest.fixture(scope="module")
def data() -> EpisodeData:
    return random_log(episodes=20, steps=15)


@pytest.mark.parametrize("rates", [[1e-3] * 3, [1e-3, 3e-3, 1e-4]])
def test_fleet_ends_as_single_trainings(data: EpisodeData, rates: list[float]) -> None:
    apart = difference(data, SMALL, rates, CPU)
    assert apart["median"] < 1e-5
    assert apart["losses"] < 1e-5


def test_blocks_are_those_of_single_trainings(data: EpisodeData) -> None:
    block = fleet_of(data, SMALL, [1e-3] * 2, CPU).block(3)
    assert block.shape == (DRAWN, 4, 2, SMALL.batch)
    for member in range(2):
        single = Single(single_module(data, SMALL, member, 1e-3), CPU)
        assert torch.equal(block[:, :, member], single.block(3)[:, :, 0])


@pytest.mark.parametrize("pieces", [False, True])
def test_single_is_the_pipelines_training_past_a_block(data: EpisodeData, pieces: bool) -> None:
    steps = DRAWN + 3
    single = Single(single_module(data, SMALL, 1, 1e-3), CPU, pieces)
    reference = fleet.Reference(single_module(data, SMALL, 1, 1e-3), CPU)
    loss = Runner(single, CPU).run(steps)
    torch.testing.assert_close(loss[0], reference.run(steps))
    torch.testing.assert_close(single.weights()[0], reference.module._vector.values.detach())


class Graph:
    """A CUDA graph that calls the captured function again."""

    captured: Any = None

    def replay(self) -> None:
        self.captured()


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda given: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)

    @contextlib.contextmanager
    def graph(of: Graph) -> Iterator[None]:
        take, calls = Runner._take, []

        def record(runner: Runner) -> None:
            calls.append(runner)
            take(runner)

        monkeypatch.setattr(Runner, "_take", record)
        yield
        monkeypatch.setattr(Runner, "_take", take)
        of.captured = lambda: take(calls[0])

    monkeypatch.setattr(torch.cuda, "graph", graph)


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("rates", [[1e-3] * 2, [1e-3, 3e-3]])
def test_capturing_leaves_the_weights(data: EpisodeData, rates: list[float]) -> None:
    runners = [Runner(fleet_of(data, SMALL, rates, CPU), CPU, captured) for captured in (False, True)]
    before = [runner.trained.weights().clone() for runner in runners]
    assert torch.equal(*before)
    losses = [runner.run(5) for runner in runners]
    assert torch.equal(*losses)
    assert torch.equal(runners[0].trained.weights(), runners[1].trained.weights())
    assert not torch.equal(before[0], runners[0].trained.weights())


def test_a_failed_measurement_is_a_row(data: EpisodeData, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no kernel")

    monkeypatch.setattr(fleet, "fleet_of", fail)
    monkeypatch.setattr(fleet, "STARTED", time.perf_counter())
    rows = measure_gpu(data, CPU, 0.01, [SMALL])
    assert all(row["error"] == "RuntimeError: no kernel" for row in rows if row["members"])
    assert all(row["rate"] > 0.0 for row in rows if not row["members"])


def test_ratios() -> None:
    size = str(fleet.GPU_SIZES[0])
    rows = [
        {"size": size, "members": 0, "rate": 10.0},
        {"size": size, "members": 1, "rate": 8.0},
        {"size": size, "members": 16, "rate": 60.0},
        {"size": size, "members": 16, "error": "RuntimeError"},
        {"size": "other", "members": 16, "rate": 600.0},
    ]
    assert fleet.gpu_ratio(rows) == 6.0
    assert fleet.gpu_ratio([]) != fleet.gpu_ratio([])
