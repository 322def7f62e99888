"""The readout benchmark at small size."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from benchmarks import readouts


def test_every_readout_is_measured_and_more_references_err_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readouts, "TEMPERATURES", (0.1, 1.0))
    data = readouts.grid_data()
    table = pd.DataFrame(
        row
        for temperature, critic in readouts.critics(data, readouts.grid_parameters(150))
        for row in readouts.measure("grid", temperature, critic, data, (64, 2048))
    )
    assert set(table["reward"]) == {"dense", "sparse"}
    error = table[table["reward"] == "dense"].set_index(["readout", "temperature", "size"])["error"]
    assert error["references", 0.1, 2048] < error["references", 0.1, 64]
    assert error["random_fourier", 1.0, 2048] < 0.3
    assert error["random_fourier", 0.1, 2048] > error["references", 0.1, 2048]
    assert "positive_random" in error.index.get_level_values("readout")


def test_the_command_prints_and_records_its_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(readouts, "RESULTS", tmp_path)
    monkeypatch.setattr(readouts, "TEMPERATURES", (0.25,))
    monkeypatch.setattr(readouts, "QUERIES", 50)
    monkeypatch.setattr("sys.argv", ["readouts", "--episodes", "4", "--steps", "8", "--sizes", "32", "64"])
    readouts.main()
    printed = capsys.readouterr().out
    assert "Microseconds per query" in printed
    rows = json.loads((tmp_path / "readouts.json").read_text())["rows"]
    assert {row["critic"] for row in rows} == {"grid", "reach-v3"}
    assert (tmp_path / "readouts.png").exists()
