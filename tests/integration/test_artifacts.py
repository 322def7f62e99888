"""Only stale artifacts are recreated: every kind of change, and the nodes that run after it."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from cvl_pipeline.kedro.pipeline_registry import register_pipelines, register_stages
from tests.artifacts import with_flipped_bit
from tests.integration.conftest import REUSE, Forks, Project
from tests.kedro.provenance.holders import lock_holder
from tests.project import PROJECT

WHOLE = register_pipelines()["__default__"]


def after(*nodes: str) -> set[str]:
    """The nodes and all nodes that depend on them."""
    return {node.name for node in WHOLE.from_nodes(*nodes).nodes} if nodes else set()


def described(nodes: set[str]) -> str:
    """Text of the nodes in docs/artifacts.md."""
    first = [node.name for node in WHOLE.nodes if node.name in nodes]
    for name in list(first):
        first = [other for other in first if other == name or other not in after(name)]
    assert after(*first) == nodes
    names = ", ".join(f"`{name}`" for name in first)
    return "none" if not nodes else names if len(nodes) == len(first) else f"{names} and what follows"


ALL = after("data_ingestion.ingest")
PLOTS = {node.name for node in WHOLE.nodes if node.name.endswith(".plot")}
POLICIES = after("policy_extraction.train_cvl", "policy_extraction.train_bc")
TRAININGS = after("contrastive_dynamics.train", "policy_extraction.train_bc")
ROLLOUTS = after("evaluation.roll_out_cvl", "evaluation.roll_out_bc")
Act = Callable[[Project], None]


@dataclass(frozen=True)
class Row:
    """A change and the nodes that it causes to run."""

    what: str
    nodes: set[str]
    act: Act = lambda project: None
    parameters: str = ""


def edit(module: str, old: str, new: str) -> Act:
    def act(project: Project) -> None:
        path = project.root / "src/cvl_pipeline" / module
        text = path.read_text()
        assert text.count(old) == 1, f"{module} has another text now: {old}"
        path.write_text(text.replace(old, new))

    return act


def replace_docstring(module: str) -> Act:
    def act(project: Project) -> None:
        path = project.root / "src/cvl_pipeline" / module
        text = path.read_text()
        assert text.startswith('"""')
        path.write_text('"""Another."""' + text[text.index('"""', 3) + 3 :])

    return act


def append(module: str, text: str = "\n\nNEW = 1\n") -> Act:
    def act(project: Project) -> None:
        with (project.root / "src/cvl_pipeline" / module).open("a") as file:
            file.write(text)

    return act


def data(project: Project, name: str) -> Path:
    (path,) = [path for path in project.root.glob(f"data/*/*/*/{name}.*") if not path.name.startswith(".")]
    return path


def record(project: Project, name: str) -> Path:
    path = data(project, name)
    return path.with_name(f".{path.name}.made.json")


def delete(name: str) -> Act:
    return lambda project: data(project, name).unlink()


def replace(name: str, other: str) -> Act:
    def act(project: Project) -> None:
        shutil.copy(data(project, other), data(project, name))

    return act


def damage(name: str) -> Act:
    def act(project: Project) -> None:
        path = data(project, name)
        path.write_bytes(with_flipped_bit(path.read_bytes()))

    return act


def touch(name: str) -> Act:
    return lambda project: data(project, name).touch()


def package(name: str) -> Act:
    """Give a package another version, by metadata in a folder that is searched first."""

    def act(project: Project) -> None:
        folder = project.root / "src" / f"{name}-99.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 99.0\n")

    return act


