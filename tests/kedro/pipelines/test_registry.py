from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from kedro.io import DataCatalog

from cvl_pipeline.kedro import datasets
from cvl_pipeline.kedro.configuration import CheckedConfigLoader
from cvl_pipeline.kedro.datasets import interactive
from cvl_pipeline.kedro.pipeline_registry import current_plan, plan_for, register_pipelines, register_stages
from tests.kedro.sessions import make_loader, path_of

STAGES = [
    "data_ingestion",
    "contrastive_dynamics",
    "value_readout",
    "policy_extraction",
    "judging",
    "evaluation",
]
PLANS: list[dict[str, Any]] = [
    {},
    {"baselines": {"bc": None}},
    {"baselines": {"iql": {}, "soft": {"method": "iql"}, "greedy": {"method": "cvl"}}},
    {"dataset": {"source": "files", "path": "mine.csv"}},
    {"baselines": {"filtered_bc": {}}, "evaluation": {"videos": {}}},
    {"judging": {"enabled": True, "critic": "contrastive"}},
    {"dataset": {"source": "files", "path": "mine.csv"}, "judging": {"enabled": False}},
]
"""Parameters that decide which nodes there are."""


def _loader(**runtime: Any) -> CheckedConfigLoader:
    """The project's configuration, whose parameters the pipelines follow from now on."""
    loader = make_loader(**runtime)
    plan_for(loader.run_parameters())
    return loader


def _is_parameter(name: str) -> bool:
    return name.startswith("params:") or name == "parameters"


def _inputs(stage: str) -> set[str]:
    return {name for node in register_stages()[stage].nodes for name in node.inputs}


def _outputs() -> set[str]:
    return {name for pipeline in register_pipelines().values() for name in pipeline.all_outputs()}


def _upstream(name: str) -> set[str]:
    """Everything that is read to make a dataset."""
    nodes = register_pipelines()["__default__"].to_outputs(name).nodes
    return {name for node in nodes for name in node.inputs}


def test_without_parameters_the_pipelines_are_those_of_the_defaults() -> None:
    assert [row.name for row in current_plan().rows] == ["cvl", "bc"]
    assert current_plan().evaluates
    assert len(register_pipelines()["__default__"].nodes) == 24


@pytest.mark.parametrize("parameters", PLANS, ids=str)
def test_there_are_six_stages_in_the_order_that_data_flows(parameters: dict[str, Any]) -> None:
    _loader(**parameters)
    stages = register_stages()
    assert list(stages) == STAGES
    made: set[str] = set()
    for stage, pipeline in stages.items():
        needed = {name for name in pipeline.inputs() if not _is_parameter(name)}
        assert needed <= made, stage
        made |= pipeline.all_outputs()
    pipelines = register_pipelines()
    assert set(pipelines) == {"__default__", *stages, "export", "tuning"}
    assert {node.name for node in pipelines["__default__"].nodes} == {
        node.name for stage in stages.values() for node in stage.nodes
    }
    # Every dataset but the parameters has a node that makes it.
    for pipeline in pipelines.values():
        assert {name for name in pipeline.datasets() if not _is_parameter(name)} <= _outputs()


@pytest.mark.parametrize("parameters", PLANS, ids=str)
def test_nodes_have_plain_names_and_the_namespace_and_tag_of_their_stage(parameters: dict[str, Any]) -> None:
    _loader(**parameters)
    for stage, pipeline in register_stages().items():
        plan = current_plan()
        judged = {"judging": plan.judges, "evaluation": plan.evaluates or plan.judges}
        assert bool(pipeline.nodes) == judged.get(stage, True)
        for node in pipeline.nodes:
            assert node.namespace == stage
            assert re.fullmatch(rf"{stage}\.[a-z_]+", node.name)
            assert stage in node.tags


def test_every_method_has_its_nodes_and_artifacts() -> None:
    _loader(baselines={"iql": {}})
    stages = register_stages()
    trainings = {name for name in _names(stages["policy_extraction"]) if "train_" in name}
    assert trainings == {f"policy_extraction.train_{name}" for name in ("cvl", "bc", "iql")}
    evaluation = _names(stages["evaluation"])
    for name in ("cvl", "bc", "iql"):
        assert {f"evaluation.roll_out_{name}", f"evaluation.score_{name}"} <= evaluation
    assert len(evaluation) == 2 * 3 + 3
    (summarise,) = [node for node in stages["evaluation"].nodes if node.name == "evaluation.summarise"]
    assert {"cvl_rollouts", "bc_rollouts", "iql_rollouts"} <= set(summarise.inputs)


