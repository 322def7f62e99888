from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cvl_pipeline.reports.comparison import BEHAVIOUR, Comparison
from cvl_pipeline.suites.report import (
    CRITIC,
    cost,
    frame,
    improvement_table,
    protocol_lines,
    success_table,
    task_table,
    time_table,
    write_report,
)
from tests.suites.test_plan import make_plan

SEEDS, PRESETS, TASKS = [10, 11], ["mixed", "sparse"], ["push-v3", "reach-v3"]
AXES: dict[str, list[Any]] = {"seeds": SEEDS, "presets": PRESETS, "tasks": TASKS}
SOLVED = {"cvl": {"mixed": 10, "sparse": 5}, "iql": {"mixed": 5, "sparse": 5}}
"""Of ten episodes."""


def record(preset: str, task: str, seed: int, **changes: Any) -> dict[str, Any]:
    seconds = dict.fromkeys(CRITIC, 10.0)
    seconds |= {"policy_extraction.train_cvl": 3.0, "policy_extraction.train_iql": 20.0 + seed}
    methods = {
        name: {"run": 0, "success": [1] * rate[preset] + [0] * (10 - rate[preset]), "returns": [0.0] * 10}
        for name, rate in SOLVED.items()
    }
    run = {"commit": "abc", "machine": "2 cores", "threads": 1, "interrupted": False, "seconds": seconds}
    place = {"preset": preset, "task": task, "seed": seed, "budget": 1, "behaviour": 0.25}
    return {**place, "runs": [run], "methods": methods, **changes}


def records() -> list[dict[str, Any]]:
    return [record(preset, task, seed) for seed in SEEDS for preset in PRESETS for task in TASKS]


def table(rows: list[dict[str, Any]], methods: tuple[str, ...] = ("cvl", "iql")) -> Comparison:
    return Comparison(frame(rows), methods, AXES)


def test_scores_have_a_row_per_seed_and_a_column_per_task() -> None:
    rows = records()
    rows[1]["methods"]["iql"]["success"] = [1] * 10  # mixed, reach-v3, seed 10
    scores = table(rows)
    assert scores.scores("iql", "mixed").tolist() == [[0.5, 1.0], [0.5, 0.5]]
    assert scores.scores("iql").shape == (2, 4)
    assert (scores.scores(BEHAVIOUR) == 0.25).all()
    assert scores.columns() == ["mixed", "sparse", "all presets"]


def test_the_best_method_is_first_and_the_behaviour_data_last() -> None:
    result = success_table(table(records(), ("iql", "cvl")))
    assert list(result["method"]) == ["cvl", "iql", BEHAVIOUR]
    assert list(result["mixed"]) == ["1.00 [1.00, 1.00]", "0.50 [0.50, 0.50]", "0.25 [0.25, 0.25]"]
    assert result["all presets"][0] == "0.75 [0.75, 0.75]"
    assert result["optimality gap"][0] == "0.25 [0.25, 0.25]"


def test_a_run_that_is_better_on_every_task_improves_surely() -> None:
    result = improvement_table(table(records()))
    assert result.to_dict("records") == [
        {
            "cvl beats": "iql",
            "mixed": "1.00 [1.00, 1.00]",
            "sparse": "0.50 [0.50, 0.50]",
            "all presets": "0.75 [0.75, 0.75]",
        }
    ]


def test_every_task_has_its_mean_over_seeds() -> None:
    rows = records()
    rows[0]["methods"]["iql"]["success"] = [1] * 10  # mixed, push-v3, seed 10
    result = task_table(table(rows))
    assert list(result.columns) == ["preset", "task", "cvl", "iql", BEHAVIOUR]
    assert result.iloc[0].tolist() == ["mixed", "push-v3", 1.0, 0.75, 0.25]


