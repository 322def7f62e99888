"""kedro run on external logs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.integration.conftest import Project, copy_project
from tests.sources import logs

COLUMNS = (
    "dataset.columns.observations=obs_*,dataset.columns.actions=act_*,dataset.columns.rewards=reward,"
    "dataset.columns.episode=episode,dataset.columns.terminated=fell,dataset.columns.truncated=null"
)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with logs in every format beside its data."""
    project = copy_project(tmp_path_factory.mktemp("sources"))
    logs.write_all(project.root, *logs.collect_hopper(12))
    return project


@pytest.mark.parametrize(
    ("parameters", "folder"),
    [
        ("dataset.source=d4rl,dataset.task=hopper-random-v2,dataset.path=hopper.hdf5", "hopper.hdf5-smoke"),
        (f"dataset.source=minari,dataset.task={logs.MINARI_ID},dataset.path=minari", "mine-hopper-v0-smoke"),
        (
            f"dataset.source=files,dataset.path=hopper.csv,{COLUMNS},evaluation.environment={logs.ENVIRONMENT}",
            "hopper.csv-smoke",
        ),
    ],
)
def test_a_log_becomes_a_policy_that_is_evaluated(project: Project, parameters: str, folder: str) -> None:
    result = project.kedro("run", "--params", parameters)
    assert result.returncode == 0, result.stdout
    metrics = json.loads((project.root / f"data/08_reporting/{folder}/seed_0/metrics.json").read_text())
    assert "Adroit" not in result.stdout  # a notice that Gymnasium-Robotics always prints
    assert metrics["behaviour_episodes"] == 12
    assert metrics["environment"] == logs.ENVIRONMENT
    assert metrics["cvl.return_mean"] > 0.0
    if "d4rl" in parameters:
        assert -10.0 < metrics["behaviour.normalised_score"] < 10.0  # random actions have score 0
        assert "D4RL score" in result.stdout


def test_a_log_without_an_environment_stops_before_any_work_and_says_how_to_go_on(project: Project) -> None:
    parameters = f"dataset.source=files,dataset.path=hopper.csv,dataset.name=alone,{COLUMNS}"
    result = project.kedro("run", "--params", parameters)
    assert result.returncode == 1
    assert "evaluation.environment" in result.stdout
    assert "Traceback" not in result.stdout
    assert not list(Path(project.root / "data").glob("0*/alone"))
    stages = result.stdout.split("kedro run --pipelines ")[1].split()[0]
    done = project.kedro("run", "--pipelines", stages, "--params", parameters)
    assert done.returncode == 0, done.stdout
    assert (project.root / "data/06_models/alone/seed_0/policy.safetensors").exists()


def test_a_log_without_rewards_needs_one_of_the_persons_own(project: Project) -> None:
    parameters = (
        f"dataset.source=files,dataset.path=hopper.csv,dataset.name=unpaid,{COLUMNS},"
        f"evaluation.environment={logs.ENVIRONMENT}"
    ).replace("rewards=reward", "rewards=null")
    refused = project.kedro("run", "--params", parameters)
    assert refused.returncode == 1
    assert "the log has no rewards" in refused.stdout
    assert "Traceback" not in refused.stdout
    goal = {"indices": 0, "target": 1.4, "scale": 0.1, "tolerance": 0.05}
    reward = ",".join(
        ["reward.source=goal_distance", *(f"reward.{key}={value}" for key, value in goal.items())]
    )
    done = project.kedro("run", "--params", f"{parameters},{reward}")
    assert done.returncode == 0, done.stdout
