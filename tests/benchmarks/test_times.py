"""Success against time, from records of several budgets."""

from __future__ import annotations

from typing import Any

import pytest
from benchmarks.times import measured, prices, versions


def _record(
    task: str, budget: float, success: dict[str, float], seconds: float, commit: str | None = "abc"
) -> dict[str, Any]:
    """A record with ten episodes a method."""
    nodes = {f"policy_extraction.train_{name}": seconds for name in success}
    return {
        "task": task, "preset": "mixed", "seed": 10, "budget": budget, "behaviour": 0.5,
        "runs": [{"interrupted": False, "seconds": nodes, "commit": commit}],
        "methods": {
            name: {"run": 0, "success": [int(n < 10 * rate) for n in range(10)], "returns": [0.0] * 10}
            for name, rate in success.items()
        },
    }  # fmt: skip


def test_the_price_of_a_success_rate_is_the_cheapest_budget_that_reaches_it() -> None:
    records = [
        _record("a", 0.1, {"iql": 0.5, "bc": 0.1}, 3.0), _record("a", 1, {"iql": 0.9, "bc": 0.1}, 30.0),
        _record("a", 10, {"iql": 1.0, "bc": 0.1}, 300.0),
        _record("a", 1, {"iql": 1.0, "bc": 1.0}, 30.0) | {"preset": "noisy"},  # a single budget
    ]  # fmt: skip
    rows = prices(measured(records)).set_index("method")
    assert set(rows.index) == {"iql", "bc"}  # and not the behaviour data
    assert rows.loc["iql", "seconds to 0.9"] == "30"
    assert rows.loc["bc", "seconds to 0.9"] == "not reached"
    assert rows.loc["iql", "budget 0.1"] == "0.50 in 3 s"


def test_all_means_are_of_the_same_runs() -> None:
    """Task b lacks a budget of bc, so no mean has it."""
    records = [
        _record("a", 0.1, {"iql": 0.5, "bc": 0.1}, 3.0), _record("a", 1, {"iql": 0.9, "bc": 0.1}, 30.0),
        _record("b", 0.1, {"iql": 0.0, "bc": 0.0}, 3.0), _record("b", 1, {"iql": 0.0}, 30.0),
    ]  # fmt: skip
    table = measured(records).set_index(["method", "budget"])
    assert (table["runs"] == 1).all()
    assert table.loc[("iql", 1), "success"] == pytest.approx(0.9)


def test_commits_are_named_if_they_differ() -> None:
    records = [_record("a", budget, {"iql": 0.5}, 3.0) for budget in (0.1, 1)]
    alone = [_record("b", 1, {"iql": 0.5}, 3.0, "def"), {**records[0], "preset": "noisy"}]
    assert versions([*records, *alone]) == "", "these have one budget"
    records[1] = _record("a", 1, {"iql": 0.5}, 3.0, "0123456789")
    records += [_record("c", 0.1, {"iql": 0.5}, 3.0, None), _record("c", 1, {"iql": 0.5}, 3.0)]
    assert versions(records) == (
        "The code differs: budget 0.1: abc, changes not committed; budget 1: 0123456, abc."
    )
