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
from cvl_pipeline.kedro.pipeline_registry import register_stages
from cvl_pipeline.readout.regression import RegressedReadout
from tests.integration.conftest import DATASET, FinishedRun, Forks, Project
from tests.reports.pages import Page, check_numbers

STAGES = ["data_ingestion", "contrastive_dynamics", "value_readout", "policy_extraction", "evaluation"]


def test_a_run_ends_with_a_table_and_the_place_of_the_results(finished: FinishedRun) -> None:
    tail = finished.output.splitlines()[-12:]
    for row in ("CVL", "BC (control)", "behaviour data"):
        assert any(row in line for line in tail)
    place = f"data/08_reporting/{DATASET}"
    assert tail[-2:] == [f"Metrics, tables and plots: {place}/", f"All on one page: {place}/page.html"]


def test_the_page_has_the_numbers_of_the_metrics_and_needs_no_network(finished: FinishedRun) -> None:
    place = finished.project.artifact("page.html")
    page = Page(place.read_text())
    check_numbers(page, json.loads(finished.project.artifact("metrics.json").read_text()))
    (script,) = [address for address in page.addresses if address.endswith(".js")]
    assert (place.parent / script).resolve() == finished.project.root / "data/08_reporting/plotly.min.js"
    assert page.table("Parameter")["contrastive_dynamics.training.steps"][:1] == [("60", "60")]
    fingerprints = page.table("Artifact")
    assert {"metrics", "transitions", "values", "cvl_rollouts"} <= set(fingerprints)
    assert all(len(text) == 16 for ((text, _),) in fingerprints.values())
    assert str(finished.project.root) not in page.text


def test_the_log_has_no_warning_no_duplicate_and_one_line_per_node(finished: FinishedRun) -> None:
    assert "WARNING" not in finished.output
    assert "ERROR" not in finished.output
    messages = [line.split("INFO")[1].strip() for line in finished.output.splitlines() if "INFO" in line]
    assert max(Counter(messages).values()) == 1
    # A busy machine takes long to start, and says so.
    messages = [message for message in messages if not message.startswith("loading libraries")]
    (rounds,) = (message for message in messages if not message[0].isdigit())
    assert rounds.startswith("value_readout: the log holds ")  # the episodes of this run are short
    nodes = [message for message in messages if message != rounds]
    assert [line.split("/")[0] for line in nodes] == [str(number) for number in range(1, 25)]


def test_returns_are_regressed_and_reported_beside_the_readout(finished: FinishedRun) -> None:
    readout = load_artifact(finished.project.artifact("readout.safetensors"), "readout")
    assert isinstance(readout, RegressedReadout)
    assert readout.discount == 0.97
    values = pd.read_parquet(finished.project.artifact("values.parquet"))
    compared = values.dropna(subset=["q_exact"])
    assert not compared["q"].equals(compared["q_alone"])
    report = json.loads(finished.project.artifact("value_report.json").read_text())
    assert report["readout_error"] < 1e-3, "the readout alone has all references"


def test_metrics_hold_means_intervals_and_the_protocol(finished: FinishedRun) -> None:
    metrics = json.loads(finished.project.artifact("metrics.json").read_text())
    for policy in ("cvl", "bc", "behaviour"):
        for name in ("success_rate", "return_mean"):
            low, mean, high = (metrics[f"{policy}.{name}{end}"] for end in ("_ci_low", "", "_ci_high"))
            assert low <= mean <= high
    assert metrics["episodes"] == 4
    assert metrics["behaviour_episodes"] == 12
    assert "success at any step" in metrics["protocol"]


def test_metrics_are_the_means_of_the_saved_episodes(finished: FinishedRun) -> None:
    metrics = json.loads(finished.project.artifact("metrics.json").read_text())
    for name, table in (("cvl", "cvl_rollouts"), ("bc", "bc_rollouts"), ("behaviour", "episodes")):
        episodes = pd.read_parquet(finished.project.artifact(f"{table}.parquet"))
        assert metrics[f"{name}.return_mean"] == pytest.approx(episodes["return"].mean())
        assert metrics[f"{name}.success_rate"] == pytest.approx(episodes["success"].mean())


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_alone_recreates_the_same_bytes_and_changes_no_other(
    stage: str, kedro: Forks, scratch: Project
) -> None:
    before = scratch.fingerprints()
    nodes = kedro.run(scratch, "run", "--pipelines", stage)
    assert nodes == {node.name for node in register_stages()[stage].nodes}
    assert scratch.fingerprints() == before