def test_another_method_under_a_name_and_null_change_the_rows() -> None:
    _loader(baselines={"bc": {"method": "iql"}})
    assert "bc_policy" in _outputs()  # it needs rewards, so it is filed under the reward
    assert "reward_free_bc_policy" not in _outputs()
    _loader(baselines={"bc": None})
    assert not any("bc_" in name for name in _outputs())
    assert len(register_pipelines()["__default__"].nodes) == 21


def test_videos_have_nodes_only_if_they_are_wanted() -> None:
    _loader(baselines={"bc": {}})
    assert not any("video" in name for name in _outputs())
    config = _loader(baselines={"filtered_bc": {}}, evaluation={"videos": {}})
    videos = {
        f"{name}_video_{rank}"
        for name in ("cvl", "bc", "filtered_bc")
        for rank in ("best", "median", "worst")
    }
    assert {name for name in _outputs() if "video" in name} == videos
    (page,) = [node for node in register_stages()["evaluation"].nodes if node.outputs == ["page"]]
    assert videos <= set(page.inputs)
    entry: Any = DataCatalog.from_config(config["catalog"]).get("filtered_bc_video_best")
    assert "evaluation episode of filtered_bc that is the best one" in entry.metadata["description"]


def test_without_an_environment_there_is_no_evaluation() -> None:
    _loader(dataset={"source": "files", "path": "mine.csv"})
    assert _names(register_stages()["evaluation"]) == {"evaluation.write_page"}
    assert len(register_pipelines()["__default__"].nodes) == 22
    assert "metrics" not in _outputs()
    _loader(dataset={"source": "files", "path": "mine.csv"}, judging={"enabled": False})
    assert not register_stages()["evaluation"].nodes
    assert len(register_pipelines()["__default__"].nodes) == 17
    _loader(dataset={"source": "files", "path": "mine.csv"}, evaluation={"environment": "Hopper-v5"})
    assert "metrics" in _outputs()


def test_without_an_environment_policies_are_judged_from_the_log() -> None:
    _loader()
    assert "judgement" not in _outputs()
    _loader(dataset={"source": "files", "path": "mine.csv"})
    names = {"judging.regress", "judging.judge_cvl", "judging.judge_bc", "judging.summarise"}
    assert _names(register_stages()["judging"]) == names
    # The critic that judges never sees what the policy learned from; the episodes that it sees are a part of the log.
    assert not _upstream("judging_critics") & {"cvl_policy", "readout"}
    assert {"judgement", "page"} <= _outputs()
    _loader(judging={"enabled": True, "critic": "contrastive"})
    assert {"judging_critic", "judging_readout"} <= _upstream("judgement")
    assert not _upstream("judging_critic") & {"labels", "rewards"}
    (page,) = [node for node in register_stages()["evaluation"].nodes if node.outputs == ["page"]]
    assert {"judgement", "metrics"} <= set(page.inputs)


def _names(pipeline: Any) -> set[str]:
    return {node.name for node in pipeline.nodes}


def test_the_dynamics_read_nothing_that_holds_a_reward() -> None:
    assert _inputs("contrastive_dynamics") == {
        "transitions",
        "split",
        "normalisation",
        "params:contrastive_dynamics",
        "params:seed",
        "dynamics_history",
    }
    # Upstream of the critic, the rewards are made beside the transitions and go elsewhere.
    assert not _upstream("critic") & {"rewards", "labels", "params:reward"}


def test_only_artifacts_that_depend_on_the_reward_are_filed_under_it() -> None:
    """Another reward overwrites nothing of the first one, and moves nothing that it does not affect."""

    def files(**runtime: Any) -> dict[str, Path]:
        catalog = DataCatalog.from_config(_loader(baselines={"iql": {}}, **runtime)["catalog"])
        return {name: path_of(catalog, name) for name in _outputs()}

    plain, other = files(), files(reward={"source": "success"})
    moved = {name for name in plain if plain[name] != other[name]}
    dependent: set[str] = set()
    for node in register_pipelines()["__default__"].nodes:  # in the order of the run
        if {"params:reward", *dependent} & set(node.inputs):
            dependent |= set(node.outputs)
    assert {"labels", "readout", "cvl_policy", "iql_policy", "metrics", "bc_rollouts"} <= dependent
    assert not any(name.startswith("reward_free") or name == "critic" for name in dependent)
    study = register_pipelines()["tuning"].all_outputs()
    assert moved == dependent | study | register_pipelines()["export"].all_outputs()