TRAINING = "contrastive_dynamics.training"
ROWS = [
    Row("nothing", set()),
    # Parameters.
    Row("seed=1", ALL, parameters="seed=1"),
    Row("dataset.noise_max", ALL, parameters="dataset.noise_max=0.2"),
    Row("data_ingestion.validation_fraction", after("data_ingestion.split"),
        parameters="data_ingestion.validation_fraction=0.25"),
    Row("data_ingestion.std_floor", after("data_ingestion.normalise"),
        parameters="data_ingestion.std_floor=0.01"),
    Row("data_ingestion.workers", set(), parameters="data_ingestion.workers=1"),
    Row("contrastive_dynamics.temperature", after("contrastive_dynamics.train"),
        parameters="contrastive_dynamics.temperature=0.2"),
    Row("training.devices, loggers, checkpoint_seconds", set(),
        parameters=f"{TRAINING}.devices=2,{TRAINING}.loggers=mlflow,{TRAINING}.checkpoint_seconds=1"),
    Row("reward.source=success, the first time", after("value_readout.label"),
        parameters="reward.source=success"),
    Row("value_readout.references", after("value_readout.read_out"),
        parameters="value_readout.references=50"),
    Row("value_report.compared_transitions", after("value_readout.evaluate"),
        parameters="value_report.compared_transitions=30"),
    Row("policy_extraction.beta", after("policy_extraction.train_cvl"),
        parameters="policy_extraction.beta=1.0"),
    Row("policy_extraction.objective", after("policy_extraction.train_cvl"),
        parameters="policy_extraction.objective=ddpg_bc"),
    Row("policy_extraction.training.steps", POLICIES, parameters="policy_extraction.training.steps=40"),
    Row("baselines.bc.hidden", after("policy_extraction.train_bc"), parameters="baselines.bc.hidden=16 16"),
    Row("evaluation.episodes", ROLLOUTS, parameters="evaluation.episodes=5"),
    Row("evaluation.confidence", after("evaluation.summarise"), parameters="evaluation.confidence=0.9"),
    Row("evaluation.workers", set(), parameters="evaluation.workers=1"),
    # Code.
    Row("a comment in training/fit.py", set(), append("training/fit.py", "\n# A remark.\n")),
    Row("a docstring in objectives/training.py", set(),
        replace_docstring("objectives/training.py")),
    Row("line breaks in environments/collection.py", set(),
        edit("environments/collection.py", "from __future__ import annotations\n",
             "from __future__ import (\n    annotations,\n)\n")),
    Row("episodes/validation.py", ALL, append("episodes/validation.py")),
    Row("environments/collection.py", ALL, append("environments/collection.py")),
    Row("sources/files.py, not the chosen source", set(), append("sources/files.py")),
    Row("dynamics/losses.py", after("contrastive_dynamics.train"), append("dynamics/losses.py")),
    Row("networks/critic.py", after("contrastive_dynamics.train"), append("networks/critic.py")),
    Row("networks/actor.py", POLICIES, append("networks/actor.py")),
    Row("training/fit.py", TRAININGS, append("training/fit.py")),
    Row("readout/rewards.py", after("value_readout.label"), append("readout/rewards.py")),
    Row("readout/build.py", after("value_readout.read_out"), append("readout/build.py")),
    Row("readout/regression.py", after("value_readout.read_out"), append("readout/regression.py")),
    Row("readout/diagnostics.py", after("value_readout.evaluate"), append("readout/diagnostics.py")),
    Row("objectives/advantages.py", after("policy_extraction.train_cvl"), append("objectives/advantages.py")),
    Row("objectives/ddpg_bc.py, not the chosen objective", set(), append("objectives/ddpg_bc.py")),
    Row("methods/bc.py", after("policy_extraction.train_bc"), append("methods/bc.py")),
    Row("environments/evaluation.py", ROLLOUTS, append("environments/evaluation.py")),
    Row("reports/summary.py", after("evaluation.summarise"), append("reports/summary.py")),
    Row("one node's function, contrastive_dynamics.report", {"contrastive_dynamics.report"},
        edit("kedro/pipelines/contrastive_dynamics/nodes.py", "history.iloc[-1]", "history.iloc[-1 + 0]")),
    Row("one function of api.py, read_out", after("value_readout.read_out"),
        edit("api.py", "    return build_readout(critic,", "    return 0 or build_readout(critic,")),
    Row("reports/plots.py", PLOTS, append("reports/plots.py")),
    Row("kedro/hooks.py", set(), append("kedro/hooks.py")),
    # Packages.
    Row("the version of torch", ALL, package("torch")),
    Row("the version of lightning", TRAININGS, package("lightning")),
    Row("the version of mujoco", ALL, package("mujoco")),
    Row("the version of scipy", after("value_readout.evaluate", "evaluation.summarise"), package("scipy")),
    Row("the version of matplotlib", PLOTS, package("matplotlib")),
    Row("the version of kedro", set(), package("kedro")),
    # Artifacts.
    Row("transitions deleted", ALL, delete("transitions")),
    Row("rewards damaged", ALL, damage("rewards")),
    Row("labels damaged", after("value_readout.label"), damage("labels")),
    Row("critic deleted", after("contrastive_dynamics.train"), delete("critic")),
    Row("cvl_policy replaced by bc_policy", after("policy_extraction.train_cvl"),
        replace("cvl_policy", "bc_policy")),
    Row("bc_history deleted, not bc_policy", after("policy_extraction.train_bc"), delete("bc_history")),
    Row("metrics edited", after("evaluation.summarise"), damage("metrics")),
    Row("value_plot deleted", {"value_readout.plot"}, delete("value_plot")),
    Row("critic touched, its bytes the same", set(), touch("critic")),
    Row("record of values deleted", after("value_readout.evaluate"),
        lambda project: record(project, "values").unlink()),
    Row("record of split cut short", after("data_ingestion.split"),
        lambda project: os.truncate(record(project, "split"), 100)),
]  # fmt: skip


