"""The table of rivals, without running the pipeline."""

from __future__ import annotations

import json
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from threading import Thread, main_thread
from typing import Any

import pandas as pd
import pytest
import yaml
from benchmarks.rivals import Cell, Plan, Runner, cells, given_parameters, known_methods, read_log

from benchmarks import rivals
from cvl_pipeline.errors import InputError
from cvl_pipeline.schema import nested
from tests.benchmarks import fake_kedro
from tests.kedro.sessions import make_loader

CELL = Cell(10, "mixed", "reach-v3")


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return Plan(
        methods=("cvl", "bc", "iql"), variants={}, episodes=4, env=None, given={}, threads=1,
        records=tmp_path / "records", data=tmp_path / "data", keep=True,
    )  # fmt: skip


@pytest.fixture
def _fake(monkeypatch: pytest.MonkeyPatch) -> None:
    def command(*arguments: str, params: str) -> list[str]:
        return [sys.executable, str(fake_kedro.__file__), params]

    monkeypatch.setattr(rivals, "kedro_command", command)
    monkeypatch.setattr(rivals, "commit", lambda: "abc")


def record_of(plan: Plan, cell: Cell = CELL) -> dict[str, Any]:
    record = plan.record(cell)
    assert record is not None
    return record


def calls(plan: Plan, cell: Cell) -> list[dict[str, str]]:
    """Parameters of every run of a cell."""
    lines = (plan.data / cell.name / "calls.txt").read_text().splitlines()
    return [dict(part.split("=") for part in line.split(",")) for line in lines]


def test_the_protocol_names_disjoint_tasks_and_seeds() -> None:
    protocol = yaml.safe_load(rivals.PROTOCOL.read_text())
    tuning, test = protocol["sets"]["tuning"], protocol["sets"]["test"]
    assert not set(tuning["tasks"]) & set(test["tasks"])
    assert not set(tuning["seeds"]) & set(test["seeds"])
    assert (
        test["presets"]
        == tuning["presets"]
        == ["mixed", "noisy", "fragments", "play", "sparse", "expert_few"]
    )
    assert (len(protocol["methods"]), protocol["evaluation_episodes"]) == (12, 50)


def test_all_presets_and_tasks_of_a_seed_come_before_the_next_seed() -> None:
    listed = [cell.name for cell in cells([11, 10], ["sparse", "mixed"], ["a", "b"], budget=10)]
    assert listed[:3] == ["a_sparse_seed11_x10", "b_sparse_seed11_x10", "a_mixed_seed11_x10"]
    assert len(listed) == len(set(listed)) == 8


def test_methods_that_do_not_exist_yet_are_left_out_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert known_methods(None, ["cvl", "bc", "not_yet", "iql"], {}) == ("cvl", "bc", "iql")
    assert capsys.readouterr().out == "not in this version: not_yet\n"
    assert known_methods(["iql"], ["cvl", "bc"], {}) == ("cvl", "iql")
    with pytest.raises(InputError, match="unknown method 'not_yet'"):
        known_methods(["not_yet"], ["cvl"], {})


@pytest.mark.parametrize("budget", [1, 10])
def test_every_method_takes_the_steps_of_critic_regression_and_policy(plan: Plan, budget: int) -> None:
    cell = replace(CELL, budget=budget)
    given = nested(plan.settings(cell) | plan.baselines(cell, plan.methods))
    parameters = make_loader(**given).run_parameters()
    total = budget * (3000 + 2500 + 2000)
    assert {name: chosen.training.steps for name, chosen in parameters.baselines.items()} == {
        "bc": total, "iql": total,
    }  # fmt: skip
    regression = parameters.value_readout.regression
    assert regression is not None
    own = parameters.contrastive_dynamics.training.steps + parameters.policy_extraction.training.steps
    assert own + regression.all_steps == total
    assert parameters.evaluation.episodes == 4


def test_without_regression_the_steps_are_those_of_critic_and_policy(plan: Plan) -> None:
    plan = replace(plan, given=given_parameters("value_readout.regression=null"))
    assert plan.baselines(CELL, ["iql"])["baselines.iql.training.steps"] == 5000


