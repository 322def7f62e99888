"""kedro run, end to end and stage by stage."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter

import pandas as pd
import pytest

from tests.integration.conftest import DATASET, FinishedRun, Project

STAGES = ["data_ingestion", "contrastive_dynamics", "value_readout", "policy_extraction", "evaluation"]


def test_a_run_ends_with_a_table_and_says_where_the_results_lie(finished: FinishedRun) -> None:
    tail = finished.output.splitlines()[-12:]
    for row in ("CVL", "BC (control)", "behaviour data"):
        assert any(row in line for line in tail)
    assert tail[-1] == f"Metrics, tables and plots: data/08_reporting/{DATASET}/"


def test_the_log_has_no_warning_no_duplicate_and_one_line_a_node(finished: FinishedRun) -> None:
    assert "WARNING" not in finished.output
    assert "ERROR" not in finished.output
    told = [line.split("INFO")[1].strip() for line in finished.output.splitlines() if "INFO" in line]
    assert max(Counter(told).values()) == 1
    assert [line.split("/")[0] for line in told] == [str(number) for number in range(1, 21)]


def test_metrics_hold_means_intervals_and_the_protocol(finished: FinishedRun) -> None:
    metrics = json.loads(finished.project.artifact("08_reporting", "metrics.json").read_text())
    for policy in ("cvl", "bc", "behaviour"):
        for name in ("success_rate", "return_mean"):
            low, mean, high = (metrics[f"{policy}.{name}{end}"] for end in ("_ci_low", "", "_ci_high"))
            assert low <= mean <= high
    assert metrics["episodes"] == 4
    assert metrics["behaviour_episodes"] == 12
    assert "success at any step" in metrics["protocol"]


def test_metrics_are_the_means_of_the_saved_episodes(finished: FinishedRun) -> None:
    metrics = json.loads(finished.project.artifact("08_reporting", "metrics.json").read_text())
    for name, table, layer in (
        ("cvl", "rollouts", "07_model_output"),
        ("bc", "bc_rollouts", "07_model_output"),
        ("behaviour", "episodes", "02_intermediate"),
    ):
        episodes = pd.read_parquet(finished.project.artifact(layer, f"{table}.parquet"))
        assert metrics[f"{name}.return_mean"] == pytest.approx(episodes["return"].mean())
        assert metrics[f"{name}.success_rate"] == pytest.approx(episodes["success"].mean())


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_alone_remakes_the_same_bytes_and_touches_no_other(stage: str, scratch: Project) -> None:
    before = scratch.fingerprints()
    result = scratch.kedro("run", "--pipelines", stage)
    assert result.returncode == 0, result.stdout
    assert f"{stage}." in result.stdout
    assert not any(f"{other}." in result.stdout for other in STAGES if other != stage)
    assert scratch.fingerprints() == before


def test_from_nodes_runs_the_rest_of_the_pipeline(scratch: Project) -> None:
    result = scratch.kedro("run", "--from-nodes", "value_readout.report")
    assert result.returncode == 0, result.stdout
    assert "1/2 value_readout.report" in result.stdout
    assert "2/2 value_readout.plot" in result.stdout


def test_python_m_runs_the_pipeline_too(scratch: Project) -> None:
    before = scratch.fingerprints()
    result = subprocess.run(
        [sys.executable, "-m", "cvl_pipeline", "--pipelines", "value_readout"],
        cwd=scratch.root,
        env=scratch.environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "4/4 value_readout.plot" in result.stdout
    assert scratch.fingerprints() == before


def test_another_task_and_seed_lie_beside_the_first(scratch: Project) -> None:
    before = scratch.fingerprints()
    result = scratch.kedro(
        "run", "--pipelines", "data_ingestion", "--params", "dataset.task=push-v3,seed=1,dataset.episodes=2"
    )
    assert result.returncode == 0, result.stdout
    report = scratch.artifact("08_reporting", "data_report.json", "push-v3-smoke/seed_1")
    assert json.loads(report.read_text())["episodes"] == 2
    after = scratch.fingerprints()
    assert {path: after[path] for path in before} == before
