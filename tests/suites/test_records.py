"""Records of finished runs."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from cvl_pipeline.errors import InputError
from cvl_pipeline.io.location import Location
from cvl_pipeline.suites import records
from cvl_pipeline.suites.plan import Plan
from cvl_pipeline.suites.records import (
    commit,
    episodes_of,
    missing_methods,
    read_log,
    read_record,
    shown_command,
    summary,
    write_record,
)
from tests.suites.test_plan import CELL, make_plan

RESULTS: dict[str, dict[str, Any]] = {
    name: {"success": [1, 0], "returns": [1.0, 2.0]} for name in ("cvl", "bc")
}


@pytest.fixture
def location(tmp_path: Path) -> Location:
    return Location(str(tmp_path / "records" / f"{CELL.name}.json"))


def test_a_method_is_added_to_a_record_and_the_others_stay(location: Location) -> None:
    plan = make_plan()
    assert missing_methods(read_record(plan, CELL, location), plan.methods) == ["cvl", "bc", "iql"]
    write_record(plan, CELL, location, RESULTS, 0.25, {"commit": "abc"})
    assert missing_methods(read_record(plan, CELL, location), plan.methods) == ["iql"]
    other = {
        "cvl": {"success": [0, 0], "returns": [0.0, 0.0]},
        "iql": {"success": [1, 1], "returns": [3.0, 3.0]},
    }
    record = write_record(plan, CELL, location, other, 0.5, {"commit": "def"})
    assert json.loads(location.path.read_text()) == record
    assert location.path.read_text().count("\n") == 1
    assert {name: values["run"] for name, values in record["methods"].items()} == {
        "cvl": 0,
        "bc": 0,
        "iql": 1,
    }
    assert record["methods"]["cvl"]["success"] == [1, 0]
    assert record["behaviour"] == 0.25
    assert [run["commit"] for run in record["runs"]] == ["abc", "def"]
    assert summary(record) == "cvl 0.50, bc 0.50, iql 1.00"


def test_a_record_of_other_settings_is_refused_and_so_is_a_damaged_one(location: Location) -> None:
    plan = make_plan()
    write_record(plan, CELL, location, RESULTS, 0.25, {})
    with pytest.raises(InputError, match=r"other settings \(evaluation\.episodes\); delete it"):
        read_record(make_plan(evaluation_episodes=50), CELL, location)
    with pytest.raises(InputError, match=r"other settings \(dataset\.episodes\)"):
        read_record(replace(plan, given={"dataset.episodes": 9}), CELL, location)
    whole = location.path.read_text()
    record = json.loads(whole)
    short = {**record["methods"], "bc": {**record["methods"]["bc"], "returns": [1.0]}}
    faults: tuple[dict[str, Any], ...] = ({"methods": []}, {"runs": []}, {"methods": short}, {"runs": None})
    for text in ("{", *(json.dumps({**record, **fault}) for fault in faults)):
        location.path.write_text(text)
        with pytest.raises(InputError, match="is damaged; delete it"):
            read_record(plan, CELL, location)
    location.path.write_text(whole)
    assert read_record(plan, CELL, location) == record


def test_null_differs_from_the_default(location: Location) -> None:
    write_record(make_plan(), CELL, location, RESULTS, 0.25, {})
    with pytest.raises(InputError, match=r"other settings \(evaluation\.episode_steps\)"):
        read_record(make_plan({"evaluation.episode_steps": None}), CELL, location)


def test_a_record_of_other_settings_of_a_method_is_refused(location: Location) -> None:
    def plan_of(discount: float, own: str = "module:Mine") -> Plan:
        return make_plan(
            methods=["cvl", "iql__near", "mine"], own_methods={"mine": own},
            variants={"iql": {"near": {"discount": discount}}},
        )  # fmt: skip

    results = dict.fromkeys(("cvl", "iql__near", "mine"), RESULTS["cvl"])
    record = write_record(plan_of(0.97), CELL, location, results, 0.25, {})
    assert record["methods"]["cvl"]["settings"] == {}
    assert record["methods"]["iql__near"]["settings"] == {
        "method": "iql",
        "training.steps": 7500,
        "discount": 0.97,
    }
    assert missing_methods(read_record(plan_of(0.97), CELL, location), list(results)) == []
    with pytest.raises(InputError, match=r"other settings \(iql__near: discount\); delete it"):
        read_record(plan_of(0.5), CELL, location)
    with pytest.raises(InputError, match=r"other settings \(mine: method\)"):
        read_record(plan_of(0.97, "module:Other"), CELL, location)
    assert read_record(make_plan(), CELL, location) == record, "the plan does not ask for these methods"
    for values in record["methods"].values():
        del values["settings"]
    location.path.write_text(json.dumps(record))
    assert read_record(plan_of(0.5), CELL, location) == record, "earlier versions did not write them"


def test_seconds_of_nodes_are_those_of_the_last_run() -> None:
    run = "12:00:00 INFO     3/9 a.b -> c, d ({} s)   \n         INFO     4/9 e.f -> g ({} s, beside)\n"
    whole = f"# start now kedro run\n{run.format(1.5, 20.0)}# finished\n"
    assert read_log(whole) == ({"a.b": 1.5, "e.f": 20.0}, False)
    again = whole + "# start\nx 1/1 a.b -> c (2.5 s)\n# finished\n"
    assert read_log(again) == ({"a.b": 2.5, "e.f": 20.0}, False)
    assert read_log("# start\n" + whole) == ({"a.b": 1.5, "e.f": 20.0}, True)


def test_unknown_success_is_null(tmp_path: Path) -> None:
    path = tmp_path / "bc_rollouts.parquet"
    pd.DataFrame({"success": [None, None], "return": [1.23456789, 2.0]}).to_parquet(path)
    assert episodes_of(path) == {"success": [None, None], "returns": [1.23457, 2.0]}
    pd.DataFrame({"success": [True, False], "return": [1.0, 2.0]}).to_parquet(path)
    assert episodes_of(path)["success"] == [1, 0]
    pd.DataFrame({"success": pd.array([True, None], "boolean"), "return": [1.0, 2.0]}).to_parquet(path)
    assert episodes_of(path)["success"] == [1, None]


def test_unknown_success_counts_as_0_in_the_line_of_a_record_if_some_is_known() -> None:
    methods = {
        "cvl": {"success": [1, None], "returns": [4.0, 2.0]},
        "bc": {"success": [None] * 2, "returns": [4.0, 2.0]},
    }
    assert summary({"methods": methods}) == "cvl 0.50, bc 3.0"


def test_a_command_has_no_path_of_this_machine() -> None:
    command = ["kedro", "run", "--params", f"data.root=/home/me/{CELL.name},seed=1"]
    assert shown_command(command, f"/home/me/{CELL.name}", CELL).endswith(
        f"data.root=data/{CELL.name},seed=1"
    )


def test_the_machine_of_a_record_has_the_cores_that_the_run_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    monkeypatch.setattr(records, "available_cores", lambda: 6)
    assert records.machine().startswith("6 cores, ")


def test_a_commit_is_unknown_if_the_code_has_changes(tmp_path: Path) -> None:
    assert commit(tmp_path) is None
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for line in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run([*git, *line], cwd=tmp_path, check=True)
    assert len(commit(tmp_path) or "") == 40
    (tmp_path / "src").mkdir()
    (tmp_path / "src/new.py").touch()
    assert commit(tmp_path) is None