def test_the_command_of_a_cell(plan: Plan) -> None:
    plan = replace(plan, env="smoke", given=given_parameters("dataset.episodes=9,baselines.iql.beta=1.5"))
    command = plan.command(replace(CELL, preset="sparse"), ["cvl", "iql"])
    assert command[1:-1] == [
        "run", "--only-missing-outputs", "--env", "smoke", "--runner", "SequentialRunner", "--params",
    ]  # fmt: skip
    params = dict(part.split("=") for part in command[-1].split(","))
    assert params["dataset.preset"] == "sparse"
    assert params["baselines.bc"] == "null", "conf/base has it"
    assert params["baselines.iql.method"] == "iql"
    assert params["baselines.iql.beta"] == "1.5"
    assert params["dataset.episodes"] == "9"
    assert params["data.root"] == str(plan.data / "reach-v3_sparse_seed10_x1")
    assert params["data_ingestion.workers"] == params["evaluation.workers"] == "1"
    two = replace(plan, threads=2).command(CELL, ["cvl", "bc"])
    assert "--runner" not in two
    assert "dataset.preset" not in two[-1], "mixed is the default of every source"
    assert "baselines.bc=null" not in two[-1]


def test_a_faulty_parameter_is_reported_before_anything_runs(plan: Plan) -> None:
    plan.check(CELL)
    with pytest.raises(InputError, match="dataset"):
        replace(plan, given={"dataset.episode": 3}).check(CELL)


def test_seconds_of_nodes_are_those_of_the_last_run() -> None:
    run = "12:00:00 INFO     3/9 a.b -> c, d ({} s)   \n         INFO     4/9 e.f -> g ({} s, beside)\n"
    whole = f"# start now kedro run\n{run.format(1.5, 20.0)}# finished\n"
    assert read_log(whole) == ({"a.b": 1.5, "e.f": 20.0}, False)
    assert read_log(whole + "# start\nx 1/1 a.b -> c (2.5 s)\n# finished\n") == (
        {"a.b": 2.5, "e.f": 20.0},
        False,
    )
    assert read_log("# start\n" + whole) == ({"a.b": 1.5, "e.f": 20.0}, True)


@pytest.mark.usefixtures("_fake")
def test_a_finished_cell_has_a_record_and_is_not_run_again(plan: Plan) -> None:
    assert Runner(plan).run([CELL], jobs=1) == []
    assert plan.missing(CELL) == []
    record = record_of(plan)
    assert plan.record_path(CELL).read_text().count("\n") == 1
    assert [file.name for file in plan.records.iterdir()] == ["reach-v3_mixed_seed10_x1.json"]
    assert record["methods"]["iql"] == {"run": 0, "success": [1, 1, 0, 0], "returns": [1.23457] * 4}
    assert record["behaviour"] == 0.25
    assert record["settings"]["dataset.task"] == "reach-v3"
    (run,) = record["runs"]
    assert (run["commit"], run["threads"], run["interrupted"]) == ("abc", 1, False)
    assert run["seconds"]["contrastive_dynamics.train"] == 20.5
    assert run["seconds"]["policy_extraction.train_bc"] == 3.2
    assert str(plan.data) not in json.dumps(record), "no path of this machine"