def test_python_m_runs_the_pipeline_too(scratch: Project) -> None:
    before = scratch.fingerprints()
    result = subprocess.run(
        [sys.executable, "-m", "cvl_pipeline", "--from-nodes", "value_readout.report"],
        cwd=scratch.root,
        env=scratch.environment(),
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "1/3 value_readout.report" in result.stdout
    assert "3/3 value_readout.plot" in result.stdout
    assert scratch.fingerprints() == before


def test_another_task_and_seed_have_folders_of_their_own(kedro: Forks, scratch: Project) -> None:
    before = scratch.fingerprints()
    parameters = ("--params", "dataset.task=push-v3,seed=1,dataset.episodes=2")
    kedro.kedro(scratch, "run", "--pipelines", "data_ingestion", *parameters)
    report = scratch.artifact("data_report.json", "push-v3-smoke/seed_1")
    assert json.loads(report.read_text())["episodes"] == 2
    after = scratch.fingerprints()
    assert {path: after[path] for path in before} == before


GOAL = "reward.source=goal_distance,reward.name=corner,reward.indices=0 1 2,reward.target=0.1 0.8 0.2"


def test_another_reward_reruns_only_readout_and_policy_and_has_a_folder_of_its_own(
    kedro: Forks, scratch: Project
) -> None:
    before = scratch.fingerprints()
    parameters = ("--params", f"{GOAL},reward.scale=0.1,reward.tolerance=0.3")
    output = kedro.kedro(scratch, "run", "--from-nodes", "value_readout.label", *parameters)
    for skipped in ("data_ingestion.", "contrastive_dynamics.", "policy_extraction.train_bc", "roll_out_bc"):
        assert skipped not in output
    after = scratch.fingerprints()
    assert {path: after[path] for path in before} == before
    folder = f"{DATASET}/corner"
    metrics = json.loads(scratch.artifact("metrics.json", folder).read_text())
    assert metrics["reward"] == "goal_distance"
    for policy in ("cvl", "bc"):  # scored by the current reward, which is in (0, 1] per step
        assert 0.0 < metrics[f"{policy}.return_mean"] <= 40.0
    assert f"Metrics, tables and plots: data/08_reporting/{folder}/" in output


def test_a_users_reward_is_a_function_on_the_python_path(kedro: Forks, scratch: Project) -> None:
    (scratch.root / "src/my_rewards.py").write_text(
        "def low_hand(observations, actions, next_observations):\n    return -next_observations[:, 2]\n"
    )
    label = ("--nodes", "value_readout.label", "--params", "reward.source=my_rewards:low_hand")
    kedro.kedro(scratch, "run", *label)
    labels = scratch.artifact("labels.safetensors", f"{DATASET}/my_rewards.low_hand")
    rewards = load_artifact(labels, "rewards").rewards
    transitions = load_artifact(scratch.artifact("transitions.safetensors"), "transitions")
    assert rewards[0] == -transitions.observations[1, 2]


def test_a_horizon_conditioned_critic_is_read_out_at_any_discount(kedro: Forks, scratch: Project) -> None:
    conditioned = "contrastive_dynamics.horizon_conditioning=true"
    means = []
    for stages, discount in (("contrastive_dynamics,value_readout", 0.5), ("value_readout", 0.9)):
        parameters = f"{conditioned},value_readout.discount={discount}"
        kedro.kedro(scratch, "run", "--pipelines", stages, "--params", parameters)
        means.append(json.loads(scratch.artifact("value_report.json").read_text())["q_mean"])
    assert means[1] == pytest.approx(5 * means[0], rel=0.5)  # 1 / (1 - discount) times a mean reward


def test_all_objectives_and_methods_end_in_one_comparison(kedro: Forks, scratch: Project) -> None:
    """CVL by best_of_n, and beside it IQL, CRL, CVL by the other objectives and a method of one's own."""
    (scratch.root / "src/my_method.py").write_text(MY_METHOD)
    choices = ["policy_extraction.objective=best_of_n", "baselines.bc=null", "baselines.iql.method=iql"]
    choices.append("baselines.crl.method=crl")
    for objective in ("ddpg_bc", "published"):
        start = f"baselines.{objective}"
        training = f"{start}.extraction.training"
        choices += [
            f"{start}.method=cvl", f"{start}.extraction.objective={objective}",
            f"{training}.steps=20,{training}.validation_interval=10",
        ]  # fmt: skip
    choices.append("baselines.own.method=my_method:Slow")
    parameters = ("--params", ",".join(choices))
    output = kedro.kedro(scratch, "run", "--pipelines", "policy_extraction,evaluation", *parameters)
    metrics = json.loads(scratch.artifact("metrics.json").read_text())
    titles = {
        "cvl": "CVL", "iql": "IQL", "crl": "CRL", "ddpg_bc": "ddpg_bc (CVL)", "published": "published (CVL)",
        "own": "own (half as fast)",
    }  # fmt: skip
    assert metrics["methods"] == titles
    assert "bc.return_mean" not in metrics
    for name, title in titles.items():
        assert f"│ {title} " in output
        assert metrics[f"{name}.return_mean"] > 0.0
        assert load_artifact(scratch.artifact(f"{name}_policy.safetensors"), "policy")
    # It learns its values itself, so it takes the steps of critic, regression and policy together.
    assert pd.read_parquet(scratch.artifact("iql_history.parquet"))["step"].max() == 60 + 60 + 60 + 30
    assert pd.read_parquet(scratch.artifact("own_history.parquet"))["step"].max() == 60
    assert kedro.plan(scratch, *parameters) == set()


MY_METHOD = """
from pydantic import Field
from cvl_pipeline.methods.base import MethodParameters
from cvl_pipeline.methods.bc import BC

class Slow(BC):
    class Parameters(MethodParameters):
        method: str
        speed: float = Field(0.5, description="How fast.")
    title = "half as fast"
    needs_rewards = True
"""


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
from kedro.framework.project import pipelines
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
bootstrap_project(Path.cwd())
with KedroSession.create(env="smoke") as session:
    catalog = session.load_context().catalog
    for name in pipelines["__default__"].all_outputs():
        dataset = catalog.get(name)
        # Pictures can only be previewed.
        dataset.preview() if type(dataset).__name__ == "FigureDataset" else dataset.load()
        print(Path(dataset._filepath).name)
        if type(dataset).__name__ == "PageDataset":
            assert dataset._script.path.read_text()
            print(dataset._script.path.name)
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
        timeout=500,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    names = {Path(name).name for name in finished.project.fingerprints()}
    made = {name for name in names if not name.endswith(".made.json")}
    assert set(result.stdout.split()) >= made
    assert len(made) > 20
