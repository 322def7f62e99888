"""Episodes and methods for tests of methods."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from pydantic import Field
from torch import Tensor

from cvl_pipeline.episodes.data import EpisodeData
from cvl_pipeline.methods.base import METHODS, Method, MethodParameters
from cvl_pipeline.objectives.base import TrainedPolicy
from cvl_pipeline.objectives.bc import BehaviourCloning
from cvl_pipeline.objectives.training import train_policy
from cvl_pipeline.testing.builders import make_data, make_rewards, training_parameters
from cvl_pipeline.testing.finite_mdp import FiniteMDP
from cvl_pipeline.training.module import OfflineModule
from tests.objectives.toys import TRAIN, episodes

if TYPE_CHECKING:
    from cvl_pipeline.readout.q_function import QFunction


def make_episodes(discrete: bool = False, rewards: bool = True) -> EpisodeData:
    """Six episodes, four of which train."""
    transitions = episodes(discrete)
    return make_data(transitions, TRAIN, make_rewards(transitions) if rewards else None)


def method_parameters(method: str, training: dict[str, Any] | None = None, **settings: Any) -> Any:
    """Parameters of a method at small size."""
    small = {"hidden": (8,), "training": training_parameters(**(training or {})).model_dump()}
    return METHODS.validate({"method": method, **small, **settings})


class Imitation(Method):
    """A method of one's own: cloning, which records what it receives."""

    class Parameters(MethodParameters):
        """A setting of its own."""

        patience: int = Field(3, ge=1, description="Of its own.")

    title = "Imitation"
    received: list[dict[str, Any]] = []  # noqa: RUF012, shared on purpose

    def train(
        self,
        data: EpisodeData,
        seed: int,
        *,
        values: QFunction | None = None,
        checkpoints: Path | None = None,
        logs: Path | None = None,
    ) -> TrainedPolicy:
        """Clone the behaviour."""
        self.received.append({"rewards": data.rewards, "values": values, "parameters": self.parameters})
        settings = {name: getattr(self.parameters, name) for name in ("hidden", "encoder", "training")}
        return train_policy(data, BehaviourCloning.Parameters(**settings), seed, checkpoints=checkpoints)


class WithoutRewards(Imitation):
    """A method that must not see rewards."""

    title = "Without rewards"
    needs_rewards = False


class WithCritic(Imitation):
    """A method that needs critic and readout."""

    title = "With a critic"
    needs_critic = True


def policy_value(mdp: FiniteMDP, policy: Any) -> float:
    """Exact mean value of the states of an MDP under the modes of a policy."""
    with torch.no_grad():
        modes = policy(torch.eye(mdp.states)).double().numpy()
    q = replace(mdp, policy=modes).q()
    return float((modes * q).sum(1)[~mdp.terminal].mean())


def fail_at(patch: pytest.MonkeyPatch, module: type[OfflineModule], step: int) -> None:
    """Let a module's training fail before a gradient step."""
    training_loss = module.training_loss

    def failing(self: OfflineModule, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        if self.global_step == step:
            raise RuntimeError("the machine went away")
        return training_loss(self, batch)

    patch.setattr(module, "training_loss", failing)
