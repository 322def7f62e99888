from __future__ import annotations

import copy
from typing import Any, get_args

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from cvl_pipeline.errors import InputError
from cvl_pipeline.kedro.parameters import RunParameters, check_parameters, counted_parameters, is_given
from cvl_pipeline.kedro.pipeline_registry import plan_for, register_pipelines
from cvl_pipeline.parameters import RENAMED
from cvl_pipeline.schema import (
    Strict,
    choice_of,
    effective,
    fields_at,
    flattened,
    operational_at,
    submodel,
    validated,
)
from tests.kedro.sessions import make_loader


@pytest.fixture(scope="module")
def base() -> dict[str, Any]:
    return make_loader()["parameters"]


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


def _models(model: type[Strict]) -> set[type[Strict]]:
    """A model and all models that its fields lead to, those of all alternatives."""
    found = {model}
    for name in model.model_fields:
        choice = choice_of(model, name)
        inner = [choice.registry.parameters(label) for label in choice.registry.names] if choice else []
        if not choice and (group := submodel(model, name)) is not None:
            inner = [group]  # type: ignore[list-item]
        for part in inner:
            found |= _models(part)
    return found


def _holds_integers(annotation: Any) -> bool:
    return int in (annotation, *get_args(annotation)) or any(map(_holds_integers, get_args(annotation)))


INTEGERS = sorted(
    (
        (model, name)
        for model in _models(RunParameters)
        for name, info in model.model_fields.items()
        if _holds_integers(info.annotation)
    ),
    key=str,
)
"""Every field of whole numbers, single ones or lists. The bounds of a search, which are none of these, must be values
that the searched parameter accepts."""


def test_the_fields_of_whole_numbers_are_found() -> None:
    assert len(INTEGERS) > 45
    names = {name for _, name in INTEGERS}
    assert names >= {
        "seed",
        "hidden",
        "batch_size",
        "references",
        "features",
        "workers",
        "devices",
        "indices",
    }


@pytest.mark.parametrize(("model", "name"), INTEGERS)
@given(
    value=st.one_of(
        st.booleans(),
        st.floats(allow_nan=False),
        st.integers(10**12),
        st.integers(max_value=-1),
        st.text(max_size=3),
    )
)
@example(value=True)
@example(value=1.0)
@example(value="3")
@example(value=10**12)
@settings(max_examples=20, deadline=None)
def test_a_whole_number_is_refused_unless_it_is_one_within_its_bounds(
    model: type[Strict], name: str, value: Any
) -> None:
    several = "tuple" in str(model.model_fields[name].annotation)
    if name == "indices" and isinstance(value, int):
        assume(isinstance(value, bool) or value >= 10**12)  # a negative index counts from the end
    with pytest.raises(InputError) as caught:
        validated(model, {name: [value] if several else value})
    assert f"'{name}{'.0' if several else ''}' is {value!r}: input should be" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("contrastive_dynamics.temperature", True),
        ("contrastive_dynamics.temperature", "0.1"),
        ("tuned", 1),
        ("tuned", "yes"),
        ("value_readout.self_normalised", 0.0),
    ],
)
def test_numbers_and_flags_are_taken_literally(base: dict[str, Any], name: str, value: Any) -> None:
    assert f"'{name}' is {value!r}: input should be a valid" in _refusal(_changed(base, name, value))


def test_a_whole_number_counts_as_a_number(base: dict[str, Any]) -> None:
    parameters = check_parameters(_changed(base, "contrastive_dynamics.temperature", 1))
    assert parameters.contrastive_dynamics.temperature == 1.0


def test_a_network_has_a_limited_number_of_layers(base: dict[str, Any]) -> None:
    assert "at most 64" in _refusal(_changed(base, "contrastive_dynamics.hidden", [8] * 65))


@pytest.mark.parametrize("field", ["root", "cache"])
def test_a_folder_of_artifacts_has_no_braces(base: dict[str, Any], field: str) -> None:
    assert "without braces" in _refusal(_changed(base, f"data.{field}", "/tmp/{x}"))