def test_rollouts_are_scored_by_the_reward_in_force_without_the_simulator() -> None:
    nodes = {node.name: node for node in register_stages()["evaluation"].nodes}
    for name in ("cvl", "bc"):
        assert "simulator" in nodes[f"evaluation.roll_out_{name}"].tags
        assert "params:reward" not in nodes[f"evaluation.roll_out_{name}"].inputs
        assert "simulator" not in nodes[f"evaluation.score_{name}"].tags
        assert "params:reward" in nodes[f"evaluation.score_{name}"].inputs
    # The behaviour is scored by the same reward.
    assert "labels" in nodes["evaluation.summarise"].inputs


def test_a_method_reads_no_more_than_it_needs() -> None:
    _loader(baselines={"iql": {}, "greedy": {"method": "cvl"}})
    assert not _upstream("reward_free_bc_policy") & {"critic", "readout", "rewards", "labels"}
    assert not _upstream("iql_policy") & {"critic", "readout"}
    assert "labels" in _upstream("iql_policy")
    assert {"critic", "readout", "labels"} <= _upstream("greedy_policy")
    nodes = {node.name: set(node.inputs) for node in register_stages()["policy_extraction"].nodes}
    parameters = {"cvl": "params:policy_extraction", "iql": "params:baselines.iql"}
    for name, given in parameters.items():
        inputs = nodes[f"policy_extraction.train_{name}"]
        assert {part for part in inputs if _is_parameter(part)} == {given, "params:seed"}


@pytest.mark.parametrize("parameters", PLANS, ids=str)
def test_every_dataset_has_an_entry_with_a_description_and_the_layer_of_its_folder(
    parameters: dict[str, Any],
) -> None:
    catalog = DataCatalog.from_config(_loader(**parameters)["catalog"])
    for name in sorted(_outputs()):
        dataset: Any = catalog.get(name)
        kind = type(dataset).__name__
        assert kind in datasets.__all__ or hasattr(interactive, kind), name
        place = path_of(catalog, name)
        # An exported policy is a folder.
        assert name.removeprefix("reward_free_") in (place.stem, place.parent.name)
        assert place.parts[1].partition("_")[2] == dataset.metadata["kedro-viz"]["layer"], name
        description = dataset.metadata["description"]
        assert re.fullmatch(r"[^{}]{10,}\.", description), name


def test_no_entry_of_the_catalog_is_left_over() -> None:
    """Such as folders of checkpoints and logs, which are no datasets."""
    made = set()
    for critic in ("regression", "contrastive"):
        judging = {"enabled": True, "critic": critic}
        config = _loader(baselines={"bc": {}, "iql": {}}, evaluation={"videos": {}}, judging=judging)[
            "catalog"
        ]
        made |= _outputs()
    for entry in config:
        pattern = re.sub(r"\\{\w+\\}", r"\\w+", re.escape(entry))
        assert any(re.fullmatch(pattern, name) for name in made), entry
    assert not any(re.search("checkpoint|log|storage|folder", name) for name in (*config, *_outputs()))


@pytest.mark.parametrize("parameters", PLANS, ids=str)
def test_parameters_that_nodes_ask_for_exist(parameters: dict[str, Any]) -> None:
    given = _loader(**parameters)["parameters"]
    for name in {name for pipeline in register_pipelines().values() for name in pipeline.inputs()}:
        if name.startswith("params:"):
            value: Any = given
            for part in name.removeprefix("params:").split("."):
                value = value[part]


def test_the_export_has_a_node_for_each_method_that_is_named_and_takes_what_there_is() -> None:
    def inputs() -> dict[str, set[str]]:
        nodes = register_pipelines()["export"].nodes
        return {node.outputs[0]: {name for name in node.inputs if not _is_parameter(name)} for node in nodes}

    _loader()
    episodes = {"transitions", "split"}
    assert inputs() == {"cvl_exported": {*episodes, "critic", "readout", "metrics", "cvl_policy"}}
    _loader(baselines={"bc": {}, "iql": {}}, export={"methods": "bc iql", "value": False})
    assert inputs() == {
        "bc_exported": {*episodes, "metrics", "reward_free_bc_policy"},
        "iql_exported": {*episodes, "metrics", "iql_policy"},
    }
    _loader(evaluation={"videos": {}}, export={"value": False})
    assert inputs()["cvl_exported"] == {*episodes, "metrics", "cvl_policy", "cvl_video_median"}
    assert "export" not in {tag for node in register_pipelines()["__default__"].nodes for tag in node.tags}
