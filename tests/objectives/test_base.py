from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import Field
from torch import Generator, Tensor, nn

from cvl_pipeline.errors import InputError
from cvl_pipeline.networks.actor import Actor, Policy
from cvl_pipeline.objectives.base import OBJECTIVES, Objective, ObjectiveParameters, Setting
from cvl_pipeline.objectives.training import train_policy
from cvl_pipeline.readout.action_values import ActionValues
from cvl_pipeline.readout.q_function import QFunction
from cvl_pipeline.testing.builders import make_data, policy_parameters
from tests.objectives.toys import TRAIN, episodes, make_module, training_transitions


class Constant(Policy):
    """Adds a number to the actor's actions."""

    def __init__(self, actor: Actor, shift: float) -> None:
        super().__init__()
        self.actor, self.shape, self.shift = actor, actor.shape, shift

    def forward(self, observations: Tensor) -> Tensor:
        """(B, O) -> (B, A)."""
        actions: Tensor = self.actor(observations) + self.shift
        return actions


class Pull(Objective):
    """Pulls every action towards a setting of its own."""

    class Parameters(ObjectiveParameters):
        """A setting of its own."""

        place: float = Field(0.0, description="Where to.")

    needs_critic = False

    def prepare(self, setting: Setting) -> None:
        super().prepare(setting)
        self.prepared_with = setting

    def loss(self, drawn: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        batch = self.batch(drawn)
        error = (self.setting.actor(batch.observations) - self.parameters.place).square().mean()
        return error, {"error": error}

    def policy(self, actor: Actor, values: ActionValues | None, seed: int) -> nn.Module:
        return Constant(actor, 0.0)


class Bare(Objective):
    """No settings of its own, and a critic by default."""

    def loss(self, drawn: Any) -> tuple[Tensor, dict[str, Tensor]]:
        return self.setting.actor(self.batch(drawn).observations).square().mean(), {}


PULL, BARE = f"{__name__}:Pull", f"{__name__}:Bare"


def test_awr_is_the_default_and_every_name_has_its_class() -> None:
    assert OBJECTIVES.names == ["awr", "ddpg_bc", "best_of_n", "published", "bc"]
    assert policy_parameters().objective == "awr"
    for name in OBJECTIVES.names:
        parameters = policy_parameters(objective=name)
        assert parameters.objective == name
        objective = OBJECTIVES.create(parameters)
        assert type(objective) is OBJECTIVES[name]
        assert isinstance(parameters, objective.Parameters)
        assert objective.parameters is parameters


def test_unknown_objective_is_refused_with_the_known_ones() -> None:
    known = "awr, ddpg_bc, best_of_n, published, bc"
    message = f"^unknown objective 'sac': known: {known} \\(or module:Class for one of your own\\)$"
    with pytest.raises(InputError, match=message):
        OBJECTIVES["sac"]


def test_objective_of_ones_own_trains_with_its_setting_and_policy() -> None:
    transitions = episodes()
    training = {"steps": 200, "validation_interval": 100, "learning_rate": 0.01}
    parameters = policy_parameters(objective=PULL, place=0.5, training=training)
    assert isinstance(parameters, Pull.Parameters)
    assert parameters.hidden == (8,)  # a setting that every objective has
    policy, history = train_policy(make_data(transitions, TRAIN), parameters, 0)
    assert isinstance(policy, Constant)
    assert not policy.training
    torch.testing.assert_close(policy(transitions.states()), torch.full((300, 2), 0.5), atol=0.1, rtol=0.0)
    assert history["train/error"].tolist() == pytest.approx(history["train/loss"].tolist())


def test_objective_of_ones_own_needs_a_critic_by_default_and_no_settings() -> None:
    transitions = episodes()
    parameters = policy_parameters(objective=BARE)
    with pytest.raises(InputError, match=f"policy_extraction.objective '{BARE}' needs a critic"):
        train_policy(make_data(transitions, TRAIN), parameters, 0)
    module = make_module(transitions, objective=BARE)
    actor = module.actor
    assert module.objective.policy(actor, None, 0) is actor
    with pytest.raises(ValueError, match="beta"):
        policy_parameters(objective=BARE, beta=1.0)


def test_setting_holds_the_episodes_that_train() -> None:
    transitions = episodes()
    objective = make_module(transitions, objective=PULL).objective
    assert isinstance(objective, Pull)
    setting = objective.prepared_with
    assert setting is objective.setting
    assert setting.train_episodes.tolist() == [0, 1, 2, 3]
    assert torch.equal(setting.train_index, torch.arange(200))
    assert (setting.seed, len(setting.transitions)) == (0, 300)


def test_setting_holds_only_what_the_objective_declares_to_need() -> None:
    nothing, both = (
        make_module(episodes(), objective=name).objective.setting for name in (PULL, "published")
    )
    assert nothing.rewards is None
    with pytest.raises(InputError, match="set needs_critic = True"):
        _ = nothing.q
    assert both.rewards is not None
    assert isinstance(both.q, QFunction)
    assert both.q.critic.shape.action_size == 2


def test_batches_are_drawn_with_replacement_from_the_training_transitions() -> None:
    transitions = episodes()
    objective = make_module(transitions, objective=PULL).objective
    batches = objective.draw(40, 16, Generator().manual_seed(0))
    assert [len(batch) for batch in batches] == [16] * 40
    positions = torch.cat(list(batches))
    assert positions.min() >= 0
    assert positions.max() < 200
    assert 150 < len(set(positions.tolist())) < 200
    again = torch.cat(list(objective.draw(40, 16, Generator().manual_seed(0))))
    assert torch.equal(again, positions)
    batch = objective.batch(batches[0])
    states, actions = training_transitions(transitions)
    assert torch.equal(batch.positions, batches[0])
    assert torch.equal(batch.observations, states[batches[0]])
    assert torch.equal(batch.actions, actions[batches[0]])
