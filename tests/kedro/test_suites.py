"""Suites on Kedro: plans, the work of a worker and the commands, without a cluster; the runs are fakes."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from kedro.framework.project import configure_project

from cvl_pipeline.errors import InputError
from cvl_pipeline.io.owner import owner
from cvl_pipeline.kedro import suites
from cvl_pipeline.kedro.cli import cli
from cvl_pipeline.reports.html import video_address
from cvl_pipeline.suites.plan import Plan
from cvl_pipeline.suites.run import State
from tests.project import copy_settings
from tests.reports.pages import Page
from tests.suites import fakes

SUITE = "tasks: [reach-v3, push-v3]\nmethods: [[cvl, bc], [iql]]\nevaluation_episodes: 4\n"


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "project"
    root.mkdir()
    copy_settings(root)
    (root / "conf/suites/mine.yml").write_text(SUITE)
    monkeypatch.chdir(root)
    configure_project("cvl_pipeline.kedro")
    (tmp_path / "fakes").mkdir()
    monkeypatch.setenv("FAKES", str(tmp_path / "fakes"))
    monkeypatch.setattr(suites, "KEDRO", fakes.FAKE)
    monkeypatch.setattr(suites, "work", fakes.real_work)  # fakes.run replaces it for good
    return root


@pytest.fixture
def plan() -> Plan:
    return suites.make_plan("mine")


def command(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli, ["suite", *arguments])
    return result.exit_code, result.output


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--tasks", "reach-v33"], "conf/suites/mine.yml, reach-v33: "),
        (["--params", "dataset.episode=3"], "unknown field 'dataset.episode': did you mean 'episodes'?"),
        (["--methods", "cvl,bcc"], "unknown method 'bcc': did you mean bc"),
        (["--presets", "mix"], "unknown preset 'mix'"),
        (["--seeds", "a"], "'seeds"),
        (["--scheduler", "tcp://127.0.0.1"], "no Dask scheduler answers at 'tcp://127.0.0.1'"),
    ],
)
def test_a_faulty_option_is_one_line_before_anything_runs(
    options: list[str], words: str, project: Path
) -> None:
    if "--scheduler" in options:
        pytest.importorskip("distributed")
    status, output = command("run", "mine", *options)
    assert status == 1
    assert output.startswith("Error: ")
    assert words in output
    assert output.count("\n") == 1
    assert not list(project.glob("data/suites/*/*_x1"))


def test_a_dataset_with_the_name_of_a_preset_is_checked_too(project: Path) -> None:
    (project / "conf/suites/mine.yml").write_text(
        "datasets: {a: {dataset.source: pointmaze}, logged: {dataset.source: pointmaze, dataset.epsiodes: 5}}\n"
    )
    with pytest.raises(
        InputError, match=r"mine\.yml, logged: .*'dataset\.epsiodes': did you mean 'episodes'"
    ):
        suites.check_plan(suites.make_plan("mine"))


def test_two_suites_on_the_same_data_have_a_state_and_a_lock_each(project: Path) -> None:
    (project / "conf/suites/other.yml").write_text(SUITE)
    plans = [suites.make_plan(name, data_root=str(project / "data/both")) for name in ("mine", "other")]
    assert len({suites.state_path(plan) for plan in plans}) == 2
    with (
        suites.hold(suites.own_lock(plans[0]), "suite mine"),
        suites.hold(suites.own_lock(plans[1]), "other"),
    ):
        pass


def test_the_data_is_below_the_data_root_unless_the_file_says_otherwise(project: Path) -> None:
    assert suites.make_plan("mine").root == str(project / "data/suites/mine")
    elsewhere = suites.make_plan("mine", params={"data": {"root": "s3://lab/me", "credentials": "lab"}})
    assert (elsewhere.root, elsewhere.records) == (
        "s3://lab/me/suites/mine",
        "s3://lab/me/suites/mine/records",
    )
    rivals = suites.make_plan("rivals")
    assert rivals.records == str(project / "benchmarks/results/rivals")
    with pytest.raises(InputError, match="--delete-data: the data is at a URL"):
        suites.make_plan("mine", keep=False, data_root="s3://lab/x")


def test_the_overrides_say_where_the_data_is(project: Path) -> None:
    with (project / "conf/suites/mine.yml").open("a") as file:
        file.write("overrides: {data.root: s3://lab/me, data.credentials: lab, data.cache: /copies}\n")
    (project / "conf/local/credentials.yml").write_text("lab: {key: a}\n")
    plan = suites.make_plan("mine")
    assert plan.root == "s3://lab/me/suites/mine"
    place = suites.locate(plan, f"{plan.root}/x")
    assert (place.options, str(place.path).startswith("/copies/")) == ({"key": "a"}, True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--params", "seed=5"], "--params: 'seed' is 5: each cell has its own; use --seeds"),
        (
            ["--params", "dataset.task=push-v3"],
            "'dataset.task' is 'push-v3': each cell has its own; use --tasks",
        ),
    ],
)
def test_params_cannot_make_another_cell_of_a_cell(options: list[str], words: str) -> None:
    for name in ("run", "status", "report", "cancel"):
        assert words in command(name, "mine", *options)[1]


def test_the_environment_variable_of_kedro_is_part_of_the_plan(
    monkeypatch: pytest.MonkeyPatch, project: Path
) -> None:
    base = suites.make_plan("mine")
    monkeypatch.setenv("KEDRO_ENV", "smoke")
    plan = suites.make_plan("mine")
    assert (base.suite.env, plan.suite.env) == (None, "smoke")
    assert plan.steps != base.steps, "those of conf/smoke"
    assert "--env smoke" in " ".join(plan.command(plan.cells()[0], plan.methods))
    assert suites.make_plan("mine", env="pointmaze").suite.env == "pointmaze"
    monkeypatch.setattr(suites, "KEDRO", ("sh", "-c", "echo $KEDRO_ENV.; exit 1"))
    assert suites.work(base, base.units()[0], "", {}).text.endswith(": .")


def test_a_unit_writes_the_record_and_is_not_run_again(plan: Plan, tmp_path: Path) -> None:
    first, _, second, _ = plan.units()
    outcome = suites.work(plan, first, "", {})
    assert (outcome.state, outcome.text) == ("done", "cvl 1.00, bc 0.25")
    assert suites.work(plan, first, "", {}).text == "cvl 1.00, bc 0.25; by another run"
    assert suites.work(plan, second, "", {}).state == "done"
    (record,) = suites.read_records(plan)
    assert {name: values["run"] for name, values in record["methods"].items()} == {
        "cvl": 0,
        "bc": 0,
        "iql": 1,
    }
    assert record["runs"][0]["seconds"]["contrastive_dynamics.train"] == 20.5
    assert (record["runs"][0]["threads"], record["runs"][0]["interrupted"]) == (1, False)
    assert str(tmp_path) not in str(record), "no path of this machine"
    given = [call.parameters for call in fakes.calls(tmp_path / "fakes") if call.event == "start"]
    assert [call.get("baselines.bc") for call in given] == [None, "null"]


def test_the_page_has_the_videos_of_the_first_seed(project: Path) -> None:
    with (project / "conf/suites/mine.yml").open("a") as file:
        file.write("seeds: [3, 4]\nvideos: {size: 64}\n")
    plan = suites.make_plan("mine", keep=False)
    for unit in plan.units():
        assert suites.work(plan, unit, "", {}).state == "done"
    assert not list((project / "data/suites/mine").glob("*_x1")), "the page needs no data of the cells"
    folder = project / "data/suites/mine/records"
    films = {path.name: path.read_bytes() for path in folder.glob("videos/*.mp4")}
    names = {f"{task}_mixed_seed3_x1_{method}" for task in plan.tasks for method in plan.methods}
    assert set(films) == {f"{name}.mp4" for name in names}
    assert films["push-v3_mixed_seed3_x1_iql.mp4"] == b"film of iql"
    assert command("report", "mine")[0] == 0
    page = Page((folder / "report.html").read_text())
    for method in plan.methods:
        assert page.addresses.count(video_address(f"film of {method}".encode())) == 2, "one for each task"
    (folder / "videos/reach-v3_mixed_seed3_x1_bc.mp4").unlink()
    command("report", "mine")
    page = Page((folder / "report.html").read_text())
    assert page.addresses.count(video_address(b"film of bc")) == 1
    assert "Missing beside the records: videos/reach-v3_mixed_seed3_x1_bc.mp4." in page.text


def test_a_suite_whose_videos_cannot_be_rendered_says_so_and_has_a_page(
    project: Path, tmp_path: Path
) -> None:
    with (project / "conf/suites/mine.yml").open("a") as file:
        file.write("videos: {}\n")
    (tmp_path / "fakes/no_gl").touch()
    plan = suites.make_plan("mine")
    outcomes = [suites.work(plan, unit, "", {}) for unit in plan.units()]
    assert [outcome.state for outcome in outcomes] == ["done"] * 4
    log = "data/suites/mine/reach-v3_mixed_seed0_x1/run.log"
    assert outcomes[0].text == f"cvl 1.00, bc 0.25; no videos of cvl, bc, {log} says why"
    assert command("report", "mine")[0] == 0
    page = (project / "data/suites/mine/records/report.html").read_text()
    assert "<video" not in page
    assert 'href="#videos"' not in page


def test_a_failed_unit_has_no_record_and_its_next_run_was_interrupted(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "fakes/reach-v3").write_text("fail")
    outcome = suites.work(plan, plan.units()[0], "", {})
    assert outcome.state == "failed"
    assert (
        "status 1, data/suites/mine/reach-v3_mixed_seed0_x1/run.log: Error: the disk is full" in outcome.text
    )
    assert suites.read_records(plan) == []
    (tmp_path / "fakes/reach-v3").unlink()
    assert suites.work(plan, plan.units()[0], "", {}).state == "done"
    assert suites.read_records(plan)[0]["runs"][0]["interrupted"], "its times are those of a part"


def test_a_unit_that_another_run_works_on_is_busy(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit = plan.units()[0]
    with suites.hold(suites.lock_location(plan, unit.cell.name), "x"):
        assert suites.work(plan, unit, "", {}).state == "busy"
    # A run that outlives its worker holds the lock of its data.
    message = "Error: data of dataset 'reach-v3', seed 0, is in use by another run (process 1)"
    monkeypatch.setattr(suites, "KEDRO", ("sh", "-c", f'echo "{message}"; exit 1'))
    assert suites.work(plan, unit, "", {}).state == "busy"


def test_units_of_a_session_can_be_stopped(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "fakes/reach-v3").write_text("hold")
    outcomes: list[Any] = []
    unit = plan.units()[0]
    thread = threading.Thread(target=lambda: outcomes.append(suites.work(plan, unit, "stopped", {})))
    thread.start()
    while not fakes.calls(tmp_path / "fakes"):
        time.sleep(0.05)
    suites.stop("other")
    thread.join(0.5)
    assert thread.is_alive()
    suites.stop("stopped")
    thread.join(60.0)
    assert outcomes[0].state == "stopped"
    assert suites.work(plan, plan.units()[1], "stopped", {}).state == "stopped"


def test_the_data_of_a_complete_cell_is_deleted_on_request(plan: Plan, project: Path) -> None:
    first, _, second, _ = plan.units()
    plan = replace(plan, keep=False)
    folder = project / "data/suites/mine/reach-v3_mixed_seed0_x1"
    suites.work(plan, first, "", {})
    assert folder.exists(), "iql is missing"
    suites.work(plan, second, "", {})
    assert not folder.exists()
    assert len(suites.read_records(plan)) == 1


def test_a_run_has_the_variables_of_its_worker(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, project: Path
) -> None:
    monkeypatch.setenv("MKL_NUM_THREADS", "1")
    text = "echo $CUDA_VISIBLE_DEVICES $OMP_NUM_THREADS $MKL_NUM_THREADS.; exit 1"
    monkeypatch.setattr(suites, "KEDRO", ("sh", "-c", text))
    outcome = suites.work(replace(plan, threads=4), plan.units()[0], "", {"CUDA_VISIBLE_DEVICES": "3"})
    assert outcome.text.endswith(": 3 2 .")


def test_status_report_and_cancel(plan: Plan, project: Path) -> None:
    assert command("report", "mine")[1].startswith(
        "Error: suite mine has no records in data/suites/mine/records"
    )
    assert command("cancel", "mine")[1] == "Error: suite mine does not run on this machine\n"
    suites.work(plan, plan.units()[0], "", {})
    State(4, 0, owner={**owner(), "started": 0.0}, running={"push-v3_mixed_seed0_x1": 0.0}).write(
        suites.state_path(plan)
    )
    status, output = command("status", "mine")
    assert output.splitlines()[0] == "mine: 1 of 4 units done, 0 running, 0 failed, 3 to do", (
        "its process is dead"
    )
    status, output = command("report", "mine", "--methods", "cvl,bc", "--tasks", "reach-v3")
    assert status == 0, output
    assert "| cvl | 1.00 [1.00, 1.00] | 0.00 [0.00, 0.00] |" in output
    assert (project / "data/suites/mine/records/results.parquet").exists()
    State(4, 0, owner={**owner(), "host": "elsewhere"}).write(suites.state_path(plan))
    assert "runs on elsewhere: cancel it there" in command("cancel", "mine")[1]


def test_failed_units_end_the_command_with_status_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suites, "run_command", lambda **_: ["push-v3_mixed_seed0_x1"])
    status, output = command("run", "mine")
    assert status == 1
    assert output.startswith(
        "Error: 1 units failed (push-v3_mixed_seed0_x1); the same command tries them again"
    )


def test_a_suite_runs_once_on_a_machine(plan: Plan) -> None:
    with suites.hold(suites.own_lock(plan), "suite mine"):
        status, output = command("run", "mine")
    assert status == 1
    assert f"suite mine is in use by another run (process {os.getpid()}" in output
