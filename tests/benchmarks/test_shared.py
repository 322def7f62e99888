from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from benchmarks.peers import ours

from benchmarks import shared, speed
from tests.clocks import FakeClock


@pytest.mark.parametrize("steps", [5, 30])
def test_cpu_time_is_that_of_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    clock = FakeClock(monkeypatch)
    clock.price(ours.TimedDynamics, "gradient_step", 0.25)
    clock.price(ours.TimedDynamics, "on_fit_start", 100.0)
    monkeypatch.setattr(ours, "time", clock)
    speed.write_log(tmp_path, episodes=10, steps=20)
    assert shared.seconds_per_step(tmp_path, steps) == 0.25


def test_the_share_is_the_fewest_cpu_seconds_alone_over_those_beside_busy_processes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = iter([0.2, 0.5, 0.1, 0.4])  # alone and beside, in turn
    started: list[Any] = []
    counts: list[int] = []
    popen = subprocess.Popen

    def start(*arguments: Any, **options: Any) -> Any:
        started.append(popen(*arguments, **options))
        return started[-1]

    def measured(folder: Path, steps: int) -> float:
        assert (folder / "transitions.safetensors").exists()
        running = sum(process.poll() is None for process in started)
        counts.append(running)
        return next(seconds)

    monkeypatch.setattr(subprocess, "Popen", start)
    monkeypatch.setattr(shared, "_measured", measured)
    assert shared.shared(steps=1, rounds=2, busy=2) == pytest.approx(0.1 / 0.4)
    assert capsys.readouterr().out == "CPU milliseconds per step: alone 100.00, shared 400.00\n"
    assert counts == [0, 2, 0, 2]
    assert all(process.poll() is not None for process in started)


def test_a_measurement_is_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process cannot measure, so the number comes from another one."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("measured in this process")

    monkeypatch.setattr(shared, "seconds_per_step", fail)
    monkeypatch.setattr(shared, "fit", fail)
    speed.write_log(tmp_path, episodes=10, steps=20)
    assert shared._measured(tmp_path, 3) > 0.0