@pytest.mark.usefixtures("_fake")
def test_a_method_is_added_to_a_record_and_the_others_stay(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    Runner(replace(plan, methods=("cvl", "bc"))).run([CELL], jobs=1)
    assert plan.missing(CELL) == ["iql"]
    monkeypatch.setattr(rivals, "commit", lambda: "def")
    Runner(plan).run([CELL], jobs=1)
    record = record_of(plan)
    assert {name: values["run"] for name, values in record["methods"].items()} == {
        "cvl": 0,
        "bc": 0,
        "iql": 1,
    }
    assert [run["commit"] for run in record["runs"]] == ["abc", "def"]
    assert [call.get("baselines.bc") for call in calls(plan, CELL)] == [None, "null"]
    assert not record["runs"][1]["interrupted"]


@pytest.mark.usefixtures("_fake")
def test_a_record_of_other_settings_is_refused(plan: Plan) -> None:
    Runner(plan).run([CELL], jobs=1)
    with pytest.raises(InputError, match=r"other settings \(evaluation\.episodes\); delete it"):
        replace(plan, episodes=50).missing(CELL)
    with pytest.raises(InputError, match=r"other settings \(dataset\.episodes\)"):
        replace(plan, given={"dataset.episodes": 9}).record(CELL)


@pytest.mark.usefixtures("_fake")
def test_a_failed_cell_has_no_record_and_the_others_go_on(
    plan: Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    todo = cells([1], ["mixed"], ["fails-v3", "once-v3", "push-v3"], budget=1)
    assert sorted(Runner(plan).run(todo, jobs=2)) == sorted(todo[:2])
    assert [plan.record(cell) is None for cell in todo] == [True, True, False]
    assert "fails-v3_mixed_seed1_x1: failed: status 1, " in (output := capsys.readouterr().out)
    assert "run.log: Error: the disk is full" in output
    assert Runner(plan).run([todo[1]], jobs=1) == []
    assert record_of(plan, todo[1])["runs"][0]["interrupted"], "its times are those of a part"


@pytest.mark.usefixtures("_fake")
def test_an_interrupted_table_ends_its_runs_and_begins_no_other(plan: Plan) -> None:
    slow, later = replace(CELL, task="slow-v3"), CELL

    def interrupt() -> None:
        while not (plan.data / slow.name / "calls.txt").exists():
            time.sleep(0.05)
        signal.pthread_kill(main_thread().ident or 0, signal.SIGINT)

    start = time.monotonic()
    Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        Runner(plan).run([slow, later], jobs=1)
    assert time.monotonic() - start < 200.0, "the run would take longer"
    assert not (plan.data / later.name).exists()
    assert plan.record(slow) is None
    assert read_log((plan.data / slow.name / "run.log").read_text() + "# start")[1]


@pytest.mark.usefixtures("_fake")
def test_data_of_a_finished_cell_is_deleted_only_on_request(plan: Plan) -> None:
    failing = replace(CELL, task="fails-v3")
    Runner(replace(plan, keep=False)).run([CELL, failing], jobs=1)
    assert [folder.name for folder in plan.data.iterdir()] == [failing.name]
    kept = replace(CELL, seed=11)
    Runner(plan).run([kept], jobs=1)
    assert (plan.data / kept.name).exists()


@pytest.mark.usefixtures("_fake")
def test_unknown_success_is_an_error(plan: Plan) -> None:
    Runner(plan).run([CELL], jobs=1)
    (path,) = plan.data.glob("**/bc_rollouts.parquet")
    pd.DataFrame({"success": [None], "return": [1.0]}).to_parquet(path)
    with pytest.raises(InputError, match=r"bc_rollouts\.parquet: success is not known"):
        rivals.results(plan.data / CELL.name, plan.methods)


@pytest.mark.usefixtures("_fake")
def test_the_command_runs_what_is_missing_and_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["rivals", "--tasks", "reach-v3", "push-v3", "--presets", "mixed", "--seeds", "1", "2"]
    command += ["--methods", "bc", "iql", "--jobs", "2"]
    command += ["--records", str(tmp_path / "records"), "--data-root", str(tmp_path / "data")]
    monkeypatch.setattr("sys.argv", [*command, "--report"])
    rivals.main()
    assert capsys.readouterr().out == "no records\n"
    monkeypatch.setattr("sys.argv", command)
    rivals.main()
    assert "0 of 4 cells are done\n" in (first := capsys.readouterr().out)
    rivals.main()
    assert "4 of 4 cells are done\n" in (second := capsys.readouterr().out)
    table = "| cvl | 1.00 [1.00, 1.00] | 0.00 [0.00, 0.00] |"
    assert table in first
    assert table in second
    report = (tmp_path / "records/report.md").read_text()
    assert table in report
    assert (tmp_path / "records/report.png").stat().st_size > 10_000
    assert all(
        len(calls_of) == 1 for calls_of in (f.read_text().splitlines() for f in tmp_path.rglob("calls.txt"))
    )