PLANNED = {
    "the version of scipy", "labels damaged", "bc_history deleted, not bc_policy",
    "one function of api.py, read_out",
}  # fmt: skip
"""Changes for which only the plan is checked. Slow tests run the nodes after every change."""
PLANNED_TOGETHER = {
    "training.devices, loggers, checkpoint_seconds", "a comment in training/fit.py",
    "objectives/ddpg_bc.py, not the chosen objective",
}  # fmt: skip
"""Changes without effect, whose plan is checked at once."""
RUN = "evaluation.confidence"


def test_the_page_has_exactly_this_table() -> None:
    page = (PROJECT / "docs/artifacts.md").read_text()
    _, _, lines = page.partition("| change | nodes that run | count |\n|---|---|---|\n")
    assert lines.partition("\n\n")[0].splitlines() == [
        f"| {row.what} | {described(row.nodes)} | {len(row.nodes)} |" for row in ROWS
    ]
    assert f"A finished smoke run has {len(WHOLE.nodes)} nodes." in page


@pytest.mark.parametrize("row", [row for row in ROWS if row.what in PLANNED], ids=lambda row: row.what)
def test_exactly_the_stale_artifacts_are_recreated(kedro: Forks, scratch: Project, row: Row) -> None:
    row.act(scratch)
    parameters = ("--params", row.parameters) if row.parameters else ()
    assert kedro.plan(scratch, *parameters) == row.nodes


def test_changes_without_effect_recreate_nothing(kedro: Forks, scratch: Project) -> None:
    rows = [row for row in ROWS if row.what in PLANNED_TOGETHER]
    assert len(rows) == len(PLANNED_TOGETHER)
    for row in rows:
        row.act(scratch)
    parameters = ",".join(row.parameters for row in rows if row.parameters)
    assert kedro.plan(scratch, "--params", parameters) == set()


@pytest.mark.parametrize(
    "row",
    [pytest.param(row, id=row.what, marks=[] if row.what == RUN else pytest.mark.slow) for row in ROWS],
)
def test_afterwards_all_artifacts_are_fresh(kedro: Forks, scratch: Project, row: Row) -> None:
    before = scratch.fingerprints()
    row.act(scratch)
    parameters = ("--params", row.parameters) if row.parameters else ()
    assert kedro.run(scratch, *REUSE, *parameters) == row.nodes
    assert kedro.plan(scratch, *parameters) == set()
    output = kedro.kedro(scratch, "artifacts", "status", *parameters)
    assert "30 artifacts: 30 fresh" in output
    if not row.parameters and not row.what.startswith(("the version", "one node")) and ".py" not in row.what:
        assert scratch.fingerprints() == before  # the same inputs give the same bytes, including records


def test_another_baseline_runs_its_own_nodes_and_the_comparison(kedro: Forks, scratch: Project) -> None:
    comparison = {
        "policy_extraction.plot", "evaluation.summarise", "evaluation.plot", "evaluation.write_page",
    }  # fmt: skip
    of_iql = {"policy_extraction.train_iql", "evaluation.roll_out_iql", "evaluation.score_iql"}
    assert kedro.plan(scratch, "--params", "baselines.iql.method=iql") == of_iql | comparison
    assert kedro.plan(scratch, "--params", "baselines.bc=null") == comparison


@pytest.mark.slow
def test_a_stage_run_by_hand_with_other_parameters_makes_later_artifacts_stale(
    kedro: Forks, scratch: Project
) -> None:
    other = ("--params", "contrastive_dynamics.temperature=0.2")
    output = kedro.kedro(scratch, "run", "--nodes", "contrastive_dynamics.train", *other)
    assert "Stale now" in output
    assert "readout" in output
    assert kedro.plan(scratch) == after("contrastive_dynamics.train")
    assert kedro.plan(scratch, *other) == after("contrastive_dynamics.train") - {"contrastive_dynamics.train"}
    # A part of the pipeline uses stale inputs unchanged, and reports them.
    output = kedro.kedro(scratch, "run", "--pipelines", "value_readout")
    assert "critic is stale (parameter contrastive_dynamics.temperature), but the run uses it" in output
    assert kedro.plan(scratch, "--pipelines", "value_readout") == set()
    status = kedro.kedro(scratch, "artifacts", "status", "--pipelines", "value_readout")
    assert re.search(r"readout +│ stale +│ input critic is stale", status)


