"""Parameters of the value_readout stage, the reward among them."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from cvl_pipeline.training.parameters import Floats, Integers, Strict


class RewardParameters(Strict):
    """What counts as good: labels of the logged transitions, made without touching the dynamics."""

    source: str  # dataset | success | goal_distance | module:function, a function of your own
    name: str | None  # folder of what follows from this reward; null: none for dataset, else after the source
    indices: Integers | None  # goal_distance: dimensions of the observation that are compared
    target: Floats | None  # goal_distance: their values at the goal, in the observation's units
    scale: float | None = Field(gt=0.0)  # goal_distance: distance at which the reward has fallen to a half
    tolerance: float | None = Field(gt=0.0)  # goal_distance: distance that counts as success

    @field_validator("source")
    @classmethod
    def _known_source(cls, source: str) -> str:
        # Of words alone: without a name, the reward's folder is called after it.
        if source not in ("dataset", "success", "goal_distance") and not re.fullmatch(
            r"[^\W\d]\w*(\.\w+)*:\w+", source
        ):
            raise ValueError("must be dataset, success, goal_distance or module:function")
        return source

    @field_validator("name")
    @classmethod
    def _name_is_a_folder_name(cls, name: str | None) -> str | None:
        if name is not None and (not re.fullmatch(r"[\w.\-]+", name) or name.startswith(".")):
            raise ValueError("must be letters, digits, '.', '_' and '-', no '.' first: it names a folder")
        return name

    @model_validator(mode="after")
    def _goal_is_whole(self) -> RewardParameters:
        goal = (self.indices, self.target, self.scale, self.tolerance)
        if self.source == "goal_distance":
            if self.indices is None or self.target is None or self.scale is None or self.tolerance is None:
                raise ValueError("goal_distance needs reward.indices, target, scale and tolerance")
            if len(self.indices) != len(self.target) or not self.indices:
                raise ValueError(
                    f"reward.indices has {len(self.indices)} entries and reward.target {len(self.target)}; "
                    "each index needs its target"
                )
        elif any(value is not None for value in goal):
            raise ValueError(
                f"reward.indices, target, scale and tolerance are for goal_distance, not {self.source}"
            )
        return self

    @property
    def folder(self) -> str:
        """Folder below the dataset's and seed's, or nothing for the dataset's own reward."""
        return self.name or ("" if self.source == "dataset" else self.source.replace(":", "."))


class ReadoutParameters(Strict):
    """How values are read out of the critic."""

    method: Literal["exact", "random_fourier", "positive_random"]
    self_normalised: bool  # divide by the estimated normaliser, which cancels any c(s, a) in the critic
    references: int | None = Field(ge=1)  # K future states drawn as in training; null: all that were logged
    reference_distribution: Literal["marginal", "reward"]  # reward: half of them in proportion to |reward|
    prototypes: int | None = Field(ge=1)  # exact: compress the references to so many; null: keep them
    features: int = Field(ge=2)  # random features: how many
    discount: float | None = Field(gt=0.0, lt=1.0)  # null: the critic's; another needs horizon_conditioning
    horizons: int = Field(ge=1)  # offsets that a horizon-conditioned critic is averaged over
    compared_transitions: int = Field(ge=2)  # held-out ones that the readout's own error is measured on

    @model_validator(mode="after")
    def _prototypes_are_for_exact(self) -> ReadoutParameters:
        if self.prototypes is not None and self.method != "exact":
            raise ValueError(f"prototypes are for method exact, not {self.method}")
        return self