def test_the_base_files_are_valid_and_typed(base: dict[str, Any]) -> None:
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
        ("reward.sourc", "source", "name"),
        ("policy_extraction.max_weigh", "max_weight", "state_value"),
        ("policy_extraction.state_value.action", "actions", "name"),
        ("baselines.bc.training.step", "steps", "learning_rate"),
        ("baselines.bc.hiden", "hidden", "encoder"),
        ("contrastive_dynamics.loss.logsumexp_penaltie", "logsumexp_penalty", "name"),
        ("evaluation.confidense", "confidence", "workers"),
    ],
)
def test_a_typo_is_reported_with_the_closest_and_the_known_fields(
    base: dict[str, Any], name: str, suggestion: str, known: str
) -> None:
    message = _refusal(_changed(base, name, 1))
    assert f"unknown field '{name}': did you mean '{suggestion}'?" in message
    assert known in message


def test_an_unknown_field_without_a_close_one_lists_the_known_ones(base: dict[str, Any]) -> None:
    message = _refusal(_changed(base, "value_readout.zzzz", 1))
    assert (
        "unknown field 'value_readout.zzzz': known with method exact: method, self_normalised, references"
        in message
    )


@pytest.mark.parametrize(
    ("name", "owner"),
    [
        ("policy_extraction.proposals", "objective best_of_n"),
        ("value_readout.features", "method random_fourier or positive_random"),
        ("dataset.path", "source d4rl or ogbench or minari or lerobot or files"),
        ("reward.target", "source goal_distance"),
        ("baselines.bc.expectile", "method iql"),
        ("policy_extraction.state_value.steps", "name fitted_value"),
    ],
)
def test_a_setting_of_another_alternative_is_reported_with_its_owner(
    base: dict[str, Any], name: str, owner: str
) -> None:
    assert f"unknown field '{name}': it belongs to {owner}; known with " in _refusal(_changed(base, name, 1))


@pytest.mark.parametrize("old", RENAMED)
def test_old_spellings_are_reported_with_the_new_ones(base: dict[str, Any], old: str) -> None:
    assert _refusal(_changed(base, old, 1)) == f"parameters: '{old}' is now '{RENAMED[old]}'"
    *parents, last = RENAMED[old].split(".")
    assert last in fields_at(RunParameters, parents)
    *parents, last = old.split(".")
    assert last not in fields_at(RunParameters, parents)


def test_every_field_has_a_default() -> None:
    parameters = check_parameters({})
    assert parameters == RunParameters()
    assert parameters.policy_extraction.training.steps == 2000
    assert list(parameters.baselines) == ["bc"]


