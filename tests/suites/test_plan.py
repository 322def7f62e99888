"""Cells, units and commands of a suite."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from kedro.framework.cli.utils import _split_params

from cvl_pipeline.errors import InputError
from cvl_pipeline.readout.fitting import CUT_ROUNDS, CUT_SHARE, CUT_STEPS
from cvl_pipeline.schema import nested
from cvl_pipeline.suites.parameters import Suite
from cvl_pipeline.suites.plan import Cell, Plan, check_names, network_steps
from tests.kedro.sessions import make_loader

CELL = Cell(10, "mixed", "reach-v3")


def make_plan(given: dict[str, Any] | None = None, threads: int = 1, **fields: Any) -> Plan:
    """A plan of the project's own configuration."""
    values = {"tasks": ["reach-v3"], "methods": ["cvl", "bc", "iql"], "evaluation_episodes": 4, **fields}
    suite = Suite.model_validate(values).chosen(None)
    parameters = make_loader(**nested({**suite.overrides, **(given or {})})).run_parameters()
    steps = network_steps(parameters, suite.budget)
    return Plan("mine", suite, steps, given or {}, "/data", "/records", Path.cwd(), threads)


def test_all_presets_and_tasks_of_a_seed_come_before_the_next_seed() -> None:
    plan = make_plan(tasks=["a", "b"], presets=["sparse", "mixed"], seeds=[11, 10], budget=10)
    listed = [cell.name for cell in plan.cells()]
    assert listed[:3] == ["a_sparse_seed11_x10", "b_sparse_seed11_x10", "a_mixed_seed11_x10"]
    assert len(listed) == len(set(listed)) == 8


def test_a_cell_has_its_budget_in_its_name() -> None:
    assert [make_plan(budget=budget).cells()[0].name[-5:] for budget in (0.1, 1, 10)] == [
        "_x0.1",
        "d0_x1",
        "0_x10",
    ]


def test_a_group_of_methods_begins_after_the_unit_that_makes_what_they_share() -> None:
    plan = make_plan(tasks=["a", "b"], presets=["mixed", "noisy"], methods=[["bc"], ["iql", "td3_bc"]])
    units = plan.units()
    assert [unit.name for unit in units[:4]] == [
        "a_mixed_seed0_x1",
        "b_mixed_seed0_x1",
        "a_mixed_seed0_x1.1",
        "b_mixed_seed0_x1.1",
    ]
    assert [unit.after for unit in units[:4]] == [None, None, "a_mixed_seed0_x1", "b_mixed_seed0_x1"]
    assert units[2].methods == ("cvl", "iql", "td3_bc")
    assert len({unit.name for unit in units}) == 8


@pytest.mark.parametrize("budget", [0.1, 1, 10])
def test_every_method_takes_the_steps_of_critic_regression_and_policy(budget: float) -> None:
    plan = make_plan(budget=budget)
    parameters = make_loader(**nested(plan.parameters(CELL, plan.methods))).run_parameters()
    total = budget * (3000 + 2500 + 2000)
    assert {name: chosen.training.steps for name, chosen in parameters.baselines.items()} == {
        "bc": total, "iql": total,
    }  # fmt: skip
    regression = parameters.value_readout.regression
    assert regression is not None
    own = parameters.contrastive_dynamics.training.steps + parameters.policy_extraction.training.steps
    assert own + regression.all_steps == total
    assert parameters.evaluation.episodes == 4


def test_the_budget_counts_for_steps_that_the_suite_overrides() -> None:
    given = {"contrastive_dynamics.training.steps": 1000}
    for plan in (make_plan(overrides=given, budget=0.1), make_plan(given, budget=0.1)):
        parameters = make_loader(**nested(plan.parameters(CELL, plan.methods))).run_parameters()
        assert parameters.contrastive_dynamics.training.steps == 100
        assert parameters.baselines["iql"].training.steps == 0.1 * (1000 + 2500 + 2000)


