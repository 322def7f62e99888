"""A baseline of your own: behaviour cloning that weighs each episode by its return.

With E episodes, an episode with return R has the weight ``E softmax(beta (R - mean R) / std R)``, 1 on average.
This is advantage-weighted regression with the return of the episode in place of the advantage (Peng et al.,
*Advantage-Weighted Regression*, 2019, arXiv 1910.00177). A large ``beta`` clones the best episodes alone, like %BC
(Chen et al., *Decision Transformer*, NeurIPS 2021). No critic is involved.

Run it beside CVL and BC, in the project's folder:

    PYTHONPATH=examples kedro run --env smoke --params baselines.rwbc.method=baseline_return_weighted:ReturnWeightedBC

docs/guides/add-a-baseline.md explains every line.
"""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor

from cvl_pipeline.episodes.data import EpisodeData
from cvl_pipeline.methods.base import Method, MethodParameters
from cvl_pipeline.objectives.base import Objective, ObjectiveParameters, Setting, TrainedPolicy
from cvl_pipeline.readout.q_function import QFunction


class ReturnWeightedLoss(Objective):
    """``-w(episode) log pi(a | s)``."""

    class Parameters(ObjectiveParameters):
        """The settings of the loss, besides network and training."""

        beta: float

    needs_critic = False
    needs_rewards = True

    def prepare(self, setting: Setting) -> None:
        """Compute the weight of every training transition."""
        assert setting.rewards is not None  # checked before training begins
        index = setting.train_index
        episodes, episode = torch.unique(setting.transitions.episode_of(index), return_inverse=True)
        returns = torch.zeros(len(episodes), device=index.device)
        returns.index_add_(0, episode, setting.rewards.rewards.to(index.device)[index])
        scaled = (returns - returns.mean()) / returns.std(unbiased=False).clamp(min=1e-6)
        self._weights = (len(episodes) * torch.softmax(self.parameters.beta * scaled, dim=0))[episode]

    def loss(self, drawn: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted negative log-likelihood of the logged actions."""
        batch = self.batch(drawn)
        weights = self._weights[batch.positions]
        log_prob = self.setting.actor.log_prob(batch.observations, batch.actions)
        return -(weights * log_prob).mean(), {"weight_mean": weights.mean()}


class ReturnWeightedBC(Method):
    """Trains a policy by ``ReturnWeightedLoss``."""

    class Parameters(MethodParameters):
        """The settings of the method, besides network and training."""

        beta: float = Field(1.0, ge=0.0, description="Inverse temperature of the standardised returns.")

    title = "return-weighted BC"
    needs_rewards = True
    needs_critic = False

    def train(
        self,
        data: EpisodeData,
        seed: int,
        *,
        values: QFunction | None = None,
        checkpoints: Path | None = None,
        logs: Path | None = None,
    ) -> TrainedPolicy:
        """Train the policy with the project's trainer."""
        from cvl_pipeline.objectives.training import train_policy  # here, because Lightning imports slowly

        settings = {
            name: getattr(self.parameters, name) for name in ("hidden", "encoder", "training", "beta")
        }
        loss = ReturnWeightedLoss.Parameters(objective=f"{__name__}:ReturnWeightedLoss", **settings)
        return train_policy(data, loss, seed, checkpoints=checkpoints, logs=logs)
