"""Suites on real clusters of Dask on this machine; the runs are fakes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from cvl_pipeline.kedro.suites import status_command
from tests.project import PROJECT, copy_settings
from tests.s3 import Bucket
from tests.suites import fakes

distributed = pytest.importorskip("distributed")
TASKS = ("reach-v3", "door-open-v3", "push-v3", "hammer-v3")
PATIENCE = 500.0


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a suite of four units."""
    root = tmp_path / "project"
    root.mkdir()
    copy_settings(root)
    suite = f"tasks: [{', '.join(TASKS)}]\nmethods: [cvl, bc]\nevaluation_episodes: 4\n"
    (root / "conf/suites/small.yml").write_text(suite)
    (tmp_path / "fakes").mkdir()
    monkeypatch.chdir(root)
    monkeypatch.setenv("FAKES", str(tmp_path / "fakes"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(PROJECT / "src"), str(PROJECT)]))
    return root


@pytest.fixture
def folder(project: Path) -> Path:
    """Where fakes are told what to do."""
    return project.parent / "fakes"


def wait_for(what: Callable[[], Any], process: subprocess.Popen[bytes] | None = None) -> Any:
    end = time.monotonic() + PATIENCE
    while not (found := what()):
        assert time.monotonic() < end
        assert process is None or process.poll() is None, "the suite ended"
        time.sleep(0.1)
    return found


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts suites in processes of their own."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(*options: str, cwd: Path | None = None, **variables: str) -> subprocess.Popen[bytes]:
        with (tmp_path / f"suite{len(started)}.txt").open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.suites.fakes", "small", *options],
                stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **variables}, cwd=cwd,
            )  # fmt: skip
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.wait()


def records(project: Path) -> dict[str, dict[str, Any]]:
    return {
        path.stem: json.loads(path.read_text())
        for path in (project / "data/suites/small/records").glob("[!.]*.json")
    }


def is_gone(process: int) -> bool:
    return not psutil.pid_exists(process) or psutil.Process(process).status() == psutil.STATUS_ZOMBIE


def test_a_killed_worker_and_a_killed_suite_lose_no_finished_unit(
    project: Path, folder: Path, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    for task in TASKS[1:]:
        (folder / task).write_text("hold")
    # So that every replacement of a worker would be too late for Dask.
    suite = start(DASK_DISTRIBUTED__DEPLOY__LOST_WORKER_TIMEOUT="10ms")
    wait_for(lambda: len(records(project)) == 1 and len(fakes.calls(folder)) == 4, suite)
    first, second = (call for call in fakes.calls(folder) if "reach" not in call.cell)
    os.kill(first.parent, signal.SIGKILL)
    wait_for(lambda: is_gone(first.process), suite)
    # The unit begins again in another worker.
    wait_for(lambda: [call.cell for call in fakes.calls(folder)].count(first.cell) == 2, suite)
    processes = {suite.pid, *(child.pid for child in psutil.Process(suite.pid).children(recursive=True))}
    assert second.process in processes
    suite.kill()
    suite.wait()
    wait_for(lambda: all(map(is_gone, processes)))
    assert len(records(project)) == 1
    for task in TASKS[1:]:
        (folder / task).unlink()
    again = start()
    assert again.wait(PATIENCE) == 0
    ended = [call.cell for call in fakes.calls(folder) if call.event == "end"]
    assert sorted(ended) == sorted(records(project)) == sorted(f"{task}_mixed_seed0_x1" for task in TASKS)
    record = records(project)[first.cell]
    values = record["methods"]["bc"]
    assert (values["run"], values["success"], values["returns"]) == (0, [1, 0, 0, 0], [1.23457] * 4)
    assert record["runs"][0]["interrupted"]
    assert not records(project)["hammer-v3_mixed_seed0_x1"]["runs"][0]["interrupted"]


def test_a_unit_that_kills_its_workers_fails_and_the_rest_go_on(
    project: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dask = pytest.importorskip("dask")
    (folder / TASKS[0]).write_text("kill")
    (folder / TASKS[1]).write_text("fail")
    with dask.config.set({"distributed.scheduler.allowed-failures": 0}):
        assert not fakes.run("small", tasks=" ".join(TASKS[:3]), jobs=1)
    output = capsys.readouterr().out
    assert "reach-v3_mixed_seed0_x1: failed: KilledWorker: 1 workers died" in output
    assert "run.log: Error: the disk is full" in output
    assert list(records(project)) == ["push-v3_mixed_seed0_x1"]
    line, *rest = status_command(name="small", params={})
    assert line == "small: 1 of 4 units done, 0 running, 2 failed, 1 to do"
    assert any(text.startswith("failed   door-open-v3_mixed_seed0_x1: status 1, ") for text in rest)


@pytest.mark.slow
def test_sigterm_stops_the_units_which_go_on_with_the_same_command(
    project: Path, folder: Path, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    for task in TASKS:
        (folder / task).write_text("hold")
    suite = start("jobs=1")
    (call,) = wait_for(lambda: fakes.calls(folder), suite)
    suite.terminate()
    assert suite.wait(PATIENCE) == 143
    assert is_gone(call.process)
    assert is_gone(call.parent)
    assert len(fakes.calls(folder)) == 1


@pytest.mark.slow
def test_two_clusters_that_share_a_bucket_do_no_unit_twice(
    project: Path, folder: Path, bucket: Bucket, tmp_path: Path, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    copy_settings(other)
    for root in (project, other):
        (root / "conf/suites/small.yml").write_text((project / "conf/suites/small.yml").read_text())
        (root / "conf/local/credentials.yml").write_text(json.dumps({"laboratory": bucket.options}))
    given = (f"root={bucket.url}/me", "credentials=laboratory", "jobs=1")
    both = [start(*given, cwd=root, FAKE_S3=json.dumps(bucket.options)) for root in (project, other)]
    assert [process.wait(PATIENCE) for process in both] == [0, 0]
    ended = Counter(call.cell for call in fakes.calls(folder) if call.event == "end")
    assert ended == dict.fromkeys((f"{task}_mixed_seed0_x1" for task in TASKS), 1)
    names = [name for name in bucket.names() if "/records/" in name and name.endswith(".json")]
    assert len(names) == 4
