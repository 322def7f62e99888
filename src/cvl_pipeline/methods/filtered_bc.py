"""Behaviour cloning of the best episodes: "10 % BC" (Chen et al., NeurIPS 2021, Decision Transformer, section 5.1)."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from cvl_pipeline.errors import InputError
from cvl_pipeline.methods.base import Method, MethodParameters
from cvl_pipeline.objectives.base import TrainedPolicy
from cvl_pipeline.objectives.bc import BehaviourCloning

if TYPE_CHECKING:
    from torch import Tensor

    from cvl_pipeline.episodes.data import EpisodeData
    from cvl_pipeline.readout.q_function import QFunction


class FilteredBC(Method):
    """Clones the training episodes of the highest return, or those that ended in success."""

    class Parameters(MethodParameters):
        """The settings of ``filtered_bc``."""

        method: Literal["filtered_bc"] = Field("filtered_bc", description="Cloning of the best episodes.")
        keep: Literal["return", "success"] = Field(
            "return",
            description="What is cloned: the share of training episodes with the highest return (sum of rewards), or "
            "every episode in which the task was solved.",
        )
        share: float = Field(
            0.1,
            gt=0.0,
            le=1.0,
            description="Share of the training episodes; at least one. For `keep=return`.",
        )

    title = "filtered BC"

    def train(
        self,
        data: EpisodeData,
        seed: int,
        *,
        values: QFunction | None = None,
        checkpoints: Path | None = None,
        logs: Path | None = None,
    ) -> TrainedPolicy:
        """Clone the best episodes; held-out episodes are not filtered."""
        # Not above: it imports torch and Lightning, which only training needs to wait for.
        from cvl_pipeline.objectives.training import train_policy

        split = replace(data.split, train=self.episodes(data))
        best = replace(data, split=split).without_rewards()
        objective = BehaviourCloning.Parameters(**self.parameters.actor_settings)
        return train_policy(best, objective, seed, checkpoints=checkpoints, logs=logs)

    def episodes(self, data: EpisodeData) -> Tensor:
        """Return the ids of the training episodes to clone, ascending, (M,) int64.

        Raises:
            InputError: without rewards; or ``keep=success``, and the log reports no success.
        """
        import torch

        train, rewards = data.split.train, data.rewards
        if rewards is None:
            raise InputError("method 'filtered_bc' needs rewards")
        if self.parameters.keep == "success":
            index = data.transitions.transition_index(train)
            solved = index[rewards.successes[index]]
            if not rewards.reports_success or not len(solved):
                raise InputError(
                    "method 'filtered_bc': keep=success, but the log reports no success in a training episode; choose "
                    "keep=return"
                )
            chosen: Tensor = torch.unique(data.transitions.episode_of(solved))
            return chosen
        sums = torch.zeros(data.transitions.episodes, dtype=torch.float64)
        everywhere = torch.arange(len(data.transitions))
        sums.index_add_(0, data.transitions.episode_of(everywhere), rewards.rewards.double())
        count = max(1, math.ceil(self.parameters.share * len(train) - 1e-9))
        order = torch.argsort(sums[train], descending=True, stable=True)
        return train[order[:count]].sort().values
