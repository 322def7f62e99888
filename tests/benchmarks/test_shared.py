from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks import shared, speed


def test_cpu_time_per_step_does_not_depend_on_the_number_of_steps(tmp_path: Path) -> None:
    speed.write_log(tmp_path, episodes=10, steps=20)
    shared.seconds_per_step(tmp_path, 2)  # warm up
    short, long = (min(shared.seconds_per_step(tmp_path, steps) for _ in range(2)) for steps in (5, 25))
    assert 0.1 < short / long < 10.0


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


def test_a_measurement_is_a_process_of_its_own(tmp_path: Path) -> None:
    speed.write_log(tmp_path, episodes=10, steps=20)
    assert 0.0 < shared._measured(tmp_path, 3) < 10.0
