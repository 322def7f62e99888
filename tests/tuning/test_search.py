from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import pytest
import torch

from cvl_pipeline.errors import InputError
from cvl_pipeline.io.children import start_child
from cvl_pipeline.training.launch import TrainingError
from cvl_pipeline.tuning import search, worker
from cvl_pipeline.tuning.storage import StudyLocation
from cvl_pipeline.tuning.study import open_study
from cvl_pipeline.tuning.trial import Bench
from cvl_pipeline.tuning.worker import Specification, work
from tests.tuning.studies import make_log, make_specification, make_stages, make_tuning


def environments_of(specification: Specification, workers: int) -> list[Mapping[str, str]]:
    """Environment variables of the workers that are started."""
    with patch.object(search, "start_child") as start:
        for index in range(workers):
            search.start_worker(replace(specification, index=index, workers=workers))
    return [call.args[1] for call in start.call_args_list]


def test_workers_get_the_gpus_that_the_user_lets_be_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-5e1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    found = environments_of(make_specification(tmp_path, make_tuning()), 3)
    assert [variables["CUDA_VISIBLE_DEVICES"] for variables in found] == ["2", "GPU-5e1", "2"]


def test_gpus_that_do_not_exist_are_left_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "NoDevFiles")  # as SLURM says that there are none
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    (variables,) = environments_of(make_specification(tmp_path, make_tuning()), 1)
    assert variables["CUDA_VISIBLE_DEVICES"] == "NoDevFiles"


def test_workers_share_the_cores_that_this_process_may_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    for module in (search, worker):
        monkeypatch.setattr(module, "available_cores", lambda: 6)
    specification = make_specification(tmp_path, make_tuning(trials=1))
    assert [variables["OMP_NUM_THREADS"] for variables in environments_of(specification, 3)] == ["2"] * 3
    benches: list[Bench] = []

    def measure(bench: Bench, *_: Any) -> dict[str, float]:
        benches.append(bench)
        return {"returns_correlation": 0.5}

    with patch.object(Bench, "measure", measure):
        work(replace(specification, workers=2))
    assert [bench.workers for bench in benches] == [3]


@pytest.mark.parametrize(("devices", "workers"), [(("4", "7"), 2), ((), 3)])
def test_there_is_one_worker_per_gpu_or_core(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, devices: tuple[str, ...], workers: int
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(search, "available_cores", lambda: 3)
    monkeypatch.setattr(search, "_devices", lambda: devices)
    run = Mock()
    monkeypatch.setattr(search, "_run", run)
    monkeypatch.setattr(search, "trials_table", Mock())
    stages, tuning = make_stages(), make_tuning(workers=None)
    location = make_specification(tmp_path / "other", tuning).location
    search.search(make_log(stages), stages, tuning, replace(location, journal=tmp_path / "j"), tmp_path)
    assert run.call_args.args[1].workers == workers


def run_search(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str, **changes: Any) -> None:
    """Search with workers that run a script instead."""
    stages, tuning = make_stages(), make_tuning(**changes)

    def start_other(command: list[str], *arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        return start_child([sys.executable, "-c", script], *arguments, **options)

    monkeypatch.setattr(search, "start_child", start_other)
    monkeypatch.setattr(search, "POLL", 0.05)
    search.search(make_log(stages), stages, tuning, StudyLocation(folder / "journal.log"), folder)


@pytest.mark.parametrize("status", [0, 2])
def test_worker_that_ends_python_early_has_not_finished_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    script = f"import os, sys; sys.stdin.read(); os._exit({status})"
    ended = rf"workers ended early 2 times \(exit status {status}; see .*0\.log\)"
    with pytest.raises(TrainingError, match=ended):
        run_search(tmp_path, monkeypatch, script, max_failures=1)


def test_worker_that_replaces_another_one_does_not_repeat_its_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []

    def start(specification: Specification) -> subprocess.Popen[bytes]:
        seeds.append(worker._sampler_seed(specification))
        study = open_study(specification.location, specification.name, specification.tuning, 0)
        study.ask()
        return subprocess.Popen([sys.executable, "-c", "import os; os._exit(1)"])

    stages, tuning = make_stages(), make_tuning(workers=2, max_failures=3)
    monkeypatch.setattr(search, "start_worker", start)
    monkeypatch.setattr(search, "POLL", 0.05)
    with pytest.raises(TrainingError, match="workers ended early 4 times"):
        search.search(make_log(stages), stages, tuning, StudyLocation(tmp_path / "journal.log"), tmp_path)
    assert len(set(seeds)) == len(seeds) == 5


def test_error_of_a_worker_ends_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = "import sys; sys.stdin.read(); print('Error: no such field'); sys.exit(2)"
    with pytest.raises(InputError, match=r"^no such field$"):
        run_search(tmp_path, monkeypatch, script)
