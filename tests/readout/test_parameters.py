from __future__ import annotations

from typing import Any

import pytest

from cvl_pipeline.errors import InputError
from cvl_pipeline.parameters import StageParameters
from cvl_pipeline.readout.parameters import READOUTS, REWARDS, GoalDistanceReward
from cvl_pipeline.schema import validated
from cvl_pipeline.testing.builders import reward_parameters

GOAL: dict[str, Any] = {
    "source": "goal_distance", "indices": (0, 3), "target": (1.0, -2.0), "scale": 0.5, "tolerance": 0.1,
}  # fmt: skip


def _refusal(stage: str = "reward", /, **settings: Any) -> str:
    """The error that a user sees."""
    with pytest.raises(InputError) as caught:
        validated(StageParameters, {stage: settings})
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("registry", [REWARDS, READOUTS], ids=lambda registry: registry.kind)
def test_every_setting_has_a_description_and_a_default(registry: Any) -> None:
    for name in registry.names:
        for field, info in registry.parameters(name).model_fields.items():
            assert info.description, (name, field)
            assert not info.is_required(), (name, field)


@pytest.mark.parametrize("source", ["dataset", "success", "my_rewards:fast", "package.module:Reward"])
def test_sources_without_a_goal_need_no_other_setting(source: str) -> None:
    assert reward_parameters(source=source).source == source


@pytest.mark.parametrize(
    "source",
    ["datasets", "", "module", "a:b:c", "../x:y", "/x:y", "a/b:c", "[bold]a:b", ":a", "a:", "..a:b", "$a$:b"],
)
def test_other_sources_are_refused_with_the_known_ones(source: str) -> None:
    message = _refusal(source=source)
    assert message.startswith(
        f"parameters: 'reward.source' is {source!r}: unknown reward source '{source}': "
    )
    known = "did you mean dataset?" if source == "datasets" else "known: dataset, success, goal_distance"
    assert known in message
    assert "module:function for one of your own" in message


@pytest.mark.parametrize(
    ("indices", "target"),
    [
        ([0, 3], [1.0, -2.0]),
        ("0 3", "1 -2"),  # Kedro's --params have no lists
        (" 0  3 ", "1.0 -2e0"),
    ],
)
def test_numbers_come_as_a_list_or_as_one_string(indices: Any, target: Any) -> None:
    parameters = reward_parameters(**GOAL | {"indices": indices, "target": target})
    assert isinstance(parameters, GoalDistanceReward)
    assert parameters.indices == (0, 3)
    assert parameters.target == (1.0, -2.0)


@pytest.mark.parametrize(("indices", "target"), [(3, 1), ("3", "1"), (3, 1.0)])
def test_a_single_number_needs_no_list(indices: Any, target: Any) -> None:
    """Kedro's --params convert it to a number first."""
    parameters = reward_parameters(**GOAL | {"indices": indices, "target": target})
    assert isinstance(parameters, GoalDistanceReward)
    assert parameters.indices == (3,)
    assert parameters.target == (1.0,)


NO_NUMBERS: list[tuple[str, str | float]] = [
    ("indices", "0,3"),
    ("indices", "0 x"),
    ("indices", "0.5 1"),
    ("target", "1 nan"),
]
NO_DISTANCES: list[tuple[str, str | float]] = [
    (field, value) for field in ("scale", "tolerance") for value in (0.0, -1.0, float("nan"), float("inf"))
]


@pytest.mark.parametrize(("field", "value"), NO_NUMBERS + NO_DISTANCES)
def test_a_value_that_is_no_number_or_no_distance_is_named(field: str, value: str | float) -> None:
    assert field in _refusal(**GOAL | {field: value})


@pytest.mark.parametrize("missing", ["indices", "target", "scale", "tolerance"])
def test_a_goal_that_lacks_something_is_refused(missing: str) -> None:
    assert _refusal(**GOAL | {missing: None}).endswith(f"goal_distance needs reward.{missing}")


def test_a_goal_that_lacks_several_settings_names_them() -> None:
    assert _refusal(source="goal_distance", indices=[0], target=[1.0]).endswith(
        "goal_distance needs reward.scale, reward.tolerance"
    )


@pytest.mark.parametrize(
    ("indices", "target", "counts"),
    [((0,), (1.0, 2.0), (1, 2)), ((0, 1, 2), (1.0,), (3, 1)), ((), (), (0, 0)), ("", "", (0, 0))],
)
def test_every_index_needs_its_target(indices: Any, target: Any, counts: tuple[int, int]) -> None:
    message = _refusal(**GOAL | {"indices": indices, "target": target})
    assert f"reward.indices has {counts[0]} entries and reward.target {counts[1]}" in message


@pytest.mark.parametrize("source", ["dataset", "success", "module:function"])
@pytest.mark.parametrize("field", ["indices", "target", "scale", "tolerance"])
def test_a_goal_is_for_goal_distance_alone(source: str, field: str) -> None:
    """Otherwise a missing source would silently label with the wrong reward."""
    message = _refusal(source=source, **{field: GOAL[field]})
    assert (
        f"unknown field 'reward.{field}': it belongs to source goal_distance; known with source {source}: "
        in (message)
    )


@pytest.mark.parametrize(
    ("changes", "folder"),
    [
        ({}, ""),
        ({"source": "success"}, "success"),
        (GOAL, "goal_distance"),
        ({"source": "package.module:fast"}, "package.module.fast"),
        ({"name": "mine"}, "mine"),
        ({"source": "success", "name": "v1.0_b-2"}, "v1.0_b-2"),
        ({"source": "package.module:fast", "name": "fast"}, "fast"),
    ],
)
def test_the_folder_is_the_name_or_follows_from_the_source(changes: dict[str, Any], folder: str) -> None:
    assert reward_parameters(**changes).folder == folder


def test_unknown_fields_are_refused() -> None:
    assert "unknown field 'reward.goal'" in _refusal(goal=1)
    assert "did you mean 'references'?" in _refusal("value_readout", reference=1)


# The readout itself.


@pytest.mark.parametrize(
    ("method", "field", "owners"),
    [
        ("random_fourier", "prototypes", "exact"),
        ("positive_random", "prototypes", "exact"),
        ("exact", "features", "random_fourier or positive_random"),
    ],
)
def test_some_settings_belong_to_other_methods(method: str, field: str, owners: str) -> None:
    message = _refusal("value_readout", method=method, **{field: 8})
    assert f"unknown field 'value_readout.{field}': it belongs to method {owners}; " in message
    owner = owners.split()[0]
    parameters: Any = READOUTS.validate({"method": owner, field: 8})
    assert getattr(parameters, field) == 8


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        ("value_readout", {"method": "random"}),
        ("value_readout", {"references": 0}),
        ("value_readout", {"reference_distribution": "rewards"}),
        ("value_readout", {"prototypes": 0}),
        ("value_readout", {"method": "positive_random", "features": 1}),
        ("value_readout", {"discount": 1.0}),
        ("value_readout", {"discount": 0.0}),
        ("value_readout", {"horizons": 0}),
        ("value_report", {"compared_transitions": 1}),
    ],
    ids=str,
)
def test_values_out_of_range_are_refused(stage: str, changes: dict[str, Any]) -> None:
    field = list(changes)[-1]
    assert f"'{stage}.{field}' is {changes[field]!r}" in _refusal(stage, **changes)


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "a/b", "../a", "/tmp/x", "a b", "a\\b", "a:b", "x\n", "[bold]", "$x$"]
)
def test_a_name_that_is_no_plain_folder_name_is_refused(name: str) -> None:
    assert "it names a folder" in _refusal(name=name)
