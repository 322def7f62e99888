"""What methods share that learn Q from single transitions."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from pydantic import Field
from torch import Generator, Tensor

from cvl_pipeline.episodes.container import Rewards
from cvl_pipeline.episodes.data import EpisodeData
from cvl_pipeline.errors import InputError
from cvl_pipeline.methods.iql import ImplicitQLearning
from cvl_pipeline.methods.off_policy import (
    Ensemble,
    Fixed,
    OffPolicy,
    OffPolicyMethod,
    ValueParameters,
)
from cvl_pipeline.testing.builders import training_parameters
from cvl_pipeline.training.vector import Part
from tests.methods.toys import make_episodes, method_parameters


class Ascent(OffPolicy):
    """The actor climbs a Q that learns the rewards."""

    def networks(self) -> None:
        self.q = Ensemble(self.normalisation, self.settings.hidden, members=3)

    def finish(self) -> None:
        self.fixed_q = Fixed(self.q)

    def parts(self) -> Any:
        return (self.q.parameters(), Part()), (self.actor.parameters(), Part(interval=2))

    def training_loss(self, batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        step = self.steps(batch)
        climb = -self.fixed_q(step.states, self.actor(step.states)).mean()
        return climb + (self.q(step.states, step.actions) - step.rewards).square().mean(), {}


class Climber(OffPolicyMethod):
    """A method for tests."""

    class Parameters(ValueParameters):
        method: Literal["climber"] = Field("climber", description="For tests.")

    title = "Climber"
    module = Ascent
    discrete_actions = False


def _parameters(**changes: Any) -> Climber.Parameters:
    training = training_parameters(steps=30, batch_size=16, learning_rate=3e-3).model_dump()
    return Climber.Parameters.model_validate({"hidden": (8,), **changes, "training": training})


def _module(data: EpisodeData, **changes: Any) -> Ascent:
    return Ascent(data, _parameters(**changes), 0)


def test_steps_are_those_of_the_log() -> None:
    data = make_episodes()
    assert data.rewards is not None
    module = _module(data, scale_rewards=False)
    train = data.transitions.transition_index(data.split.train)
    batch = torch.arange(len(train))
    step, log = module.steps(batch), data.transitions
    torch.testing.assert_close(step.states, log.states(train))
    torch.testing.assert_close(step.next_states, log.arrivals(train))
    torch.testing.assert_close(step.actions, log.actions[train])
    torch.testing.assert_close(step.rewards, data.rewards.rewards[train])
    episodes = log.episode_of(train)
    last = train == log.episode_starts[episodes + 1] - 1
    assert torch.equal(step.has_next, (~last).float())
    assert torch.equal(step.goes_on, (~(last & log.terminated[episodes])).float())
    inner = ~last
    torch.testing.assert_close(step.next_actions[inner], log.actions[train[inner] + 1])
    assert last.any()
    assert (step.goes_on == 0).any()


def test_rewards_are_scaled_by_their_spread_in_the_training_episodes() -> None:
    data = make_episodes()
    assert data.rewards is not None
    larger = data.with_rewards(Rewards(50.0 * data.rewards.rewards, data.rewards.successes))
    everything = torch.arange(10)
    torch.testing.assert_close(
        _module(data).steps(everything).rewards, _module(larger).steps(everything).rewards
    )
    assert float(
        _module(larger).steps(torch.arange(len(_module(data)._rewards))).rewards.std(correction=0)
    ) == pytest.approx(1.0)


@pytest.mark.parametrize(("reward", "scaled"), [(1.0, 1.0), (-0.25, -1.0), (0.0, 0.0)])
def test_equal_rewards_are_divided_by_their_size(reward: float, scaled: float) -> None:
    """Such as 1 for each step that a pole stands: the task is to survive."""
    data = make_episodes()
    assert data.rewards is not None
    equal = data.with_rewards(Rewards(torch.full_like(data.rewards.rewards, reward), data.rewards.successes))
    rewards = _module(equal).steps(torch.arange(10)).rewards
    torch.testing.assert_close(rewards, torch.full((10,), scaled))


def test_q_has_the_chosen_encoder() -> None:
    encoder = {"name": "mlp", "hidden": (4,), "features": 5}
    parameters = method_parameters("iql", hidden=(8,), encoder=encoder)
    module = ImplicitQLearning(make_episodes(), parameters, 0)
    assert module.q.features == 5
    loss, _ = module.training_loss(module.draw(1, Generator().manual_seed(0))[0])
    loss.backward()  # type: ignore[no-untyped-call]
    assert any(part.grad is not None for part in module.q.encode_observation.parameters())


def test_a_fixed_network_passes_gradients_to_the_actor_alone() -> None:
    module = _module(make_episodes())
    states = module.steps(torch.arange(6)).states
    module.fixed_q(states, module.actor(states)).sum().backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is None for parameter in module.q.parameters())
    assert any(parameter.grad is not None for parameter in module.actor.parameters())
    # It is no module of its own, so it is neither trained nor saved.
    assert not any(name.startswith("fixed") for name in module.state_dict())


def test_a_fixed_network_follows_the_trained_one_through_a_training() -> None:
    method = Climber(_parameters())
    data = make_episodes()
    seen = []

    class Watched(Ascent):
        def training_loss(self, batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            step = self.steps(batch)
            with torch.no_grad():
                seen.append(
                    torch.equal(
                        self.fixed_q(step.states, step.actions), Fixed(self.q)(step.states, step.actions)
                    )
                )
            return super().training_loss(batch)

    method.module = Watched  # type: ignore[misc]
    policy, history = method.train(data, 0)
    assert len(seen) >= 30
    assert all(seen)
    assert policy.training is False
    assert history["train/loss"].notna().all()


def test_draws_cover_the_training_transitions() -> None:
    module = _module(make_episodes())
    drawn = torch.cat(list(module.draw(300, Generator().manual_seed(0))))
    assert set(drawn.tolist()) == set(range(len(module._rewards)))


@pytest.mark.parametrize(
    ("data", "message"),
    [(make_episodes(rewards=False), "needs rewards"), (make_episodes(discrete=True), "continuous actions")],
)
def test_unfit_episodes_are_refused(data: EpisodeData, message: str) -> None:
    with pytest.raises(InputError, match=f"method 'climber'.*{message}"):
        Climber(_parameters()).train(data, 0)