@pytest.mark.parametrize(
    ("name", "value", "parts"),
    [
        ("seed", -1, ["greater than or equal to 0"]),
        ("seed", "many", ["valid integer"]),
        ("seed", None, ["valid integer"]),
        ("dataset", 3, ["must be a mapping"]),
        ("dataset.source", "xyz", ["known: metaworld, pointmaze", "or module:Class"]),
        ("dataset.source", "json:dumps", ["is not a subclass of cvl_pipeline.sources.base.Source"]),
        ("dataset.source", "no_such:Source", ["cannot be imported", "on the Python path?"]),
        ("dataset.episodes", 1, ["greater than or equal to 2"]),
        ("dataset.task", "a b", ["such as door-open-v3"]),
        ("dataset.name", "../x", ["it names a folder"]),
        ("dataset.noise_max", float("inf"), ["finite"]),
        ("contrastive_dynamics.discount", 1.0, ["less than 1"]),
        ("contrastive_dynamics.discount", 0, ["greater than 0"]),
        ("contrastive_dynamics.loss", "hinge", ["known: symmetric_infonce, infonce, nce"]),
        ("contrastive_dynamics.loss.name", "hinge", ["known: symmetric_infonce, infonce, nce"]),
        ("contrastive_dynamics.loss.logsumexp_penalty", -0.1, ["greater than or equal to 0"]),
        ("contrastive_dynamics.encoder.name", "cnn", ["unknown encoder 'cnn'", "auto, identity"]),
        ("contrastive_dynamics.segments_per_episode", 0, ["greater than or equal to 1"]),
        ("contrastive_dynamics.horizon_conditioning", "perhaps", ["valid boolean"]),
        ("contrastive_dynamics.hidden", {"a": 1}, ["valid tuple"]),
        ("contrastive_dynamics.temperature", 0.0, ["greater than 0"]),
        ("contrastive_dynamics.learned_temperature", "perhaps", ["valid boolean"]),
        ("contrastive_dynamics.training.steps", 2.5, ["valid integer"]),
        ("data.root", "../x", ["without '..'"]),
        ("data.root", "", ["must be a folder"]),
        ("data.root", "~nobody-here/data", ["no home folder '~nobody-here'", "write the whole path"]),
        ("data.cache", "~/../x", ["without '..'"]),
        ("data.root", "s3://lab/../x", ["without '..'"]),
        ("data.root", "simplecache::s3://lab/x", ["URL of one file system"]),
        ("data.root", "file:///data", ["URL of one file system"]),
        ("data.cache", "s3://lab/cache", ["must be a folder of this machine"]),
        ("reward.source", "returns", ["known: dataset, success, goal_distance", "or module:function"]),
        ("reward.name", "../x", ["it names a folder"]),
        ("value_readout.references", 0, ["greater than or equal to 1"]),
        ("value_readout.method", "fourier", ["did you mean random_fourier?"]),
        ("value_report.compared_transitions", 1, ["greater than or equal to 2"]),
        ("value_readout.discount", 1.0, ["less than 1"]),
        ("value_readout.regression", 3, ["valid dictionary"]),
        ("value_readout.regression.steps", 0, ["greater than or equal to 1"]),
        ("value_readout.regression.value_steps", 0, ["greater than or equal to 1"]),
        ("value_readout.regression.hidden", {"a": 1}, ["valid tuple"]),
        ("value_readout.regression.batch_size", 0, ["greater than or equal to 1"]),
        ("value_readout.regression.learning_rate", 0.0, ["greater than 0"]),
        ("policy_extraction.objective", "sac", ["known: awr, ddpg_bc, best_of_n, published, bc"]),
        ("policy_extraction.beta", -1.0, ["greater than or equal to 0"]),
        ("baselines", 3, ["must be a mapping from labels to settings"]),
        ("baselines.bc", 3, ["must be a mapping"]),
        ("baselines.bc.method", "sac", ["unknown method 'sac'", "known: cvl, bc, "]),
        ("evaluation.confidence", 95, ["less than 1"]),
        ("evaluation.workers", 0, ["greater than or equal to 1"]),
    ],
)
def test_a_wrong_value_is_reported_with_the_accepted_ones(
    base: dict[str, Any], name: str, value: Any, parts: list[str]
) -> None:
    message = _refusal(_changed(base, name, value))
    assert message.startswith("parameters: ")
    assert f"'{name}' is {value!r}: " in message or isinstance(value, dict)
    assert f"'{name}'" in message
    assert "; '" not in message, "one fault is reported once, not for every baseline again"
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("data.root", "sftp://me:S3CR3T@host/data", "sftp://me:***@host/data"),
        ("data.root", "s3://lab/data?secret=S3CR3T", "s3://lab/data?secret=***"),
        ("tuning.storage", "postgresql://me:S3CR3T@host/db", "postgresql://me:***@host/db"),
    ],
)
def test_a_password_is_refused_without_its_text(
    base: dict[str, Any], name: str, value: str, shown: str
) -> None:
    message = _refusal(_changed(base, name, value))
    assert f"'{name}' is '{shown}': must " in message
    assert "credentials.yml" in message