def test_in_windows_cvl_takes_about_half_as_many_steps_again_as_its_rivals() -> None:
    plan = make_plan(presets=["fragments"])
    parameters = make_loader(**nested(plan.parameters(plan.cells()[0], plan.methods))).run_parameters()
    readout = parameters.value_readout
    regression, discount = readout.regression, readout.discount
    assert regression is not None
    assert discount is not None
    # docs/benchmarks.md: windows of 21 steps. The i-th last one has the share 1 - discount^i of its future.
    assert np.mean(1.0 - discount ** np.arange(1, 22)) < CUT_SHARE
    rounds = CUT_ROUNDS * round(CUT_STEPS * regression.value_steps)
    own = parameters.contrastive_dynamics.training.steps + parameters.policy_extraction.training.steps
    assert own + regression.steps + rounds == 11_000
    assert {name: chosen.training.steps for name, chosen in parameters.baselines.items()} == {
        "bc": 7500, "iql": 7500,
    }  # fmt: skip


def test_without_regression_the_steps_are_those_of_critic_and_policy() -> None:
    plan = make_plan(given={"value_readout.regression": None})
    assert plan.baselines(["iql"])["baselines.iql.training.steps"] == 5000


def test_a_variant_has_its_settings_and_a_method_of_your_own_its_class() -> None:
    plan = make_plan(
        methods=["iql__near", "cvl__soft", "mine"], own_methods={"mine": "module:Mine"},
        variants={"iql": {"near": {"discount": 0.9}}, "cvl": {"soft": {"extraction": {"beta": 1.0}}}},
    )  # fmt: skip
    chosen = plan.baselines(plan.methods)
    assert chosen["baselines.iql__near.method"] == "iql"
    assert chosen["baselines.iql__near.discount"] == 0.9
    assert "baselines.cvl__soft.training.steps" not in chosen, "it stands on the critic at hand"
    assert chosen["baselines.cvl__soft.extraction.beta"] == 1.0
    assert chosen["baselines.mine.method"] == "module:Mine"
    assert chosen["baselines.bc"] is None


def test_the_command_of_a_cell() -> None:
    given = {"dataset.episodes": 9, "baselines.iql.beta": 1.5}
    plan = make_plan(given=given, env="smoke")
    command = plan.command(Cell(10, "sparse", "reach-v3"), ["cvl", "iql"])
    assert command[:-1] == [
        "kedro", "run", "--only-missing-outputs", "--env", "smoke", "--runner", "SequentialRunner", "--params",
    ]  # fmt: skip
    params = dict(part.split("=") for part in command[-1].split(","))
    assert params["dataset.preset"] == "sparse"
    assert params["baselines.bc"] == "null", "conf/base has it"
    assert params["baselines.iql.method"] == "iql"
    assert params["baselines.iql.beta"] == "1.5"
    assert params["data.root"] == "/data/reach-v3_sparse_seed10_x1"
    assert params["data_ingestion.workers"] == params["evaluation.workers"] == "1"
    two = make_plan(threads=2).command(CELL, ["cvl", "bc"])
    assert "--runner" not in two
    assert "dataset.preset" not in two[-1], "mixed is the default of every source"
    assert "baselines.bc=null" not in two[-1]


@pytest.mark.parametrize(
    "value",
    [
        "door", "/tmp/log, new.csv", "{task}-small", "12", "1e5", "true", "null", "", " a ",
        "it's \"a\": b\n", "é", "a:",
        None, True, 3, 1e-05, 0.1, [], {}, [8, 8], ["left arm", "right"], ["one"], ["a, b", None, "7"],
        [{"a": [1, 2], "b, c": "x"}, {"a": [1, 2]}], "x" * 300 + " y",
    ],
)  # fmt: skip
def test_a_parameter_survives_the_command_line(value: Any) -> None:
    plan = replace(make_plan(), given={"dataset.name": value})
    text = plan.command(CELL, plan.methods)[-1]
    given = _split_params(click.Context(click.Command("run")), click.Option(["--params"]), text)
    assert given["dataset"]["name"] == value
    assert type(given["dataset"]["name"]) is type(value)
    assert given["seed"] == 10


