"""kedro run on external logs."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch

import cvl_pipeline as cvl
from tests.integration.conftest import REUSE, Forks, Project, copy_project
from tests.sources import logs
from tests.sources.lerobot_sets import FIXTURE, read

COLUMNS = (
    "dataset.columns.observations=obs_*,dataset.columns.actions=act_*,dataset.columns.rewards=reward,"
    "dataset.columns.episode=episode,dataset.columns.terminated=fell,dataset.columns.truncated=null"
)
LOG = f"dataset.source=files,dataset.path=hopper.csv,{COLUMNS}"


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
        (f"{LOG},evaluation.environment={logs.ENVIRONMENT}", "hopper.csv-smoke"),
    ],
)
def test_a_log_becomes_a_policy_that_is_evaluated(
    kedro: Forks, project: Project, parameters: str, folder: str
) -> None:
    output = kedro.kedro(project, "run", "--params", parameters)
    metrics = json.loads(project.artifact("metrics.json", f"{folder}/seed_0").read_text())
    assert "Adroit" not in output  # a notice that Gymnasium-Robotics always prints
    assert metrics["behaviour_episodes"] == 12
    assert metrics["environment"] == logs.ENVIRONMENT
    assert metrics["cvl.return_mean"] > 0.0
    # The Hopper does not report success.
    assert metrics["cvl.success_rate"] is None
    assert "n/a" in output
    if "d4rl" in parameters:
        assert -10.0 < metrics["behaviour.normalised_score"] < 10.0  # random actions have score 0
        assert "D4RL score" in output


def test_a_log_without_an_environment_ends_with_policies_and_offline_figures(
    kedro: Forks, project: Project
) -> None:
    parameters = ("--params", f"{LOG},dataset.name=alone")
    places = [
        "No environment is known for 'hopper.csv', so the policies were not run in one; to do so, name a "
        "Gymnasium id: --params evaluation.environment=ID",
        "CVL: data/06_models/alone/seed_0/cvl_policy.safetensors",
        "BC (control): data/06_models/alone/seed_0/bc_policy.safetensors",
        "Offline figures: data/08_reporting/alone/seed_0/value_report.json (explained in docs/metrics.md)",
        "Pictures: data/08_reporting/alone/seed_0/value_plot.png, data/08_reporting/alone/seed_0/policy_plot.png",
        "All on one page: data/08_reporting/alone/seed_0/page.html",
    ]
    for command, nodes in (
        (("run",), 22),
        (("run", "--from-nodes", "value_readout.label"), 12),
        (REUSE, 0),
    ):
        output = kedro.kedro(project, *command, *parameters)
        assert output.splitlines()[-6:] == places, command
        assert "judged from the log alone" in output
        assert output.count(" -> ") == nodes, command
        assert "WARNING" not in output
    for name in ("value_report.json", "value_plot.png", "policy_plot.png", "cvl_policy.safetensors"):
        assert project.artifact(name, "alone/seed_0").exists()
    judgement = json.loads(project.artifact("judgement.json", "alone/seed_0").read_text())
    for name in ("cvl", "bc"):
        low, high = (judgement[f"{name}.advantage_ci_{end}"] for end in ("low", "high"))
        assert low <= judgement[f"{name}.advantage"] <= high
        for measure in ("action_error", "fqe_value", "fqe_gain"):  # of one held-out episode
            assert math.isfinite(judgement[f"{name}.{measure}"]), measure
            assert [judgement[f"{name}.{measure}_ci_{end}"] for end in ("low", "high")] == [None, None]
        assert all(0.0 <= judgement[f"{name}.{part}_rank"] <= 1.0 for part in ("action", "visited"))
    assert judgement["held_out_episodes"] == 1
    refusal = kedro.kedro(project, "run", "--pipelines", "evaluation", *parameters, status=1)
    assert refusal == (
        "Error: no environment is known for dataset 'hopper.csv' (dataset.source files); name a Gymnasium id in "
        "evaluation.environment to evaluate policies\n"
    )
    assert "26 artifacts: 26 fresh" in kedro.kedro(project, "artifacts", "status", *parameters)
    # With one, only the evaluation is missing.
    plan = kedro.plan(project, "--params", f"{parameters[1]},evaluation.environment={logs.ENVIRONMENT}")
    assert {name.partition(".")[0] for name in plan} == {"evaluation"}


def test_a_log_without_rewards_needs_one_of_the_users_own(kedro: Forks, project: Project) -> None:
    parameters = f"{LOG},dataset.name=unpaid,evaluation.environment={logs.ENVIRONMENT}"
    parameters = parameters.replace("rewards=reward", "rewards=null")
    refusal = kedro.kedro(project, "run", "--params", parameters, status=1)
    assert "the log has no rewards" in refusal
    assert "Traceback" not in refusal
    goal = {"indices": 0, "target": 1.4, "scale": 0.1, "tolerance": 0.05}
    reward = ",".join(
        ["reward.source=goal_distance", *(f"reward.{key}={value}" for key, value in goal.items())]
    )
    kedro.kedro(project, *REUSE, "--params", f"{parameters},{reward}")
    metrics = json.loads(project.artifact("metrics.json", "unpaid/seed_0/goal_distance").read_text())
    assert metrics["cvl.success_rate"] is not None


def test_a_preset_collects_into_a_folder_of_its_own(kedro: Forks, project: Project) -> None:
    parameters = "dataset.preset=fragments,dataset.window=10"
    output = kedro.kedro(project, "run", "--params", parameters)
    assert (
        "reach-v3: 12 episodes are cut into 24 windows of 10 steps. 240 of 480 steps are in no window"
        in output
    )
    folder = "reach-v3-fragments-smoke/seed_0"
    report = json.loads(project.artifact("data_report.json", folder).read_text())
    assert (report["episodes"], report["transitions"], report["dropped_steps"]) == (24, 240, 240)
    metrics = json.loads(project.artifact("metrics.json", folder).read_text())
    assert (metrics["behaviour_episodes"], metrics["environment"]) == (24, "reach-v3")
    # Nothing is stale: what a run stores is what it reads.
    assert not kedro.plan(project, "--params", parameters)
    refusal = kedro.kedro(project, "run", "--params", "dataset.preset=noisy,dataset.window=10", status=1)
    assert refusal == (
        "Error: parameters: 'dataset': dataset.preset noisy does not use dataset.window: leave it out, "
        "or set it to null\n"
    )


def test_one_policy_is_evaluated_over_the_goals_of_a_maze(kedro: Forks, project: Project) -> None:
    pytest.importorskip("ogbench")
    task = "pointmaze-medium-navigate-singletask-v0"
    parameters = (
        f"dataset.source=ogbench,dataset.task={task},dataset.collect=true,dataset.episodes=8,dataset.episode_steps=100,"
        "evaluation.goals=true,evaluation.episodes=5,evaluation.episode_steps=20,baselines.bc=null,"
        "baselines.crl.method=crl,baselines.crl.goal_share=0.5,reward.source=goal_distance,reward.indices=0 1,"
        "reward.target=20 20,reward.scale=4,reward.tolerance=1"
    )
    kedro.kedro(project, "run", "--params", parameters)
    metrics = json.loads(project.artifact("metrics.json", f"{task}-smoke/seed_0/goal_distance").read_text())
    assert metrics["environment"] == f"goals of {task}"
    for method in ("cvl", "crl"):
        rates = [metrics[f"{method}.success_rate.task{goal}"] for goal in range(1, 6)]
        assert metrics[f"{method}.success_rate"] == pytest.approx(sum(rates) / 5)
    assert not kedro.plan(project, "--params", parameters)
    refusal = kedro.kedro(
        project, "run", "--params", "evaluation.goals=true,evaluation.environment=CartPole-v1", status=1
    )
    assert refusal == (
        "Error: evaluation.goals is true, but only the dataset's own environment has known goals; set "
        "evaluation.environment to null\n"
    )


def test_cameras_and_a_state_of_lerobot_become_a_policy_and_a_dataset_again(
    kedro: Forks, project: Project
) -> None:
    shutil.copytree(FIXTURE / "v30", project.root / "point")
    parameters = (
        "--params",
        "dataset.source=lerobot,dataset.path=point,dataset.image_size=16,contrastive_dynamics.training.steps=20,"
        "policy_extraction.training.steps=20,baselines.bc=null",
    )
    kedro.kedro(project, "run", "--to-nodes", "policy_extraction.train_cvl", *parameters)
    transitions, rewards, policy = (
        cvl.load(project.artifact(f"{name}.safetensors", "point-smoke/seed_0"))
        for name in ("transitions", "rewards", "cvl_policy")
    )
    assert transitions.parts.names == ("state", "task", "images.top", "images.wrist")
    observation = {
        name: values.numpy() for name, values in transitions.unpacked(transitions.observations[0]).items()
    }
    action = policy.act(observation)
    assert action.shape == (2,)
    assert (transitions.action_low.numpy() <= action).all()
    assert (action <= transitions.action_high.numpy()).all()

    export = ("export-dataset", *parameters, "--format", "lerobot", "--out", "again/point")
    output = kedro.kedro(project, *export, "--fps", "5")
    assert output.splitlines()[-1] == "kedro run --params dataset.source=lerobot,dataset.path=again/point"
    same, labels = read(project.root / "again/point")
    assert torch.equal(same.observations, transitions.observations)
    assert torch.equal(labels.rewards, rewards.rewards)
    assert "again/point exists already; delete it first" in kedro.kedro(project, *export, status=1)
    for options, words in (
        (("--format", "hdf5", "--fps", "5"), "--fps is for --format lerobot; leave it out"),
        (("--format", "minari"), "--format minari needs --name, the id of the new dataset"),
        (
            ("--format", "hdf5", "--params", "dataset.source=lerobot,dataset.path=point,dataset.name=absent"),
            "not ingested yet",
        ),
    ):
        given = () if "--params" in options else parameters
        command = ("export-dataset", *given, "--out", "other.hdf5", *options)
        assert words in kedro.kedro(project, *command, status=1)
