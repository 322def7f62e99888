from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from benchmarks.fleet import Reference, Size, difference, measure_gpu, random_log, single_module

from benchmarks import fleet
from cvl_pipeline.api import EpisodeData

CPU, SMALL = torch.device("cpu"), Size((16, 8), 12)


@pytest.fixture(scope="module")
def data() -> EpisodeData:
    return random_log(episodes=20, steps=15)


def test_fleet_ends_as_single_trainings(data: EpisodeData) -> None:
    apart = difference(data, SMALL, 3, CPU)
    assert apart["median"] < 1e-5
    assert apart["losses"] < 1e-5


def test_single_trainings_are_those_with_graphs(data: EpisodeData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cvl_pipeline.training.graph.captured", lambda *_: None)
    trainings = [Reference(single_module(data, SMALL, 1), CPU, captured) for captured in (False, True)]
    for steps in (70, 3):
        torch.testing.assert_close(*(training.run(steps) for training in trainings))
    torch.testing.assert_close(*(training.module._vector.values for training in trainings))


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