@pytest.mark.parametrize("number", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_artifacts_without_their_record_are_not_trusted(kedro: Forks, scratch: Project, number: int) -> None:
    """The run is killed before the first record of two outputs, or between the two."""
    other = ("--params", "contrastive_dynamics.temperature=0.2")
    kedro.kedro(
        scratch, "run", "--nodes", "contrastive_dynamics.train", *other, status=137, die_at_record=[number]
    )
    for parameters in ((), other):
        assert kedro.plan(scratch, *parameters) == after("contrastive_dynamics.train")


@pytest.mark.slow
def test_the_content_of_a_log_counts(kedro: Forks, scratch: Project) -> None:
    def write(folder: str, first: float) -> tuple[str, str]:
        path = scratch.root / folder / "log.csv"
        path.parent.mkdir(exist_ok=True)
        rows = [f"{first if n == 0 else n},0.5,{n},{int(n % 5 == 4)},0" for n in range(20)]
        path.write_text("\n".join(["observations,actions,rewards,terminated,truncated", *rows]))
        return "--params", f"dataset.source=files,dataset.path={folder}/log.csv,dataset.name=log"

    stage = ("--pipelines", "data_ingestion")
    here = write("here", 0.0)
    kedro.kedro(scratch, *REUSE, *stage, *here)
    assert kedro.plan(scratch, *stage, *here) == set()
    assert kedro.plan(scratch, *stage, *write("there", 0.0)) == set()
    write("here", 0.25)
    assert kedro.plan(scratch, *stage, *here) == {
        node.name for node in register_stages()["data_ingestion"].nodes
    }
    (scratch.root / "here/log.csv").unlink()
    status = kedro.kedro(scratch, "artifacts", "status", *stage, *here)
    assert re.search(r"transitions +│ stale +│ source dataset.path changed", status)


@pytest.mark.slow
def test_the_code_of_a_users_reward_counts(kedro: Forks, scratch: Project) -> None:
    path = scratch.root / "src/my_rewards.py"
    lines = ["def low(observations, actions, next_observations):", "    return -next_observations[:, 2]"]
    path.write_text("\n".join(lines))
    label = ("--nodes", "value_readout.label", "--params", "reward.source=my_rewards:low")
    kedro.kedro(scratch, *REUSE, *label)
    path.write_text("# A remark.\n" + "\n".join(lines))
    assert kedro.plan(scratch, *label) == set()
    path.write_text("\n".join(lines).replace("2]", "1]"))
    assert kedro.plan(scratch, *label) == {"value_readout.label"}


def test_status_explains_every_change(kedro: Forks, scratch: Project) -> None:
    append("dynamics/losses.py")(scratch)
    package("lightning")(scratch)
    delete("episodes")(scratch)
    damage("labels")(scratch)
    other = ("--params", "contrastive_dynamics.temperature=0.2")
    before = scratch.fingerprints()
    status = kedro.kedro(scratch, "artifacts", "status", *other)
    reasons = dict(re.findall(r"│ (\w+) +│ \w+ +│ (.*?) +│", status))
    assert reasons["critic"] == "parameter contrastive_dynamics.temperature and 2 more"
    assert reasons["readout"] == "input critic is stale and 1 more"
    assert re.search(r"labels +│ damaged +│ its content differs from the record", status)
    assert re.search(r"episodes +│ missing", status)
    assert re.search(r"transitions +│ fresh", status)
    command = "kedro run --only-missing-outputs --env smoke --params contrastive_dynamics.temperature=0.2"
    assert f"To recreate the others: {command}" in status
    explained = kedro.kedro(scratch, "artifacts", "status", "--explain", *other)
    for text in (
        "parameter contrastive_dynamics.temperature: 0.1 -> 0.2",
        "code of cvl_pipeline.dynamics.losses changed",
        "package lightning: ",
        "-> 99.0",
        "input labels is damaged",
    ):
        assert text in explained
    assert scratch.fingerprints() == before


@pytest.mark.slow
def test_a_runner_that_cannot_write_records_is_refused(kedro: Forks, scratch: Project) -> None:
    output = kedro.kedro(scratch, "run", "--runner", "ParallelRunner", status=1)
    assert output.startswith("Error: ParallelRunner is not supported")
    threads = kedro.run(scratch, "run", "--runner", "ThreadRunner", "--pipelines", "value_readout")
    assert len(threads) == 5
    assert kedro.plan(scratch) == set()


def test_only_one_run_at_a_time_may_use_a_dataset_and_seed(kedro: Forks, scratch: Project) -> None:
    lock = scratch.root / "data/.locks/reach-v3-smoke/seed_0.lock"
    with lock_holder(lock) as holder:
        before = scratch.fingerprints()
        output = kedro.kedro(scratch, "run", status=1)
        assert output.startswith("Error: data of dataset 'reach-v3-smoke', seed 0, is in use by another run")
        assert f"process {holder.pid} on" in output
        assert scratch.fingerprints() == before
        # Other seeds and read-only commands continue to work.
        assert "30 fresh" in kedro.kedro(scratch, "artifacts", "status")
        assert kedro.plan(scratch, "--params", "seed=1") == ALL
    assert kedro.run(scratch, "run", "--nodes", "data_ingestion.split") == {"data_ingestion.split"}
