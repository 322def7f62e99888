from __future__ import annotations

import pytest
from pydantic import ValidationError

from cvl_pipeline.sources.parameters import DatasetParameters
from cvl_pipeline.testing.builders import DATASET


@pytest.mark.parametrize(
    ("name", "folder"),
    [("{task}", "door-open-v3"), ("{task}-smoke", "door-open-v3-smoke"), ("my_data.2", "my_data.2")],
)
def test_folder_is_the_name_with_the_task_filled_in(name: str, folder: str) -> None:
    assert DatasetParameters(**(DATASET | {"name": name})).folder == folder


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "a/b", "/tmp/x", "..\\x", "a b", "{seed}", "{task}/x", "x\n", "${x}"]
)
def test_a_name_that_is_no_plain_folder_name_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="it names a folder"):
        DatasetParameters(**(DATASET | {"name": name}))


@pytest.mark.parametrize("task", ["", "../reach-v3", "reach v3", ".", "a/../b", "{task}", "/etc"])
def test_a_task_that_is_no_word_is_refused(task: str) -> None:
    with pytest.raises(ValidationError, match="such as door-open-v3"):
        DatasetParameters(**(DATASET | {"task": task}))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("source", "ogbench"),
        ("episodes", 1),
        ("episodes", 2.5),
        ("episode_steps", 0),
        ("episode_steps", 501),
        ("noise_max", -0.1),
        ("random_max", 1.01),
        ("random_max", -0.01),
        ("random_hold", 0),
    ],
)
def test_dataset_values_out_of_range_are_refused(field: str, value: object) -> None:
    with pytest.raises(ValidationError, match=field):
        DatasetParameters(**(DATASET | {field: value}))
