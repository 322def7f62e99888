from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from kedro.pipeline import node

from cvl_pipeline.kedro.parameters import RunParameters, check_parameters
from cvl_pipeline.kedro.rows import Plan, bound
from cvl_pipeline.methods.base import MethodParameters
from cvl_pipeline.methods.bc import BC

LOG = {"source": "files", "path": "mine.csv"}


class Mine(BC):
    """A method of one's own."""

    Parameters = MethodParameters  # type: ignore[assignment]
    title = "mine"
    needs_rewards = True


def _plan(**values: Any) -> Plan:
    return Plan.of(check_parameters(values))


def test_cvl_is_the_first_row_and_the_baselines_follow() -> None:
    plan = Plan.of(RunParameters())
    assert [(row.name, row.title, row.parameters) for row in plan.rows] == [
        ("cvl", "CVL", "params:policy_extraction"),
        ("bc", "BC (control)", "params:baselines.bc"),
    ]
    assert plan.evaluates
    plan = _plan(baselines={"bc": None, "iql": {"beta": 1.0}})
    assert [row.name for row in plan.rows] == ["cvl", "iql"]
    assert [row.name for row in _plan(baselines={}).rows] == ["cvl"]


def test_a_label_of_ones_own_is_in_the_title() -> None:
    (_, row) = _plan(baselines={"soft": {"method": "iql"}}).rows
    assert (row.name, row.title, row.parameters) == ("soft", "soft (IQL)", "params:baselines.soft")
    (_, row) = _plan(baselines={"own": {"method": f"{__name__}:Mine"}}).rows
    assert (row.method, row.title) == (Mine, "own (mine)")
    titles = [row.title for row in _plan(baselines={"bc": {"method": "iql"}, "iql": {}}).rows]
    assert titles == ["CVL", "bc (IQL)", "IQL"]


def test_only_methods_that_need_rewards_have_datasets_under_the_reward() -> None:
    datasets = {row.name: row.dataset("policy") for row in _plan(baselines={"bc": {}, "iql": {}}).rows}
    assert datasets == {"cvl": "cvl_policy", "bc": "reward_free_bc_policy", "iql": "iql_policy"}


@pytest.mark.parametrize(
    ("values", "evaluates"),
    [
        ({}, True),
        ({"dataset": LOG}, False),
        ({"dataset": LOG, "evaluation": {"environment": "Hopper-v5"}}, True),
        ({"dataset": {"source": "pointmaze", "task": "PointMaze_Medium-v3"}}, True),
    ],
)
def test_policies_are_evaluated_where_an_environment_is_known(
    values: dict[str, Any], evaluates: bool
) -> None:
    assert _plan(**values).evaluates == evaluates


def _work(factor: int, /, x: int, **others: int) -> int:
    """Multiply."""
    return factor * x + sum(others.values())


def test_a_bound_function_keeps_its_name_and_takes_named_inputs() -> None:
    function = bound(_work, 3)
    assert isinstance(function, partial)
    assert vars(function)["__name__"] == "_work"
    made = node(function, {"x": "a", "y": "b"}, "c", name="n")
    assert made.run({"a": 2, "b": 1}) == {"c": 7}
