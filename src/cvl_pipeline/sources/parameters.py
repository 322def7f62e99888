"""Parameters of the dataset."""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import Literal

from pydantic import Field, field_validator, model_validator

from cvl_pipeline.sources.columns import Columns
from cvl_pipeline.training.parameters import Floats, Strict

METAWORLD_STEPS = 500
"""Longest episode that Meta-World's simulation allows."""


class DatasetParameters(Strict):
    """Which episodes, and the name that their artifacts are filed under."""

    source: Literal["metaworld", "pointmaze", "gymnasium", "d4rl", "minari", "files"]
    # metaworld: a task, such as door-open-v3, or a benchmark of several, MT10 or MT50; pointmaze, gymnasium:
    # an environment's id, such as PointMaze_Medium-v3; d4rl, minari: a dataset's id, such as hopper-medium-v2
    # or D4RL/pointmaze/umaze-v2.
    task: str
    name: (
        str  # folder of the artifacts; {task} stands for the task, or for the file's name where there is one
    )
    path: str | None  # files, d4rl: the file; minari: the folder of datasets; null: downloaded and cached
    columns: Columns  # files: what they are called there
    action_low: Floats | None  # files: smallest action of each dimension; null: the smallest logged
    action_high: Floats | None  # files: largest; null: the largest logged
    success_reward: float | None  # d4rl: a reward that counts as success; null: the family's own, if any
    episodes: int = Field(ge=2)  # simulators: collected; some train, some are held out
    episode_steps: int | None = Field(ge=1)  # simulators: length of an episode; null: the environment's own
    noise_max: float = Field(
        ge=0.0
    )  # simulators: an episode's action noise has a standard deviation in [0, this]
    random_max: float = Field(
        ge=0.0, le=1.0
    )  # simulators: an episode's share of random steps is in [0, this]
    random_hold: int = Field(ge=1)  # simulators: steps that a random action is held for
    policy: str | None  # gymnasium: module:function, observation (O,) -> action; null: random actions alone

    @field_validator("name")
    @classmethod
    def _name_is_a_folder_name(cls, name: str) -> str:
        if not re.fullmatch(r"[\w.\-]+", name.replace("{task}", "task")) or name.startswith("."):
            raise ValueError("must be letters, digits, '.', '_', '-' and '{task}': it names a folder")
        return name

    @field_validator("task")
    @classmethod
    def _task_is_a_word(cls, task: str) -> str:
        if not re.fullmatch(r"\w[\w\-./:]*", task) or ".." in task:
            raise ValueError("must be letters, digits, '_', '-', '/', ':' and '.', such as door-open-v3")
        return task

    @field_validator("path")
    @classmethod
    def _path_is_on_this_machine(cls, path: str | None) -> str | None:
        if path is not None and "://" in path:
            raise ValueError("must be a file or folder of this machine: download it first")
        return path

    @model_validator(mode="after")
    def _source_has_what_it_needs(self) -> DatasetParameters:
        if self.source == "files" and self.path is None:
            raise ValueError("dataset.path is null: with dataset.source files it names your log")
        if self.source == "metaworld" and not 1 <= (self.episode_steps or 0) <= METAWORLD_STEPS:
            raise ValueError(
                f"dataset.episode_steps is {self.episode_steps}: Meta-World episodes have 1 to "
                f"{METAWORLD_STEPS} steps"
            )
        return self

    @property
    def folder(self) -> str:
        """Name of the dataset's folders in every layer."""
        from_file = self.source in ("files", "d4rl") and self.path is not None
        file = PurePath(self.path or "").name.lstrip(".") if from_file else ""
        return self.name.replace("{task}", re.sub(r"[^\w.\-]", "-", file or self.task))
