"""A study is killed, resumed, used, damaged and restored."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path

import pandas as pd
import pytest

from cvl_pipeline.kedro.provenance.records import record_path
from tests.integration.conftest import Forks, Project
from tests.integration.test_faults import assert_refused
from tests.training.processes import linux, wait_for

STUDY = "reach-v3-smoke/tuning/study"
SEARCH = ("run", "--pipelines", "tuning")
TRIALS = 4  # as in conf/smoke


def workers_of(project: Project) -> list[int]:
    """Process ids of the project's workers, which run its code in its folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (path / "cmdline").read_text().split("\0")
            if "cvl_pipeline.tuning.worker" in line and (path / "cwd").readlink() == project.root:
                found.append(int(path.name))
    return found


def trials_of(project: Project) -> pd.DataFrame:
    return pd.read_parquet(project.root / f"data/07_model_output/{STUDY}/tuning_trials.parquet")


@pytest.fixture(scope="module")
def studied(kedro: Forks, copied: Project) -> tuple[Project, set[str]]:
    """A study that was killed and then resumed; ids of the trials that were finished before."""
    records = copied.root / f"data/06_models/{STUDY}/records"
    process = copied.start(copied.root / "killed.log", *SEARCH)
    wait_for(lambda: list(records.glob("[!.]*.json")) or process.poll() is not None)
    assert process.poll() is None
    process.kill()
    process.wait()
    wait_for(lambda: not workers_of(copied))  # no worker outlives the run
    before = {path.name for path in records.glob("[!.]*.json")}
    assert f"{TRIALS}/{TRIALS} trial" in kedro.kedro(copied, *SEARCH)
    return copied, before


@linux
def test_a_killed_search_is_continued_up_to_the_number_of_trials(
    kedro: Forks, studied: tuple[Project, set[str]]
) -> None:
    project, before = studied
    trials = trials_of(project)
    assert (trials["state"] == "COMPLETE").sum() == TRIALS
    assert trials["number"].is_unique
    after = {path.name for path in (project.root / f"data/06_models/{STUDY}/records").glob("[!.]*.json")}
    assert before <= after
    assert len(after) == TRIALS
    report = json.loads((project.root / f"data/08_reporting/{STUDY}/tuning_report.json").read_text())
    assert report["trials"]["complete"] == TRIALS
    assert f"{TRIALS} complete" in kedro.kedro(project, "tuning", "status", "--env", "smoke")
    for name in ("history", "importance", "parallel"):
        figure = json.loads((project.root / f"data/08_reporting/{STUDY}/tuning_{name}_plot.json").read_text())
        assert figure["data"]


@linux
@pytest.mark.parametrize(
    ("parameters", "nodes"),
    [
        ("tuning.workers=2,tuning.max_failures=9", set()),
        ("tuning.trials=5", {"search", "choose", "report", "history", "importance", "parallel"}),
        ("seed=0,evaluation.workers=3", set()),
    ],
)
def test_a_study_is_continued_after_changes_that_count(
    studied: tuple[Project, set[str]], kedro: Forks, parameters: str, nodes: set[str]
) -> None:
    project, _ = studied
    given = ("--pipelines", "data_ingestion,tuning", "--params", parameters)
    assert kedro.plan(project, *given) == {f"tuning.{name}" for name in nodes}


@linux
def test_tuned_trains_with_the_best_parameters_and_logs_them(
    kedro: Forks, studied: tuple[Project, set[str]]
) -> None:
    project, _ = studied
    path = project.root / f"data/08_reporting/{STUDY}/best_parameters.json"
    best = json.loads(path.read_text())
    best["parameters"]["contrastive_dynamics.representation_size"] = 8  # differs from conf/smoke
    best["parameters"]["contrastive_dynamics.temperature"] = 0.2
    path.write_text(json.dumps(best))
    given = "tuned=true,contrastive_dynamics.temperature=0.3"
    refused = kedro.kedro(project, "run", "--pipelines", "contrastive_dynamics", "--params", given, status=1)
    assert "best_parameters.json has changed since it was written; delete it" in refused
    record_path(path).unlink()  # now it is a file of one's own
    output = kedro.kedro(project, "run", "--pipelines", "contrastive_dynamics", "--params", given)
    assert output.count("tuned: contrastive_dynamics.representation_size is 8, not 16") == 1
    assert "temperature is" not in output  # --params has the last word
    critic = (project.root / "data/06_models/reach-v3-smoke/seed_0/critic.safetensors").read_bytes()
    assert b'\\"representation_size\\": 8' in critic
    assert b'\\"temperature\\": 0.3' in critic


@linux
def test_a_damaged_journal_is_reported_and_finished_trials_are_restored(
    studied: tuple[Project, set[str]], kedro: Forks
) -> None:
    project, _ = studied
    journal = project.root / f"data/06_models/{STUDY}/journal.log"
    before = trials_of(project)
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:5], lines[5][:9] + b"\n", *lines[6:]]))
    assert_refused(
        kedro, project, ["--pipelines", "tuning"], "journal.log: line 6 is damaged", "move the file away"
    )
    journal.rename(journal.with_suffix(".damaged"))
    assert f"Restored {TRIALS} finished trials" in kedro.kedro(project, *SEARCH)
    measure = "measure/returns_correlation"
    complete = before[before["state"] == "COMPLETE"]
    assert sorted(trials_of(project)[measure]) == sorted(complete[measure])


def test_an_unreachable_database_is_reported_without_its_password(kedro: Forks, scratch: Project) -> None:
    url = "postgresql+psycopg://me:secret@127.0.0.1:1/db"
    (scratch.root / "conf/smoke/credentials.yml").write_text(f"somewhere:\n  url: {url}\n")
    before = scratch.fingerprints()
    output = kedro.kedro(scratch, *SEARCH, "--params", "tuning.storage=somewhere", status=1)
    errors = [line for line in output.splitlines() if "Error" in line]
    assert len(errors) == 1, output
    assert "postgresql+psycopg://me:***@127.0.0.1:1/db cannot be used" in errors[0]
    assert "Traceback" not in output
    assert "secret" not in output
    assert scratch.fingerprints() == before


def test_a_search_that_is_told_to_stop_stops_its_workers(scratch: Project) -> None:
    log = scratch.root / "stopped.log"
    process = scratch.start(log, *SEARCH, "--params", "tuning.trials=50")
    records = scratch.root / f"data/06_models/{STUDY}/records"
    wait_for(lambda: list(records.glob("[!.]*.json")) or process.poll() is not None)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(timeout=500) == 143
    output = log.read_text()
    assert "run the same command again to continue the study" in output
    assert "Traceback" not in output
    wait_for(lambda: not workers_of(scratch), 10.0)