def test_tasks_that_lack_a_seed_or_a_method_are_left_out_for_all() -> None:
    rows = records()
    del rows[0]["methods"]["iql"]  # mixed, push-v3
    rows.pop()  # sparse, reach-v3, seed 11
    scores = table(rows)
    assert scores.places == [("mixed", "reach-v3"), ("sparse", "push-v3")]
    assert scores.incomplete == [("mixed", "push-v3"), ("sparse", "reach-v3")]
    assert len(table(rows, ("cvl",)).places) == 3, "iql does not count"
    assert table(rows, ("cvl", "iql", "never_run")).methods == ["cvl", "iql"]


def test_cvl_costs_its_critic_and_a_method_of_its_own_does_not() -> None:
    seconds = record("mixed", "push-v3", 10)["runs"][0]["seconds"]
    assert cost("cvl", seconds) == 33.0
    assert cost("iql", seconds) == 30.0
    assert np.isnan(cost("bc", seconds))
    own = {"policy_extraction.train_mine": 2.0}
    assert cost("mine", own, {"mine": "cvl_pipeline.methods.bc:BC"}) == 2.0
    assert np.isnan(cost("mine", own))  # the suite does not name it any more


def test_times_are_medians_of_runs_that_were_not_interrupted() -> None:
    rows = records()
    rows[0]["runs"][0]["interrupted"] = True
    rows[0]["runs"][0]["seconds"]["policy_extraction.train_iql"] = 9000.0
    result = time_table(table(rows), frame(rows))
    assert list(result["method"]) == ["iql", "cvl"]
    assert list(result["seconds"]) == ["31", "33"]


@pytest.mark.parametrize("complete", [True, False])
def test_the_report_says_what_it_is_made_from(tmp_path: Path, complete: bool) -> None:
    rows = records()
    if not complete:
        rows = rows[:1]
        rows[0]["runs"][0]["commit"] = None
    plan = make_plan(tasks=TASKS, presets=PRESETS, seeds=SEEDS, methods=["cvl", "iql"])
    text, files = write_report(rows, plan, tmp_path / "new")
    assert text in (tmp_path / "new/report.md").read_text()
    if complete:
        assert "- 8 cells; seeds 10, 11; tasks push-v3, reach-v3; budget 1." in text
        assert "- Code: abc." in text
        assert files[:3] == ["results.parquet", "report.png", "report.md"]
        assert "Left out" not in text
    else:
        assert "- Code: with changes not committed." in text
        assert (
            "missing or unknown: push-v3 (mixed), reach-v3 (mixed), push-v3 (sparse), reach-v3 (sparse)."
            in text
        )
        assert "report.png" not in files
    assert all((tmp_path / "new" / name).exists() for name in files)
    results = pd.read_parquet(tmp_path / "new/results.parquet")
    assert len(results) == len(rows) * 2 * 10
    first = results.iloc[0].to_dict()
    assert first == {
        "task": "push-v3", "preset": "mixed", "seed": 10, "method": "cvl", "episode": 0, "success": 1.0, "return": 0.0,
        "seconds": 33.0,
    }  # fmt: skip


def test_a_suite_is_also_compared_without_its_tuning_tasks(tmp_path: Path) -> None:
    rows = [row for row in records() if row["seed"] == SEEDS[0]]
    for row in rows:
        if row["task"] == "reach-v3":
            row["methods"]["cvl"]["success"] = [0] * 10
    axes: dict[str, Any] = {"tasks": TASKS, "presets": PRESETS, "seeds": SEEDS[:1], "methods": ["cvl", "iql"]}
    text, _ = write_report(rows, make_plan(**axes, tuning_tasks=["reach-v3", "hammer-v3"]), tmp_path)
    assert "- 8 of 8 runs are there (tasks: 2, presets: 2, seeds: 1, methods: 2)." in text
    assert "- Seconds of all nodes of a cell, median: 63." in text
    everywhere, others = text.split(
        "without the tasks on which settings were chosen** (reach-v3, hammer-v3; 2 of 4 "
    )
    # There is one seed, and intervals are over tasks; one task has no width, in however many presets.
    assert "| cvl | 0.50 [0.00, 1.00] | 0.25 [0.00, 0.50] |" in everywhere
    assert "| cvl | 1.00 [1.00, 1.00] | 0.50 [0.50, 0.50] | 0.75 [0.75, 0.75] |" in others
    assert "There is one seed, so intervals resample the tasks, each with all its presets:" in everywhere
    page = (tmp_path / "report.html").read_text()
    assert "The same comparison without reach-v3, hammer-v3." in page
    same, _ = write_report(rows, make_plan(**axes, tuning_tasks=["hammer-v3"]), tmp_path)
    assert "without the tasks" not in same


