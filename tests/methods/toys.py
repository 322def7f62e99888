"""Episodes and methods for tests of methods."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from cvl_pipeline.episodes.data import EpisodeData
from cvl_pipeline.methods.base import METHODS, Method, MethodParameters
from cvl_pipeline.objectives.base import TrainedPolicy
from cvl_pipeline.objectives.bc import BehaviourCloning
from cvl_pipeline.objectives.training import train_policy
from cvl_pipeline.testing.builders import make_data, make_rewards, training_parameters
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
