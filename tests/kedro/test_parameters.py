from __future__ import annotations

import copy
from typing import Any

import pytest

from cvl_pipeline.errors import InputError
from cvl_pipeline.kedro.configuration import CheckedConfigLoader
from cvl_pipeline.kedro.parameters import (
    READ,
    WITHOUT_EFFECT,
    RunParameters,
    check_parameters,
    counted_parameters,
)
from cvl_pipeline.kedro.pipeline_registry import register_pipelines
from cvl_pipeline.kedro.settings import CONFIG_LOADER_ARGS
from tests.project import CONF


@pytest.fixture(scope="module")
def base() -> dict[str, Any]:
    return CheckedConfigLoader(str(CONF), **CONFIG_LOADER_ARGS)["parameters"]


def _changed(base: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(base)
    *parents, last = name.split(".")
    place = changed
    for parent in parents:
        place = place[parent]
    place[last] = value
    return changed


def _refusal(raw: dict[str, Any]) -> str:
    with pytest.raises(InputError) as caught:
        check_parameters(raw)
    message = str(caught.value)
    assert "\n" not in message, "one line"
    return message


def test_the_base_files_are_valid_and_arrive_typed(base: dict[str, Any]) -> None:
    parameters = check_parameters(base)
    assert isinstance(parameters, RunParameters)
    assert parameters.contrastive_dynamics.hidden == (256, 256)
    assert parameters.data_ingestion.workers is None


@pytest.mark.parametrize(
    ("name", "suggestion", "known"),
    [
        ("sed", "seed", "policy_extraction"),
        ("dataset.episode", "episodes", "noise_max"),
        ("contrastive_dynamics.temperatur", "temperature", "representation_size"),
        ("contrastive_dynamics.training.step", "steps", "learning_rate"),
        ("policy_extraction.training.batchsize", "batch_size", "accelerator"),
        ("value_readout.reference", "references", "references"),
        ("value_readout.prototype", "prototypes", "self_normalised"),
        ("reward.sourc", "source", "tolerance"),
        ("policy_extraction.proposal", "proposals", "cloning_share"),
        ("evaluation.confidense", "confidence", "workers"),
    ],
)
def test_a_typo_names_the_field_the_closest_and_the_known_ones(
    base: dict[str, Any], name: str, suggestion: str, known: str
) -> None:
    message = _refusal(_changed(base, name, 1))
    assert f"unknown field '{name}': did you mean '{suggestion}'?" in message
    assert known in message


def test_a_field_like_no_other_lists_the_known_ones(base: dict[str, Any]) -> None:
    message = _refusal(_changed(base, "value_readout.zzzz", 1))
    assert "unknown field 'value_readout.zzzz': known here: method, self_normalised, references" in message


@pytest.mark.parametrize(
    "name", ["seed", "contrastive_dynamics.discount", "policy_extraction.training.steps"]
)
def test_a_missing_field_is_named(base: dict[str, Any], name: str) -> None:
    changed = copy.deepcopy(base)
    *parents, last = name.split(".")
    place = changed
    for parent in parents:
        place = place[parent]
    del place[last]
    assert f"field '{name}' is missing" in _refusal(changed)


@pytest.mark.parametrize(
    ("name", "value", "parts"),
    [
        ("seed", -1, ["greater than or equal to 0"]),
        ("seed", "many", ["valid integer"]),
        ("seed", None, ["valid integer"]),
        ("dataset", 3, ["valid dictionary"]),
        ("dataset.source", "ogbench", ["'metaworld'"]),
        ("dataset.episodes", 1, ["greater than or equal to 2"]),
        ("dataset.task", "a b", ["such as door-open-v3"]),
        ("dataset.name", "../x", ["it names a folder"]),
        ("dataset.path", "s3://lab/log.hdf5", ["of this machine: download it first"]),
        ("dataset.noise_max", float("inf"), ["finite"]),
        ("contrastive_dynamics.discount", 1.0, ["less than 1"]),
        ("contrastive_dynamics.discount", 0, ["greater than 0"]),
        ("contrastive_dynamics.loss", "hinge", ["'symmetric_infonce', 'infonce' or 'nce'"]),
        ("contrastive_dynamics.logsumexp_penalty", -0.1, ["greater than or equal to 0"]),
        ("contrastive_dynamics.segments_per_episode", 0, ["greater than or equal to 1"]),
        ("contrastive_dynamics.horizon_conditioning", "perhaps", ["valid boolean"]),
        ("contrastive_dynamics.training.precision", "float16", ["'float32' or 'bfloat16'"]),
        ("contrastive_dynamics.hidden", 256, ["valid tuple"]),
        ("contrastive_dynamics.temperature", 0.0, ["greater than 0"]),
        ("contrastive_dynamics.learned_temperature", "perhaps", ["valid boolean"]),
        ("contrastive_dynamics.training.steps", 2.5, ["valid integer"]),
        ("contrastive_dynamics.training.batch_size", 1, ["greater than or equal to 2"]),
        ("data.root", "../x", ["without '..'"]),
        ("data.root", "", ["must be a folder"]),
        ("data.root", "~/data", ["must be a folder"]),
        ("data.root", "s3://lab/../x", ["without '..'"]),
        ("data.root", "simplecache::s3://lab/x", ["URL of one file system"]),
        ("data.root", "file:///data", ["URL of one file system"]),
        ("data.cache", "s3://lab/cache", ["must be a folder of this machine"]),
        ("reward.source", "returns", ["must be dataset, success, goal_distance or module:function"]),
        ("reward.name", "../x", ["it names a folder"]),
        ("reward.scale", -1.0, ["greater than 0"]),
        ("value_readout.references", 0, ["greater than or equal to 1"]),
        ("value_readout.method", "fourier", ["'exact', 'random_fourier' or 'positive_random'"]),
        ("value_readout.discount", 1.0, ["less than 1"]),
        ("policy_extraction.objective", "sac", ["'awr', 'ddpg_bc', 'best_of_n', 'published' or 'bc'"]),
        ("policy_extraction.beta", -1.0, ["greater than or equal to 0"]),
        ("policy_extraction.proposals", 0, ["greater than or equal to 1"]),
        ("policy_extraction.cloning_share", 1.5, ["less than or equal to 1"]),
        ("policy_extraction.entropy_weight", -1.0, ["greater than or equal to 0"]),
        ("evaluation.confidence", 95, ["less than 1"]),
        ("evaluation.workers", 0, ["greater than or equal to 1"]),
    ],
)
def test_a_value_that_cannot_be_is_named_with_what_may_be(
    base: dict[str, Any], name: str, value: Any, parts: list[str]
) -> None:
    message = _refusal(_changed(base, name, value))
    assert f"'{name}' is {value!r}: " in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize("stage", ["contrastive_dynamics", "policy_extraction"])
@pytest.mark.parametrize("hidden", [[256, 0], [-3], ["wide"]])
def test_a_layer_without_units_is_refused(base: dict[str, Any], stage: str, hidden: list[Any]) -> None:
    assert f"'{stage}.hidden." in _refusal(_changed(base, f"{stage}.hidden", hidden))


def test_an_accelerator_that_lightning_does_not_know_is_refused(base: dict[str, Any]) -> None:
    # Before anything is collected, not after minutes in the simulator.
    name = "contrastive_dynamics.training.accelerator"
    assert name in _refusal(_changed(base, name, "quantum"))


def test_values_that_do_not_go_together_are_told_by_the_stage_that_they_are_in(base: dict[str, Any]) -> None:
    raw = _changed(base, "contrastive_dynamics.representation", "raw")
    message = _refusal(_changed(raw, "contrastive_dynamics.learned_temperature", True))
    assert "'contrastive_dynamics': learned_temperature needs unit_norm representations" in message
    raw = _changed(base, "value_readout.method", "positive_random")
    message = _refusal(_changed(raw, "value_readout.prototypes", 8))
    assert "'value_readout': prototypes are for method exact, not positive_random" in message
    assert "'reward': goal_distance needs" in _refusal(_changed(base, "reward.source", "goal_distance"))


def test_values_of_two_stages_that_do_not_go_together_are_told_with_both(base: dict[str, Any]) -> None:
    raw = _changed(base, "value_readout.discount", 0.5)
    message = _refusal(raw)
    assert message.startswith("parameters: value_readout.discount is 0.5, but contrastive_dynamics.discount")
    assert "horizon_conditioning=true" in message
    check_parameters(_changed(raw, "contrastive_dynamics.horizon_conditioning", True))
    check_parameters(_changed(base, "value_readout.discount", base["contrastive_dynamics"]["discount"]))


@pytest.mark.parametrize("root", ["data", "their/data", "/data", "s3://lab", "s3://lab/me/", "gs://lab/me"])
def test_data_may_lie_in_a_folder_or_at_a_url(base: dict[str, Any], root: str) -> None:
    assert check_parameters(_changed(base, "data.root", root)).data.root == root.rstrip("/")


def test_credentials_without_a_url_are_refused(base: dict[str, Any]) -> None:
    assert "data.credentials is for a data.root that is a URL" in _refusal(
        _changed(base, "data.credentials", "lab")
    )
    at_url = _changed(base, "data.root", "s3://lab")
    assert check_parameters(_changed(at_url, "data.credentials", "lab")).data.credentials == "lab"


def test_all_faults_are_told_at_once(base: dict[str, Any]) -> None:
    message = _refusal(_changed(_changed(base, "seed", -1), "evaluation.episodes", 0))
    assert "'seed' is -1" in message
    assert "'evaluation.episodes' is 0" in message


def _parameters() -> RunParameters:
    return check_parameters(CheckedConfigLoader(str(CONF), **CONFIG_LOADER_ARGS)["parameters"])


def _names(values: dict[str, Any], prefix: str = "") -> set[str]:
    names = set()
    for name, value in values.items():
        names |= _names(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}"}
    return names


def test_what_is_said_to_count_or_not_exists() -> None:
    assert set(WITHOUT_EFFECT) <= _names(_parameters().model_dump())
    nodes = {node.name: node for node in register_pipelines()["__default__"].nodes}
    for node, (stage, fields) in READ.items():
        assert f"params:{stage}" in nodes[node].inputs
        assert set(fields) < set(type(getattr(_parameters(), stage)).model_fields)


def test_every_field_without_exception_counts_for_the_nodes_that_are_given_it() -> None:
    counted = {
        name
        for pipeline in register_pipelines().values()
        for node in pipeline.nodes
        for name in counted_parameters(node.name, node.inputs, _parameters())
    }
    assert counted == _names(_parameters().model_dump()) - set(WITHOUT_EFFECT)


def test_a_node_counts_what_it_is_given_and_reads() -> None:
    found = counted_parameters(
        "evaluation.score", ["rewards", "params:evaluation", "params:seed"], _parameters()
    )
    assert found == {"evaluation.environment": None, "seed": 0}
    found = counted_parameters("a.node", ["params:reward.source", "params:se"], _parameters())
    assert found == {"reward.source": "dataset"}
    found = counted_parameters("a.node", ["parameters"], _parameters())
    assert set(found) == _names(_parameters().model_dump()) - set(WITHOUT_EFFECT)
