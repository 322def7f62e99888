from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from cvl_pipeline.sources.columns import Columns
from tests.sources.rows import mapping


@pytest.mark.parametrize(
    ("given_names", "names"),
    [
        ("x", ("x",)),
        ("x  y z", ("x", "y", "z")),
        (["a b", "c"], ("a b", "c")),
        (0, ("0",)),
        ([0, 1], ("0", "1")),
    ],
)
def test_names_come_as_a_list_or_as_one_string(given_names: Any, names: tuple[str, ...]) -> None:
    assert mapping(observations=given_names).observations == names


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"observations": None}, "observations"),
        ({"actions": ""}, "actions"),
        ({"actions": []}, "actions"),
        ({"rewards": ""}, "rewards"),
        ({"reward": "r"}, "reward"),
        ({"terminated": None, "truncated": None}, "one of groups, episode, terminated and truncated"),
        ({"groups": "demo_*", "episode": "id"}, "groups and episode both"),
        ({"terminated": "done", "truncated": "done"}, "both 'done'"),
        ({"action_count": 3}, "action_count is for discrete actions"),
        ({"discrete": True, "action_count": 1}, "action_count"),
    ],
)
def test_contradictory_columns_are_refused(changes: dict[str, Any], part: str) -> None:
    with pytest.raises(ValidationError) as caught:
        mapping(**changes)
    assert part in str(caught.value)


def test_every_field_has_a_default_and_a_description() -> None:
    assert Columns() == mapping(
        observations="observations",
        actions="actions",
        rewards="rewards",
        successes=None,
        next_observations=None,
    )
    for name, field in Columns.model_fields.items():
        assert field.description, name


def test_fields_that_are_null_have_no_columns() -> None:
    columns = Columns(observations="x y", successes="solved", groups="demo_*", truncated=None)
    assert columns.named() == {
        "observations": ("x", "y"), "actions": ("actions",), "rewards": ("rewards",), "successes": ("solved",),
        "terminated": ("terminated",),
    }  # fmt: skip