@pytest.mark.parametrize(
    ("given", "fields", "words"),
    [
        ({"seed": 5}, {}, "--params: 'seed' is 5: each cell has its own; use --seeds"),
        ({"dataset.task": "push-v3"}, {}, "'dataset.task' is 'push-v3': each cell has its own; use --tasks"),
        ({}, {"overrides": {"dataset.preset": "noisy"}}, "mine.yml: overrides: 'dataset.preset' is .* use --presets"),
        ({"dataset.task": "x"}, {"tasks": [], "datasets": {"a": {}}}, "write it into the entries of 'datasets'"),
        ({}, {"tasks": [], "datasets": {"a": {"seed": 3}}}, "mine.yml: datasets.a: 'seed' is 3: .* use 'seeds'"),
        ({}, {"tasks": [], "datasets": {"a": {"data": {"root": "x"}}}}, "'data.root' is 'x': .* use 'data_root'"),
        ({}, {"tasks": [], "datasets": {"a": {"evaluation.episodes": 3}}}, "use 'evaluation_episodes'"),
        ({}, {"tasks": [], "datasets": {"a": {"contrastive_dynamics.training.steps": 3}}}, "use 'budget' or 'over"),
    ],
)  # fmt: skip
def test_parameters_that_the_plan_sets_are_refused(
    given: dict[str, Any], fields: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        check_names(make_plan(given, **fields))


def test_other_parameters_of_overrides_and_datasets_are_accepted() -> None:
    check_names(make_plan({"dataset.episodes": 3}, overrides={"evaluation.episodes": 3, "data.cache": "x"}))
    check_names(make_plan(tasks=[], datasets={"a": {"dataset": {"task": "push-v3", "preset": "noisy"}}}))


def test_the_overrides_may_say_where_the_data_is() -> None:
    plan = make_plan(
        {"data.credentials": "lab"},
        overrides={"data.root": "s3://x", "data.cache": "/copies", "data.credentials": "other"},
    )
    assert plan.place(CELL) == {
        "data.root": f"/data/{CELL.name}", "data.cache": "/copies", "data.credentials": "lab",
    }  # fmt: skip
    assert not any(name.startswith("data.") for name in plan.settings(CELL))


def test_params_win_over_the_overrides_and_the_place_of_the_data_is_no_setting() -> None:
    plan = make_plan(given={"dataset.episodes": 7, "data.root": "s3://x", "data.credentials": "lab"}, overrides={
        "dataset.episodes": 9})  # fmt: skip
    settings = plan.settings(CELL)
    assert settings["dataset.episodes"] == 7
    assert not any(name.startswith("data.") for name in settings)
    assert plan.place(CELL) == {"data.root": f"/data/{CELL.name}", "data.credentials": "lab"}


def test_a_dataset_has_its_own_parameters_instead_of_a_task() -> None:
    plan = make_plan(tasks=[], datasets={"maze": {"dataset": {"source": "pointmaze", "episodes": 9}}})
    (cell,) = plan.cells()
    assert cell.name == "maze_logged_seed0_x1"
    assert plan.settings(cell)["dataset.source"] == "pointmaze"
    assert "dataset.task" not in plan.settings(cell)


def test_videos_are_of_the_first_seed_and_decide_no_result() -> None:
    fields: dict[str, Any] = {"seeds": [5, 6], "videos": {"size": 128}}
    plan = make_plan(**fields)
    first, second = (plan.parameters(cell, plan.methods) for cell in plan.cells())
    assert (first["evaluation.videos.size"], first["evaluation.videos.every"]) == (128, 2)
    assert "evaluation.videos.size=128" in plan.command(plan.cells()[0], plan.methods)[-1]
    assert not [name for name in second if "videos" in name]
    others: list[dict[str, Any]] = [{"evaluation.videos": None}, {"evaluation.videos.size": 64}]
    for given in others:
        other = make_plan(given, **fields)
        assert other.settings(CELL) == plan.settings(CELL), "records fit with and without videos"
        parameters = make_loader(**nested(other.parameters(other.cells()[0], other.methods))).run_parameters()
        videos = parameters.evaluation.videos
        assert (videos and videos.size) == given.get("evaluation.videos.size")
