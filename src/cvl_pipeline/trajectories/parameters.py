"""Parameters of the dataset and of the data_ingestion stage."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator

from cvl_pipeline.training.parameters import Strict


class DatasetParameters(Strict):
    """Which episodes, and the name that their artifacts are filed under."""

    source: Literal["metaworld"]
    task: str  # one of the 50 Meta-World tasks, such as door-open-v3
    name: str  # folder of the artifacts; {task} stands for the task
    episodes: int = Field(ge=2)  # collected; some train, some are held out
    episode_steps: int = Field(ge=1, le=500)  # length of an episode, in collection and in evaluation
    noise_max: float = Field(ge=0.0)  # an episode's action noise has a standard deviation in [0, this]
    random_max: float = Field(ge=0.0, le=1.0)  # an episode's share of random steps lies in [0, this]
    random_hold: int = Field(ge=1)  # steps that a random action is held for

    @field_validator("name")
    @classmethod
    def _name_is_a_folder_name(cls, name: str) -> str:
        if not re.fullmatch(r"[\w.\-]+", name.replace("{task}", "task")) or name.startswith("."):
            raise ValueError("must be letters, digits, '.', '_', '-' and '{task}': it names a folder")
        return name

    @field_validator("task")
    @classmethod
    def _task_is_a_word(cls, task: str) -> str:
        if not re.fullmatch(r"[\w\-]+", task):
            raise ValueError("must be letters, digits, '_' and '-', such as door-open-v3")
        return task

    @property
    def folder(self) -> str:
        """Name of the dataset's folders in every layer."""
        return self.name.replace("{task}", self.task)


class IngestionParameters(Strict):
    """How episodes are prepared for training."""

    validation_fraction: float = Field(gt=0.0, lt=1.0)  # share of whole episodes held out
    std_floor: float = Field(gt=0.0)  # standard deviations below it count as it, in the input's units
    workers: int | None = Field(ge=1)  # processes that collect; null: one a core
