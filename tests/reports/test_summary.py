from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cvl_pipeline.reports import summary
from cvl_pipeline.reports.summary import bootstrap_interval, return_digits, summarise_rollouts


@pytest.mark.parametrize("value", [0.0, 1.0, 37.5])
def test_equal_values_have_an_interval_of_no_width(value: float) -> None:
    assert bootstrap_interval(np.full(20, value), 0.95, 0) == (value, value)


def test_one_episode_has_an_interval_of_no_width() -> None:
    assert bootstrap_interval(np.array([2.0]), 0.95, 0) == (2.0, 2.0)


def test_the_interval_is_that_of_the_normal_approximation_for_many_values() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, size=500)
    low, high = bootstrap_interval(values, 0.95, 0)
    half = 1.96 * values.std() / np.sqrt(500)
    assert low == pytest.approx(values.mean() - half, abs=0.03)
    assert high == pytest.approx(values.mean() + half, abs=0.03)


def test_resamples_of_a_large_log_are_drawn_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).random(300)
    whole = bootstrap_interval(values, 0.95, 0)
    monkeypatch.setattr(summary, "DRAWN", 1000)
    assert bootstrap_interval(values, 0.95, 0) == whole


@pytest.mark.parametrize("confidence", [0.5, 0.8, 0.95])
def test_intervals_contain_the_true_mean_as_often_as_stated(
    monkeypatch: pytest.MonkeyPatch, confidence: float
) -> None:
    monkeypatch.setattr(summary, "RESAMPLES", 400)  # enough for a share of 300 intervals
    generator = np.random.default_rng(1)
    held = 0
    for seed in range(300):
        low, high = bootstrap_interval(generator.exponential(1.0, size=60), confidence, seed)
        held += low <= 1.0 <= high
    error = np.sqrt(confidence * (1 - confidence) / 300)
    assert held / 300 == pytest.approx(confidence, abs=4 * error)


def test_more_confidence_is_wider_and_the_seed_determines_it() -> None:
    values = np.random.default_rng(0).random(30)
    (low, high), (lower, higher) = (bootstrap_interval(values, level, 0) for level in (0.5, 0.99))
    assert lower < low < values.mean() < high < higher
    assert bootstrap_interval(values, 0.5, 0) == (low, high)
    assert bootstrap_interval(values, 0.5, 1) != (low, high)


def test_summary_has_mean_and_interval_of_every_table() -> None:
    tables = {
        "cvl": pd.DataFrame({"success": [True, True, False, True], "return": [1.0, 2.0, 3.0, 6.0]}),
        "bc": pd.DataFrame({"success": [False, False], "return": [5.0, 5.0]}),
    }
    result: dict[str, Any] = dict(summarise_rollouts(tables, 0.9, 0))
    assert set(result) == {
        f"{name}.{metric}{end}"
        for name in tables
        for metric in ("success_rate", "return_mean")
        for end in ("", "_ci_low", "_ci_high")
    }
    assert result["cvl.success_rate"] == 0.75
    assert result["cvl.return_mean"] == 3.0
    assert 0.0 <= result["cvl.success_rate_ci_low"] < 0.75 < result["cvl.success_rate_ci_high"] <= 1.0
    assert (result["bc.success_rate"], result["bc.success_rate_ci_high"]) == (0.0, 0.0)
    assert (result["bc.return_mean_ci_low"], result["bc.return_mean"]) == (5.0, 5.0)
    assert all(type(value) is float for value in result.values())


@pytest.mark.parametrize("task", [None, ["a", "b"]])
def test_unreported_success_and_missing_returns_are_none(task: list[str] | None) -> None:
    nothing = pd.array([pd.NA, pd.NA], dtype="boolean")
    tables = {
        "cvl": pd.DataFrame({"success": nothing, "return": [1.0, 3.0]}),
        "behaviour": pd.DataFrame({"success": [False, False], "return": [np.nan, np.nan]}),
        "bc": pd.DataFrame({"success": nothing, "return": [np.nan, np.nan]}),
    }
    if task is not None:
        tables = {name: table.assign(task=task) for name, table in tables.items()}
    result = summarise_rollouts(tables, 0.9, 0)
    ends = ("", "_ci_low", "_ci_high")
    assert [result[f"cvl.success_rate{end}"] for end in ends] == [None] * 3
    assert result["cvl.return_mean"] == 2.0
    assert result["behaviour.success_rate"] == 0.0, "reported, but never solved"
    assert [result[f"behaviour.return_mean{end}"] for end in ends] == [None] * 3
    assert {result[f"bc.{metric}{end}"] for metric in ("success_rate", "return_mean") for end in ends} == {
        None
    }
    per_task = {name for name in result if name.count(".") == 2}
    assert per_task == (set() if task is None else {f"behaviour.success_rate.{name}" for name in task})
    json.dumps(result)


def test_the_summary_has_the_success_of_every_task() -> None:
    table = pd.DataFrame(
        {"success": [True, False, True, True], "return": [0.0] * 4, "task": ["b", "b", "a", "b"]}
    )
    result = summarise_rollouts({"cvl": table}, 0.9, 0)
    assert result["cvl.success_rate"] == 0.75
    assert result["cvl.success_rate.a"] == 1.0
    assert result["cvl.success_rate.b"] == pytest.approx(2 / 3)
    assert all(type(value) is float for value in result.values())


@pytest.mark.parametrize(
    ("returns", "digits"),
    [([0.46, 0.12], 2), ([None, 12.0], 1), ([-500.0, 3.0], 0), ([99.9, 100.0], 0), ([None], 2), ([], 2)],
)
def test_returns_have_three_digits(returns: list[float | None], digits: int) -> None:
    assert return_digits(returns) == digits
