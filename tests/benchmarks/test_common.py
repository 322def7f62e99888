from __future__ import annotations

import argparse
import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from benchmarks import common


def test_a_run_passes_its_options_and_a_failed_one_ends_the_benchmark(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = [0, 3]
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=results.pop(0)))
    assert common.kedro_run("--env", "smoke", params="reward.indices=0 1,seed=1") >= 0.0
    assert capsys.readouterr().out == "kedro run --env smoke --params 'reward.indices=0 1,seed=1'\n"
    with pytest.raises(SystemExit, match="3"):
        common.kedro_run(params="seed=1")


def test_a_record_has_its_origin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/somewhere/benchmarks/goals.py", "--task", "push v3"])
    monkeypatch.setattr(common, "commit", lambda project: "abc" if project == common.PROJECT else None)
    record = common.write_record(tmp_path / "results/goals.json", rows=[1])
    assert record == json.loads((tmp_path / "results/goals.json").read_text())
    assert record == {
        "command": "python -m benchmarks.goals --task 'push v3'", "machine": common.machine(),
        "commit": "abc", "date": datetime.now(UTC).date().isoformat(), "rows": [1],
    }  # fmt: skip


def test_a_report_of_earlier_results_keeps_their_origin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ideas.json"
    origin = {"command": "python -m benchmarks.ideas", "machine": "a GPU", "commit": "abc"}
    path.write_text(json.dumps({**origin, "rows": [1]}))
    monkeypatch.setattr("sys.argv", ["benchmarks/ideas.py", "--report"])
    assert common.write_record(path, measured=False, rows=[2]) == {**origin, "date": None, "rows": [2]}
    assert common.write_record(path, rows=[2])["command"] == "python -m benchmarks.ideas --report"
    other = common.write_record(tmp_path / "other.json", measured=False)
    assert other["command"] == "python -m benchmarks.ideas --report", "there was no record"


def test_a_run_of_a_part_does_not_replace_the_record_of_the_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--per-episode", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--env")
    path = tmp_path / "reading.json"

    def place(*words: str, others: tuple[str, ...] = ()) -> str:
        return common.record_path(path, parser, parser.parse_args(words), *others).name

    assert place() == place("--workers", "9", "--rows", "1", "2") == "reading.json"
    assert place("--env", "pointmaze", others=("env",)) == "reading.json"
    assert capsys.readouterr().out == ""
    assert place("--rows", "1", "--per-episode", "1") == "reading_part.json"
    assert "with --rows, --per-episode, the record is reading_part.json" in capsys.readouterr().out


def test_a_record_has_no_path_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "sys.argv", ["benchmarks/serving.py", str(tmp_path / "exported"), "--server", "bin/serve"]
    )
    command = common.write_record(tmp_path / "serving.json")["command"]
    assert command == "python -m benchmarks.serving exported --server bin/serve"


def test_half_of_an_interval_is_that_of_students_t() -> None:
    values = pd.Series([1.0, 2.0, 4.0, 9.0])
    low, high = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert common.half_width(values.sem(), 3) == pytest.approx((high - low) / 2)
    several = common.half_width(np.array([values.sem(), np.nan]), np.array([3, 0]))
    assert several[0] == pytest.approx((high - low) / 2)
    assert np.isnan(several[1])


def test_a_table_shows_intervals_beside_their_means() -> None:
    table = pd.DataFrame({"loss": ["nce"], "error": [0.25], "error_ci": [0.125]})
    assert common.markdown(table, digits=2).splitlines()[2] == "| nce | 0.25 ± 0.12 |"