def test_unknown_success_counts_as_0_if_that_of_another_run_of_the_task_is_known() -> None:
    rows = records()
    rows[0]["methods"]["iql"]["success"] = [None] * 10  # mixed, push-v3, seed 10: cvl is known
    for row in rows:
        if row["preset"] == "sparse" and row["task"] == "reach-v3" and row["seed"] == SEEDS[0]:
            for values in row["methods"].values():  # known in another seed
                values["success"] = [None] * 9 + [1 if values is row["methods"]["cvl"] else None]
    scores = table(rows)
    assert scores.incomplete == []
    assert scores.scores("iql", "mixed").tolist() == [[0.0, 0.5], [0.5, 0.5]]
    assert scores.scores("iql", "sparse")[0].tolist() == [0.5, 0.0]
    assert scores.scores("cvl", "sparse")[0].tolist() == [0.5, 0.1]
    for row in rows:
        if row["task"] == "push-v3":
            for values in row["methods"].values():
                values["success"] = [None] * 10
    assert table(rows).places == [("mixed", "reach-v3"), ("sparse", "reach-v3")], "of push-v3, none is known"


def test_the_report_compares_success_if_that_of_the_behaviour_data_alone_is_unknown(tmp_path: Path) -> None:
    rows = [row for row in records() if row["seed"] == SEEDS[0]]
    for row in rows:
        row["behaviour"] = None
    axes: dict[str, Any] = {"tasks": TASKS, "presets": PRESETS, "seeds": SEEDS[:1], "methods": ["cvl", "iql"]}
    text, _ = write_report(rows, make_plan(**axes), tmp_path)
    assert "| mixed | push-v3 | 1.00 | 0.50 |" in text
    assert BEHAVIOUR not in text
    assert "because success is not known" not in (tmp_path / "report.html").read_text()


def test_report_and_page_compare_success_of_the_tasks_that_have_it(tmp_path: Path) -> None:
    rows = records()
    for row in rows:
        if row["task"] == "reach-v3":
            for values in row["methods"].values():
                values["success"] = [None] * 10
    plan = make_plan(tasks=TASKS, presets=PRESETS, seeds=SEEDS, methods=["cvl", "iql"])
    text, _ = write_report(rows, plan, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "Success, interquartile mean" in text
    assert "Left out, because the success of a method or a seed is missing or unknown: reach-v3" in page
    assert "because success is not known" not in page


def test_seconds_of_a_cell_count_each_node_once() -> None:
    rows = records()
    plan = make_plan(tasks=TASKS, presets=PRESETS, seeds=SEEDS, methods=["cvl", "iql"])
    for row in rows:
        run = row["runs"][0]
        row["runs"].append({**run, "seconds": {**run["seconds"], "policy_extraction.train_bc": 7.0}})
        row["runs"].insert(0, {**run, "seconds": {CRITIC[0]: 10.0}})
    lines = protocol_lines(rows, Comparison(frame(rows), plan.methods, AXES))
    whole = sum(rows[0]["runs"][-1]["seconds"].values())
    assert whole == 3 * 10.0 + 3.0 + 30.0 + 7.0
    assert f"- Seconds of all nodes of a cell, median: {whole + 0.5:.0f}." in lines


def test_without_success_the_report_has_returns(tmp_path: Path) -> None:
    rows = records()
    for row in rows:
        row["behaviour"] = None
        for values in row["methods"].values():
            values["success"] = [None] * 10
    plan = make_plan(tasks=TASKS, presets=PRESETS, seeds=SEEDS, methods=["cvl", "iql"])
    text, files = write_report(rows, plan, tmp_path)
    assert "| mixed | push-v3 | 0.0 | 0.0 |" in text
    assert "report.png" not in files
