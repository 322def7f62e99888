from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from cvl_pipeline.testing.builders import readout_parameters, reward_parameters

GOAL: dict[str, Any] = {
    "source": "goal_distance", "indices": (0, 3), "target": (1.0, -2.0), "scale": 0.5, "tolerance": 0.1,
}  # fmt: skip


def _refusal(**changes: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        reward_parameters(**changes)
    return str(caught.value)


@pytest.mark.parametrize("source", ["dataset", "success", "my_rewards:fast", "package.module:Reward"])
def test_sources_without_a_goal_need_nothing_else(source: str) -> None:
    assert reward_parameters(source=source).source == source


@pytest.mark.parametrize(
    "source",
    ["datasets", "", "module", "a:b:c", "../x:y", "/x:y", "a/b:c", "[bold]a:b", ":a", "a:", "..a:b", "$a$:b"],
)
def test_other_sources_are_refused_with_the_known_ones(source: str) -> None:
    assert "must be dataset, success, goal_distance or module:function" in _refusal(source=source)


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
    assert parameters.indices == (0, 3)
    assert parameters.target == (1.0, -2.0)


@pytest.mark.parametrize(("indices", "target"), [(3, 1), ("3", "1"), (3, 1.0)])
def test_a_single_number_needs_no_list(indices: Any, target: Any) -> None:
    """Kedro's --params convert it to a number first."""
    parameters = reward_parameters(**GOAL | {"indices": indices, "target": target})
    assert parameters.indices == (3,)
    assert parameters.target == (1.0,)


@pytest.mark.parametrize(
    ("field", "value"), [("indices", "0,3"), ("indices", "0 x"), ("indices", "0.5 1"), ("target", "1 nan")]
)
def test_what_is_no_number_is_named(field: str, value: str) -> None:
    assert field in _refusal(**GOAL | {field: value})


@pytest.mark.parametrize("missing", ["indices", "target", "scale", "tolerance"])
def test_a_goal_that_lacks_something_is_refused(missing: str) -> None:
    message = _refusal(**GOAL | {missing: None})
    assert "goal_distance needs reward.indices, target, scale and tolerance" in message


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
    assert f"are for goal_distance, not {source}" in _refusal(source=source, **{field: GOAL[field]})


@pytest.mark.parametrize("field", ["scale", "tolerance"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_distances_are_positive(field: str, value: float) -> None:
    assert field in _refusal(**GOAL | {field: value})


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../a", "a b", "a\\b", "a:b", "a\n"])
def test_a_name_that_is_no_folder_name_is_refused(name: str) -> None:
    assert "it names a folder" in _refusal(name=name)


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
    assert "goal" in _refusal(goal=1)


# The readout itself.


@pytest.mark.parametrize("method", ["random_fourier", "positive_random"])
def test_prototypes_are_for_the_exact_method(method: str) -> None:
    with pytest.raises(ValidationError, match=f"prototypes are for method exact, not {method}"):
        readout_parameters(method=method, prototypes=8)
    assert readout_parameters(prototypes=8).prototypes == 8


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "random"},
        {"references": 0},
        {"reference_distribution": "rewards"},
        {"prototypes": 0},
        {"features": 1},
        {"discount": 1.0},
        {"discount": 0.0},
        {"horizons": 0},
        {"compared_transitions": 1},
    ],
    ids=str,
)
def test_values_out_of_range_are_refused(changes: dict[str, Any]) -> None:
    (field,) = changes
    with pytest.raises(ValidationError, match=field):
        readout_parameters(**changes)


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "/tmp/x", "a b", "x\n", "[bold]", "$x$"])
def test_a_name_that_is_no_plain_folder_name_is_refused(name: str) -> None:
    assert "it names a folder" in _refusal(name=name)
