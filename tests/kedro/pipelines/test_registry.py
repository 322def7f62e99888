from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from cvl_pipeline.kedro import datasets
from cvl_pipeline.kedro.configuration import RESOLVERS, CheckedConfigLoader
from cvl_pipeline.kedro.datasets import study
from cvl_pipeline.kedro.pipeline_registry import register_pipelines, register_stages
from cvl_pipeline.kedro.settings import CONFIG_LOADER_ARGS
from tests.project import CONF

FOLDERS = ("_checkpoints", "_logs")
LAYERS = {
    "01_raw": "raw",
    "02_intermediate": "intermediate",
    "03_primary": "primary",
    "06_models": "models",
    "07_model_output": "model_output",
    "08_reporting": "reporting",
}


@pytest.fixture(scope="module")
def catalog() -> dict[str, Any]:
    return _catalog()


def _catalog(**runtime: Any) -> dict[str, Any]:
    for resolver in RESOLVERS:
        OmegaConf.clear_resolver(resolver)
    return CheckedConfigLoader(str(CONF), runtime_params=runtime, **CONFIG_LOADER_ARGS)["catalog"]


def _inputs(stage: str) -> set[str]:
    return {name for node in register_stages()[stage].nodes for name in node.inputs}


def test_there_are_five_stages_in_the_order_that_data_flows() -> None:
    stages = register_stages()
    assert list(stages) == [
        "data_ingestion",
        "contrastive_dynamics",
        "value_readout",
        "policy_extraction",
        "evaluation",
    ]
    made: set[str] = set()
    for stage, pipeline in stages.items():
        needed = {name for name in pipeline.inputs() if not name.startswith("params:")}
        assert {name for name in needed if not name.endswith(FOLDERS)} <= made, stage
        made |= pipeline.all_outputs()


def test_the_default_pipeline_is_all_stages() -> None:
    pipelines = register_pipelines()
    assert set(pipelines) == {"__default__", *register_stages(), "tuning"}
    assert {node.name for node in pipelines["__default__"].nodes} == {
        node.name for stage in register_stages().values() for node in stage.nodes
    }
    # Nothing but parameters and folders for unfinished work and logs has to be there.
    for name in pipelines["__default__"].inputs():
        assert name.startswith("params:") or name.endswith(FOLDERS)


def test_nodes_carry_the_namespace_and_the_tag_of_their_stage() -> None:
    for stage, pipeline in register_stages().items():
        assert pipeline.nodes
        for node in pipeline.nodes:
            assert node.namespace == stage
            assert node.name.startswith(f"{stage}.")
            assert stage in node.tags


def test_the_dynamics_read_nothing_that_holds_a_reward() -> None:
    inputs = _inputs("contrastive_dynamics")
    assert inputs == {
        "transitions",
        "split",
        "normalisation",
        "params:contrastive_dynamics",
        "params:seed",
        "dynamics_checkpoints",
        "dynamics_logs",
        "dynamics_history",
    }
    # Upstream of the critic, the rewards are made beside the transitions and go elsewhere.
    upstream = register_pipelines()["__default__"].to_outputs("critic")
    read = {name for node in upstream.nodes for name in node.inputs}
    assert not read & {"rewards", "labels", "params:reward"}


def test_what_follows_from_a_reward_is_filed_under_it_and_nothing_else_is() -> None:
    """Another reward must not overwrite what the first one gave, nor move what none of them touches."""
    plain, other = _catalog(), _catalog(reward={"source": "success"})
    moved = {name for name in plain if plain[name]["filepath"] != other[name]["filepath"]}
    pipeline = register_pipelines()["__default__"]
    follows: set[str] = set()
    for node in pipeline.nodes:  # in the order of the run
        if {"params:reward", *follows} & set(node.inputs):
            follows |= set(node.outputs)
    assert {"labels", "readout", "policy", "metrics", "rollouts", "bc_rollouts"} <= follows
    assert not follows & {"critic", "bc_policy", "bc_rollout_transitions", "bc_rollout_rewards"}
    study = {name for name in register_pipelines()["tuning"].datasets() if "tuning" in name}
    study = {name for name in study if name in plain} | {"best_parameters"}
    assert moved == follows | {"policy_checkpoints", "policy_logs"} | study


def test_rollouts_are_scored_by_the_reward_in_force_without_the_simulator() -> None:
    nodes = {node.name: node for node in register_stages()["evaluation"].nodes}
    for name in ("evaluation.roll_out", "evaluation.roll_out_bc"):
        assert "simulator" in nodes[name].tags
        assert "params:reward" not in nodes[name].inputs
    assert "simulator" not in nodes["evaluation.score"].tags
    assert "params:reward" in nodes["evaluation.score"].inputs
    # The behaviour is scored by the same reward.
    assert "labels" in nodes["evaluation.summarise"].inputs


def test_the_clone_needs_no_critic() -> None:
    upstream = register_pipelines()["__default__"].to_outputs("bc_policy")
    read = {name for node in upstream.nodes for name in node.inputs}
    assert not read & {"critic", "readout", "rewards", "labels"}


def test_every_dataset_of_the_pipelines_is_in_the_catalog_and_none_else(catalog: dict[str, Any]) -> None:
    used = {
        name
        for pipeline in register_pipelines().values()
        for name in pipeline.datasets()
        if not name.startswith("params:") and name != "parameters"
    }
    assert set(catalog) == used


def test_every_dataset_has_a_layer_that_fits_its_folder_and_a_description(catalog: dict[str, Any]) -> None:
    for name, entry in catalog.items():
        folder = Path(entry["filepath"]).parts[1]
        assert entry["metadata"]["kedro-viz"]["layer"] == LAYERS[folder], name
        assert len(entry["metadata"]["description"]) > 10, name
        assert entry["metadata"]["description"].endswith("."), name


def test_every_dataset_is_written_by_the_package_and_named_after_its_entry(catalog: dict[str, Any]) -> None:
    files = set()
    for name, entry in catalog.items():
        module, kind = entry["type"].rsplit(".", 1)
        if (
            module == "cvl_pipeline.kedro.datasets.study"
        ):  # comes with the extra tuning, and so by its own name
            assert hasattr(study, kind), name
        else:
            assert module == "cvl_pipeline.kedro.datasets", name
            assert kind in datasets.__all__, name
        if name not in ("tuning_storage", "tuning_folder"):  # places, not files of their own
            assert Path(entry["filepath"]).stem == name
        files.add(entry["filepath"])
    assert len(files) == len(catalog)


def test_parameters_that_nodes_ask_for_exist(catalog: dict[str, Any]) -> None:
    parameters = CheckedConfigLoader(str(CONF), **CONFIG_LOADER_ARGS)["parameters"]
    for name in {name for pipeline in register_pipelines().values() for name in pipeline.inputs()}:
        if name.startswith("params:"):
            value: Any = parameters
            for part in name.removeprefix("params:").split("."):
                value = value[part]


def test_names_are_plain() -> None:
    for node in (node for pipeline in register_pipelines().values() for node in pipeline.nodes):
        assert re.fullmatch(r"[a-z_]+\.[a-z_]+", node.name)