@pytest.mark.parametrize(
    ("choice", "name", "value", "part"),
    [
        ({"dataset": {"source": "files"}}, "dataset.path", "s3://lab/log.hdf5", "download it first"),
        ({"reward": {"source": "goal_distance", "indices": 0, "target": 0, "tolerance": 1}}, "reward.scale", -1.0,
         "greater than 0"),
        ({"policy_extraction": {"objective": "best_of_n"}}, "policy_extraction.proposals", 0,
         "greater than or equal to 1"),
        ({"policy_extraction": {"objective": "published"}}, "policy_extraction.cloning_share", 1.5,
         "less than or equal to 1"),
        ({"policy_extraction": {"objective": "published"}}, "policy_extraction.entropy_weight", -1.0,
         "greater than or equal to 0"),
        ({"value_readout": {"method": "random_fourier"}}, "value_readout.features", 1,
         "greater than or equal to 2"),
        ({"baselines": {"iql": {}}}, "baselines.iql.expectile", 0.5, "greater than 0.5"),
    ],
)  # fmt: skip
def test_a_wrong_setting_of_an_alternative_is_reported_by_its_full_name(
    choice: dict[str, Any], name: str, value: Any, part: str
) -> None:
    message = _refusal(_changed(choice, name, value))
    assert f"'{name}' is {value!r}: " in message
    assert part in message


@pytest.mark.parametrize(
    ("baselines", "part"),
    [
        ({"cvl": {}}, "baselines: 'cvl' is the name of CVL itself; choose another name"),
        (
            {"behaviour": {"method": "bc"}},
            "baselines: 'behaviour' is the name of the data in the results; choose",
        ),
        (
            {"dynamics": {"method": "iql"}},
            "baselines: 'dynamics' is the name of the critic's history; choose",
        ),
        ({"critic": {"method": "iql"}}, "baselines: 'critic' is the name of a folder of logs; choose"),
        ({"results": {"method": "iql"}}, "baselines: 'results' is the name of a folder of logs; choose"),
        (
            {"reward_free_bc": {"method": "iql"}},
            "baselines: 'reward_free_bc' begins with 'reward_free_', as the",
        ),
        ({"mine": {}}, "'baselines.mine': names no method: set its method to one of cvl, bc, "),
        ({"No": {}}, "'baselines.No': must be lower-case letters, digits and '_'"),
    ],
)
def test_a_baseline_without_a_usable_name_or_method_is_refused(baselines: dict[str, Any], part: str) -> None:
    assert part in _refusal({"baselines": baselines})


@pytest.mark.parametrize("stage", ["contrastive_dynamics", "policy_extraction"])
def test_a_layer_without_units_is_refused(base: dict[str, Any], stage: str) -> None:
    assert f"'{stage}.hidden.1' is 0: " in _refusal(_changed(base, f"{stage}.hidden", [256, 0]))


def test_values_that_do_not_go_together_are_reported_with_their_stage(base: dict[str, Any]) -> None:
    raw = _changed(base, "contrastive_dynamics.representation", "raw")
    message = _refusal(_changed(raw, "contrastive_dynamics.learned_temperature", True))
    assert "'contrastive_dynamics': learned_temperature needs unit_norm representations" in message
    raw = _changed(base, "value_readout.method", "positive_random")
    message = _refusal(_changed(raw, "value_readout.prototypes", 8))
    assert "'value_readout.prototypes': it belongs to method exact; known with method positive" in message
    assert "'reward': goal_distance needs" in _refusal(_changed(base, "reward.source", "goal_distance"))


def test_values_of_two_stages_that_do_not_go_together_are_reported_with_both(base: dict[str, Any]) -> None:
    raw = _changed(base, "value_readout.discount", 0.5)
    assert _refusal(raw) == (
        "parameters: value_readout.discount is 0.5, but contrastive_dynamics.discount is 0.83, which is longer: lower "
        "that, raise value_readout.discount (null: the same), or set contrastive_dynamics.horizon_conditioning=true, "
        "for any discount"
    )
    check_parameters(_changed(raw, "contrastive_dynamics.horizon_conditioning", True))
    check_parameters(_changed(base, "value_readout.discount", base["contrastive_dynamics"]["discount"]))
    raw = _changed(base, "contrastive_dynamics.discount", 0.99)
    assert "value_readout.discount is 0.97, but contrastive_dynamics.discount is 0.99" in _refusal(raw)
    check_parameters(_changed(raw, "value_readout.discount", None))


def test_the_defaults_of_the_first_version_are_accepted(base: dict[str, Any]) -> None:
    raw = _changed(base, "contrastive_dynamics.discount", 0.97)
    readout = check_parameters(_changed(raw, "value_readout.regression", None)).value_readout
    assert (readout.discount, readout.regression) == (0.97, None)


