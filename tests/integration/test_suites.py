"""Suites of real runs: the same results as single runs, though a worker is killed."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest

from tests.integration.conftest import Forks, Project, copy_project

SUITE = "tasks: [reach-v3, door-open-v3]\nmethods: [[cvl, bc], [filtered_bc]]\nevaluation_episodes: 4\nenv: smoke\n"
PATIENCE = 500.0


def runs_of(process: int) -> list[psutil.Process]:
    """The runs of units below a process."""
    children = psutil.Process(process).children(recursive=True)
    return [child for child in children if "--only-missing-outputs" in child.cmdline()]


def records(project: Project) -> dict[str, dict[str, Any]]:
    folder = project.root / "data/suites/small/records"
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("[!.]*.json")}


@pytest.mark.slow
def test_a_suite_has_the_results_of_single_runs(
    kedro: Forks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("distributed")
    project = copy_project(tmp_path / "suite")
    (project.root / "conf/suites/small.yml").write_text(SUITE)
    suite = project.start(tmp_path / "first.txt", "suite", "run", "small", "--threads", "1", "--jobs", "2")
    end = time.monotonic() + PATIENCE
    while not (runs := runs_of(suite.pid)) or time.time() - runs[0].create_time() < 8.0:
        assert suite.poll() is None, (tmp_path / "first.txt").read_text()
        assert time.monotonic() < end
        time.sleep(0.2)
    os.kill(runs[0].ppid(), signal.SIGKILL)
    while len(records(project)) < 1:
        assert time.monotonic() < end
        time.sleep(0.2)
    left = psutil.Process(suite.pid).children(recursive=True)
    suite.kill()
    suite.wait()
    again = project.start(tmp_path / "second.txt", "suite", "run", "small", "--threads", "1", "--jobs", "2")
    assert again.wait(PATIENCE) == 0, (tmp_path / "second.txt").read_text()
    assert not [process for process in left if process.is_running()]
    assert len(records(project)) == 2
    for record in records(project).values():
        single = copy_project(tmp_path / record["task"])
        params = {name: value for name, value in record["settings"].items() if name != "env"}
        steps = sum(value for name, value in params.items() if "steps" in name)
        for name in ("bc", "filtered_bc"):
            params |= {f"baselines.{name}.method": name, f"baselines.{name}.training.steps": steps}
        text = ",".join(f"{name}={value}" for name, value in params.items())
        kedro.kedro(single, "run", "--runner", "SequentialRunner", "--params", text)
        for method, results in record["methods"].items():
            (path,) = (single.root / "data").glob(f"07_model_output/**/{method}_rollouts.parquet")
            table = pd.read_parquet(path)
            assert results["success"] == table["success"].astype(int).tolist()
            assert results["returns"] == [float(f"{value:.6g}") for value in table["return"]]
            suffix = path.relative_to(single.root / "data")
            (same,) = (project.root / "data/suites/small").glob(f"{record['task']}*/{suffix}")
            assert same.read_bytes() == path.read_bytes()
