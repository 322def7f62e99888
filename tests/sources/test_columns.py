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
def test_a_mapping_that_cannot_be_meant_is_refused(changes: dict[str, Any], part: str) -> None:
    with pytest.raises(ValidationError) as caught:
        mapping(**changes)
    assert part in str(caught.value)


@pytest.mark.parametrize("field", list(Columns.model_fields))
def test_every_field_must_be_spelled(field: str) -> None:
    values = mapping().model_dump()
    del values[field]
    with pytest.raises(ValidationError, match=rf"{field}\s+Field required"):
        Columns(**values)