@pytest.mark.parametrize("root", ["data", "their/data", "/data", "s3://lab", "s3://lab/me/", "gs://lab/me"])
def test_data_may_be_in_a_folder_or_at_a_url(base: dict[str, Any], root: str) -> None:
    assert check_parameters(_changed(base, "data.root", root)).data.root == root.rstrip("/")


def test_credentials_without_a_url_are_refused(base: dict[str, Any]) -> None:
    assert "data.credentials is for a data.root that is a URL" in _refusal(
        _changed(base, "data.credentials", "lab")
    )
    at_url = _changed(base, "data.root", "s3://lab")
    assert check_parameters(_changed(at_url, "data.credentials", "lab")).data.credentials == "lab"


def test_all_faults_are_reported_at_once(base: dict[str, Any]) -> None:
    message = _refusal(_changed(_changed(base, "seed", -1), "evaluation.episodes", 0))
    assert "'seed' is -1" in message
    assert "'evaluation.episodes' is 0" in message


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"dataset": {"source": "files", "path": "x.csv"}, "evaluation": {"environment": "Hopper-v5"}},
        {"policy_extraction": {"objective": "published"}, "baselines": {"iql": {}, "bc": {}}},
        {"value_readout": {"method": "random_fourier"}, "reward": {"source": "my_rewards:speed"}},
    ],
)
def test_every_effective_field_counts_for_some_node(values: dict[str, Any]) -> None:
    parameters = check_parameters(values)
    plan_for(parameters)
    pipelines = register_pipelines()
    nodes = (pipelines["__default__"] + pipelines["export"]).nodes
    inputs = {name for node in nodes for name in node.inputs}
    counted = counted_parameters(inputs, parameters)
    operational = {name for name in flattened(parameters.model_dump()) if operational_at_any(name)}
    assert counted.keys().isdisjoint(operational)
    of_stages = {name for name in effective(parameters) if not name.startswith("tuning.")}
    assert counted.keys() == of_stages
    searched = counted_parameters(["parameters"], parameters)
    assert searched == effective(parameters)
    assert searched.keys() > of_stages


def operational_at_any(name: str) -> bool:
    """Whether a field, or a group that it is in, changes no result."""
    parts = name.split(".")
    if parts[0] == "baselines":  # by a label
        parts = ["policy_extraction", *parts[2:]]
    return any(operational_at(RunParameters, parts[: end + 1]) for end in range(len(parts)))


def test_fields_that_change_no_result_do_not_count() -> None:
    counted = counted_parameters(["parameters"], RunParameters())
    for name in (
        "data.root", "data_ingestion.workers", "evaluation.workers", "tuned",
        "contrastive_dynamics.training.devices", "policy_extraction.training.loggers",
        "baselines.bc.training.checkpoint_seconds",
    ):  # fmt: skip
        assert name in flattened(RunParameters().model_dump()), name
        assert name not in counted
    files = check_parameters({"dataset": {"source": "files", "path": "x.csv"}})
    assert "dataset.path" not in counted_parameters(["params:dataset"], files)  # its content counts


def test_a_node_counts_only_the_parameters_that_it_is_given() -> None:
    found = counted_parameters(["rewards", "params:evaluation.environment", "params:seed"], RunParameters())
    assert found == {"evaluation.environment": None, "seed": 0}
    found = counted_parameters(["params:reward.source", "params:se"], RunParameters())
    assert found == {"reward.source": "dataset"}
    assert is_given("baselines.bc.training.steps", ["params:baselines.bc"])
    assert not is_given("baselines.bc2", ["params:baselines.bc"])


def test_only_methods_in_force_are_exported(base: dict[str, Any]) -> None:
    message = _refusal(_changed(base, "export.methods", ["cvl", "iql"]))
    assert "there is no method 'iql'; in force are cvl, bc" in message
    assert "twice" in _refusal(_changed(base, "export.methods", ["bc", "bc"]))
    assert check_parameters(_changed(base, "export.methods", "cvl bc")).export.methods == ("cvl", "bc")
