from __future__ import annotations

from typing import Any

import pandas as pd

from cvl_pipeline.reports.comparison import BEHAVIOUR, Comparison

AXES: dict[str, list[Any]] = {"seeds": [0, 1], "presets": ["mixed"], "tasks": ["push-v3", "reach-v3"]}


def _rows(methods: dict[str, float]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"preset": "mixed", "task": task, "seed": seed, "method": name, "success": rate}
            for task in AXES["tasks"]
            for seed in AXES["seeds"]
            for name, rate in methods.items()
        ]
    )


def test_without_behaviour_data_the_tables_have_the_methods_alone() -> None:
    table = Comparison(_rows({"cvl": 1.0, "bc": 0.5}), ("bc", "cvl"), AXES)
    assert list(table.success()) == ["cvl", "bc"]
    table = Comparison(_rows({"cvl": 1.0, "bc": 0.5, BEHAVIOUR: 0.25}), ("bc", "cvl"), AXES)
    assert list(table.success()) == ["cvl", "bc", BEHAVIOUR]
    assert list(table.improvement("bc")) == ["cvl"]
    assert float(table.improvement("bc")["cvl"]["mixed"].value) == 0.0


def test_tasks_may_be_listed_although_a_run_is_missing() -> None:
    rows = _rows({"cvl": 1.0, "bc": 0.5}).iloc[1:]  # without cvl on push-v3, seed 0
    table = Comparison(rows, ("cvl", "bc"), AXES)
    assert [row["task"] for row in table.by_task()] == ["reach-v3"]
    (push, _) = table.by_task(complete=False)
    assert (push["cvl"], push["bc"]) == (1.0, 0.5)


def test_times_are_those_of_all_methods_fastest_first_and_unknown_ones_last() -> None:
    table = Comparison(_rows({"cvl": 1.0, "bc": 0.5, "iql": 0.25}), ("cvl", "bc", "iql"), AXES)
    seconds = pd.Series({"cvl": float("nan"), "bc": 7.0, "iql": 3.0})
    found = [(name, time, score and float(score.value)) for name, time, score in table.times(seconds)]
    assert found[:2] == [("iql", 3.0, 0.25), ("bc", 7.0, 0.5)]
    assert (found[2][0], found[2][2]) == ("cvl", 1.0)
    empty = Comparison(_rows({"cvl": 1.0}), ("cvl",), AXES | {"seeds": [0, 1, 2]})
    assert empty.times(seconds)[0][2] is None, "no task has all seeds"
