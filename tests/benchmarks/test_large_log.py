from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from benchmarks import large_log


def test_a_log_is_mapped_from_its_files(tmp_path: Path) -> None:
    data = large_log.mapped_log(tmp_path, 100_000)
    log = data.transitions
    assert (len(log), log.episodes, len(log.observations)) == (100_000, 100, 100_100)
    assert float(log.observations.std()) == pytest.approx(3**-0.5, rel=0.02)
    assert (tmp_path / "observations").stat().st_size == log.observations.nbytes
    log.actions[7] = 5.0
    again = torch.from_file(str(tmp_path / "actions"), size=log.actions.numel()).reshape_as(log.actions)
    assert torch.equal(again[7], log.actions[7])
    assert sorted([*data.split.train.tolist(), *data.split.validation.tolist()]) == list(range(100))


def test_the_command_ends_with_both_speeds_and_the_share_of_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(large_log, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(large_log, "WARM_UP", 5)
    options = ["--transitions", "5e3", "--batch", "16", "--steps", "195", "--rounds", "1"]
    monkeypatch.setattr("sys.argv", ["large_log", *options, "--folder", str(tmp_path)])
    large_log.main()
    record = json.loads((tmp_path / "results/large_log.json").read_text())
    mapped, there = record["rows"]
    assert (mapped["on_device"], there["on_device"]) == (False, True)
    assert 0.0 < mapped["waiting"] < 1.0
    assert there["waiting"] == 0.0
    pattern = r"large_log: steps_per_second=(\S+) on_device=(\S+) waiting=(\S+)"
    line = re.fullmatch(pattern, capsys.readouterr().out.splitlines()[-1])
    assert line
    assert [float(value) for value in line.groups()] == pytest.approx(
        [mapped["steps_per_second"], there["steps_per_second"], mapped["waiting"]], rel=0.01, abs=1e-4
    )
    assert [path.name for path in tmp_path.iterdir()] == ["results"]  # the log is deleted
