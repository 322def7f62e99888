"""kedro run, end to end and stage by stage."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from cvl_pipeline.io.artifacts import load_artifact
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
    assert [line.split("/")[0] for line in told] == [str(number) for number in range(1, 23)]


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
    assert "5/5 value_readout.plot" in result.stdout
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


GOAL = "reward.source=goal_distance,reward.name=corner,reward.indices=0 1 2,reward.target=0.1 0.8 0.2"


def test_another_reward_reruns_readout_and_policy_alone_and_lies_beside_the_first(scratch: Project) -> None:
    before = scratch.fingerprints()
    result = scratch.kedro(
        "run",
        "--from-nodes",
        "value_readout.label",
        "--params",
        f"{GOAL},reward.scale=0.1,reward.tolerance=0.3",
    )
    assert result.returncode == 0, result.stdout
    for skipped in ("data_ingestion.", "contrastive_dynamics.", "policy_extraction.clone", "roll_out_bc"):
        assert skipped not in result.stdout
    after = scratch.fingerprints()
    assert {path: after[path] for path in before} == before
    folder = f"{DATASET}/corner"
    metrics = json.loads(scratch.artifact("08_reporting", "metrics.json", folder).read_text())
    assert metrics["reward"] == "goal_distance"
    for policy in ("cvl", "bc"):  # scored by the current reward, which is in (0, 1] per step
        assert 0.0 < metrics[f"{policy}.return_mean"] <= 40.0
    assert f"Metrics, tables and plots: data/08_reporting/{folder}/" in result.stdout


def test_a_reward_of_ones_own_is_a_function_on_the_python_path(scratch: Project) -> None:
    (scratch.root / "src/my_rewards.py").write_text(
        "def low_hand(observations, actions, next_observations):\n    return -next_observations[:, 2]\n"
    )
    result = scratch.kedro(
        "run", "--nodes", "value_readout.label", "--params", "reward.source=my_rewards:low_hand"
    )
    assert result.returncode == 0, result.stdout
    labels = scratch.artifact("03_primary", "labels.safetensors", f"{DATASET}/my_rewards.low_hand")
    rewards = load_artifact(labels, "rewards").rewards
    transitions = load_artifact(scratch.artifact("01_raw", "transitions.safetensors"), "transitions")
    assert rewards[0] == -transitions.observations[1, 2]


def test_a_horizon_conditioned_critic_is_read_out_at_any_discount(scratch: Project) -> None:
    conditioned = "contrastive_dynamics.horizon_conditioning=true"
    result = scratch.kedro("run", "--pipelines", "contrastive_dynamics", "--params", conditioned)
    assert result.returncode == 0, result.stdout
    means = []
    for discount in (0.5, 0.9):
        parameters = f"{conditioned},value_readout.discount={discount}"
        result = scratch.kedro("run", "--pipelines", "value_readout", "--params", parameters)
        assert result.returncode == 0, result.stdout
        report = json.loads(scratch.artifact("08_reporting", "value_report.json").read_text())
        means.append(report["q_mean"])
    assert means[1] == pytest.approx(5 * means[0], rel=0.5)  # 1 / (1 - discount) times a mean reward


@pytest.mark.parametrize("objective", ["ddpg_bc", "best_of_n", "published"])
def test_every_objective_ends_in_an_evaluated_policy(objective: str, scratch: Project) -> None:
    result = scratch.kedro(
        "run",
        "--from-nodes",
        "policy_extraction.extract",
        "--params",
        f"policy_extraction.objective={objective}",
    )
    assert result.returncode == 0, result.stdout
    assert scratch.artifact("08_reporting", "metrics.json").exists()


# Runs in its own process, before any library can store a reference to an unpickler; unpickling fails.
LOAD_ALL = """
import pickle, _pickle, sys
from pathlib import Path
class Refusing:
    def __init__(self, *_, **__):
        raise RuntimeError("unpickled")
def refuse(*_, **__):
    raise RuntimeError("unpickled")
for module in (pickle, _pickle):
    module.load = module.loads = refuse
    module.Unpickler = Refusing
pickle._load = pickle._loads = pickle._Unpickler.load = refuse
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
bootstrap_project(Path.cwd())
with KedroSession.create(env="smoke") as session:
    catalog = session.load_context().catalog
    files = [name for name in catalog.filter() if hasattr(catalog[name], "_filepath")]
    for name in filter(catalog.exists, files):  # no study has been done
        dataset = catalog[name]
        # Pictures are written alone: kedro-viz reads their bytes.
        dataset.preview() if type(dataset).__name__ == "FigureDataset" else dataset.load()
        print(Path(dataset._filepath).name)
"""


def test_every_artifact_is_loaded_without_unpickling(finished: FinishedRun) -> None:
    """Checkpoints are an exception: torch's restricted unpickler, which creates only tensors and plain
    values, reads them (tests/io/test_checked.py)."""
    result = subprocess.run(
        [sys.executable, "-c", LOAD_ALL],
        cwd=finished.project.root,
        env=finished.project.environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    names = {Path(name).name for name in finished.project.fingerprints()}
    made = {name for name in names if not name.endswith(".made.json")}
    assert set(result.stdout.split()) >= made
    assert len(made) > 20
