from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from cvl_pipeline.trajectories.parameters import DatasetParameters, IngestionParameters

DATASET: dict[str, Any] = {
    "source": "metaworld",
    "task": "door-open-v3",
    "name": "{task}",
    "episodes": 4,
    "episode_steps": 10,
    "noise_max": 0.3,
    "random_max": 1.0,
    "random_hold": 20,
}
INGESTION: dict[str, Any] = {"validation_fraction": 0.1, "std_floor": 0.001, "workers": None}


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


@pytest.mark.parametrize("task", ["", "../reach-v3", "a/b", "reach v3", ".", "reach.v3", "{task}"])
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


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("validation_fraction", 0.0),
        ("validation_fraction", 1.0),
        ("std_floor", 0.0),
        ("workers", 0),
        ("workers", -1),
    ],
)
def test_ingestion_values_out_of_range_are_refused(field: str, value: object) -> None:
    with pytest.raises(ValidationError, match=field):
        IngestionParameters(**(INGESTION | {field: value}))


def test_workers_may_be_left_to_the_machine() -> None:
    assert IngestionParameters(**INGESTION).workers is None
    assert IngestionParameters(**(INGESTION | {"workers": 3})).workers == 3
