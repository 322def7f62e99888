"""Episodes and methods for tests of methods."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest
import torch
from pydantic import Field
from torch import Tensor, nn

from cvl_pipeline.episodes.container import Rewards
from cvl_pipeline.episodes.data import EpisodeData
from cvl_pipeline.methods.base import METHODS, Method, MethodParameters
from cvl_pipeline.methods.off_policy import OffPolicy, OffPolicyMethod
from cvl_pipeline.objectives.base import TrainedPolicy
from cvl_pipeline.objectives.bc import BehaviourCloning
from cvl_pipeline.objectives.training import train_policy
from cvl_pipeline.testing.builders import (
    make_data,
    make_packed_transitions,
    make_rewards,
    make_transitions,
    training_parameters,
)
from cvl_pipeline.testing.finite_mdp import FiniteMDP
from cvl_pipeline.training.module import OfflineModule
from tests.objectives.toys import TRAIN, episodes

if TYPE_CHECKING:
    from cvl_pipeline.readout.q_function import QFunction


def make_episodes(discrete: bool = False, rewards: bool = True) -> EpisodeData:
    """Six episodes, four of which train."""
    transitions = episodes(discrete)
    return make_data(transitions, TRAIN, make_rewards(transitions) if rewards else None)


def make_images(packed: bool) -> EpisodeData:
    """Six episodes, four of which train, of two cameras and a state, or of one camera."""
    transitions = make_packed_transitions([5, 3, 7, 4, 6, 5], [False, True] * 3)
    if not packed:
        assert transitions.parts is not None
        images = transitions.parts.part(transitions.observations, "images.wrist")
        transitions = replace(transitions, observations=images.contiguous(), parts=None)
    return make_data(transitions, TRAIN, make_rewards(transitions))


OFF_POLICY = [
    name
    for name in METHODS.names
    if issubclass(METHODS[name], OffPolicyMethod) and hasattr(METHODS[name], "module")
]
"""The built-in methods that learn Q from single transitions, in one training."""


@dataclass
class Logged:
    """What the log says of a batch of training transitions; ``last`` marks the last step of an episode."""

    states: Tensor
    actions: Tensor
    rewards: Tensor
    next_states: Tensor
    next_actions: Tensor
    last: Tensor
    terminated: Tensor

    def __init__(self, data: EpisodeData, batch: Tensor) -> None:
        """Read the rows (B,) of the training transitions; rewards are scaled by their spread in those."""
        transitions, rewards = data.transitions, data.rewards
        assert rewards is not None
        train = transitions.transition_index(data.split.train)
        index = train[batch]
        episodes = transitions.episode_of(index)
        self.last = index == transitions.episode_starts[episodes + 1] - 1
        self.terminated = self.last & transitions.terminated[episodes]
        self.states, self.next_states = transitions.states(index), transitions.arrivals(index)
        self.actions = transitions.actions[index]
        self.next_actions = transitions.actions[torch.where(self.last, index, index + 1)]
        self.rewards = rewards.rewards[index] / rewards.rewards[train].std(correction=0)
        assert self.terminated.any()
        assert (self.last & ~self.terminated).any()
        assert not self.last.all()


def make_bandit(best: float = 0.5) -> EpisodeData:
    """Episodes of one step with uniform actions in (-1, 1), whose reward is ``1 - (a - best)^2``."""
    transitions = make_transitions([1] * 600, [True] * 600, observation_size=2, action_size=1)
    rewards = 1.0 - (transitions.actions[:, 0] - best).square()
    return make_data(transitions, 500, Rewards(rewards, rewards > 0.9))


def method_parameters(method: str, training: dict[str, Any] | None = None, **settings: Any) -> Any:
    """Parameters of a method at small size."""
    small = {"hidden": (8,), "training": training_parameters(**(training or {})).model_dump()}
    return METHODS.validate({"method": method, **small, **settings})


def off_policy_module(data: EpisodeData, parameters: Any) -> OffPolicy:
    """What one of those methods trains on the episodes."""
    method = METHODS.create(parameters)
    assert isinstance(method, OffPolicyMethod)
    return method.module_for(data)(data, parameters, 0)


def gradients_of(network: nn.Module) -> list[Tensor]:
    """The gradient of every parameter."""
    gradients = [parameter.grad for parameter in network.parameters()]
    return [gradient for gradient in gradients if gradient is not None]


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
    gradient_step = module.gradient_step

    def failing(self: OfflineModule, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        if self.global_step == step:
            raise RuntimeError("the machine went away")
        return gradient_step(self, batch)

    patch.setattr(module, "gradient_step", failing)


def check_resumption(
    train: Callable[..., TrainedPolicy],
    folder: Path,
    module: type[OfflineModule],
    step: int,
    first: type[OfflineModule] | None = None,
) -> pd.DataFrame:
    """Check that a method whose training fails resumes to the same policy, and return its history.

    Args:
        train: trains the method; takes ``checkpoints`` and ``logs``.
        folder: of those.
        module: whose training fails, before the gradient step ``step``.
        first: the module of the first phase, which must not begin again; ``module`` if there is one phase.
    """
    whole = train()
    again = partial(train, checkpoints=folder / "c", logs=folder / "logs")
    with pytest.MonkeyPatch.context() as patch:
        fail_at(patch, module, step)
        with pytest.raises(RuntimeError, match="went away"):
            again()
    assert list((folder / "c").rglob("*.ckpt"))
    with pytest.MonkeyPatch.context() as patch:
        fail_at(patch, first or module, 0)
        resumed = again()
    pd.testing.assert_frame_equal(resumed.history, whole.history, check_exact=True)
    torch.testing.assert_close(resumed.policy.state_dict(), whole.policy.state_dict(), rtol=0, atol=0)
    assert not list((folder / "c").rglob("*.ckpt"))
    return whole.history
