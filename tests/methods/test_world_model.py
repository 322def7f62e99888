"""The learned model of one step, against worlds whose noise is known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator

from cvl_pipeline.episodes.data import EpisodeData
from cvl_pipeline.methods.world_model import ModelLearning, WorldModel
from cvl_pipeline.testing.builders import make_rewards, make_transitions
from cvl_pipeline.testing.finite_mdp import grid_world
from cvl_pipeline.testing.linear_gaussian import linear_gaussian
from cvl_pipeline.training.fit import fit
from tests.methods.toys import make_episodes, method_parameters


def learning(data: EpisodeData, steps: int, **settings: Any) -> ModelLearning:
    training = {"steps": steps, "batch_size": 128, "validation_interval": steps, "learning_rate": 3e-3}
    parameters = method_parameters("one_step_model", training=training, hidden=(32,), **settings)
    return ModelLearning(data, parameters, 0)


def test_errors_are_near_the_noise_and_so_is_the_predicted_spread() -> None:
    world = linear_gaussian(size=3, actions=2, discount=0.9, seed=0)
    log, rewards = world.log_episodes(60, 60, seed=0)
    module = learning(EpisodeData.prepare(log, rewards), 600, members=2, elites=1)
    fit(module, description="test")
    model = module.trained()
    fresh, labels = world.log_episodes(20, 60, seed=1)
    states, actions = fresh.states(), fresh.actions
    still = model.predict(states, actions, torch.zeros_like(states), 0, spread=True)
    error = (still.next_states - fresh.arrivals()).square().mean().sqrt()
    assert world.noise < float(error) < 1.15 * world.noise
    noise = torch.randn(states.shape, generator=Generator().manual_seed(0))
    noisy = model.predict(states, actions, noise, 0)
    inside = (noisy.next_states > model.low) & (noisy.next_states < model.high)
    added = (noisy.next_states - still.next_states)[inside]
    assert float(added.square().mean().sqrt()) == pytest.approx(world.noise, rel=0.2)
    assert np.corrcoef(still.rewards, labels.rewards)[0, 1] > 0.9
    assert torch.equal(still.goes_on, torch.ones_like(still.goes_on))
    # Away from the data, the largest spread is no smaller.
    far = model.predict(10.0 * states, 10.0 * actions, noise, 0, spread=True)
    assert far.spread.mean() > still.spread.mean()


def test_outputs_that_never_vary_neither_disturb_the_others_nor_choose_the_elites() -> None:
    log = make_transitions([6] * 10, [False] * 10)
    labels = make_rewards(log)
    data = EpisodeData.prepare(log, replace(labels, rewards=torch.full_like(labels.rewards, 1000.1)))
    held_out = log.transition_index(data.split.validation)
    rewards = torch.full_like(labels.rewards, 1000.1)
    rewards[held_out[0]] = 5.0  # in no training episode
    surprised = learning(data.with_rewards(replace(labels, rewards=rewards)), 4)
    unsurprised = learning(data, 4)
    unit = unsurprised.model.standardise_output
    assert float(unit(torch.full((4,), 1000.1))[-1]) == 0.0
    assert float(unsurprised._held_out_errors().max()) < 100.0
    assert torch.equal(surprised._held_out_errors(), unsurprised._held_out_errors())


def test_members_of_a_batch_of_rollouts_are_those_of_single_ones() -> None:
    model: WorldModel = learning(make_episodes(), 4, members=3, elites=3).model
    data = make_episodes().transitions
    states, actions = data.states(), data.actions
    noise = torch.randn(states.shape, generator=Generator().manual_seed(0))
    member = torch.arange(len(states)) % 3
    together = model.predict(states, actions, noise, member)
    for number in range(3):
        alone = model.predict(states, actions, noise, number)
        rows = member == number
        torch.testing.assert_close(together.next_states[rows], alone.next_states[rows])
        torch.testing.assert_close(together.rewards[rows], alone.rewards[rows])


def test_terminations_are_learnt_if_the_log_has_any() -> None:
    mdp = grid_world(terminal=True)
    data = EpisodeData.prepare(*mdp.log_episodes(150, 30, seed=0))
    module = learning(data, 800, members=1, elites=1)
    assert module.model.can_end
    fit(module, description="test")
    train = data.transitions.select(data.split.train)
    ends = module.trained().end_logits(train.states(), train.actions).sigmoid().detach().double().numpy()
    into_the_end = mdp.step[:, :, mdp.terminal].sum(-1)  # (S, A)
    exact = into_the_end[train.states().argmax(1), train.actions.argmax(1)]
    assert np.abs(ends - exact).mean() < 0.03
    without = EpisodeData.prepare(*grid_world().log_episodes(10, 30, seed=0))
    assert not learning(without, 4, members=1, elites=1).model.can_end


def test_elites_have_the_smallest_held_out_errors() -> None:
    module = learning(make_episodes(), 4, members=4, elites=2)
    with torch.no_grad():  # two members are far off
        for number in (0, 2):
            for parameter in module.model.members[number].parameters():
                parameter.mul_(50.0)
    assert set(module.trained().elites.tolist()) == {1, 3}


def test_predicted_states_stay_within_the_log() -> None:
    module = learning(make_episodes(), 4, members=1, elites=1)
    log = make_episodes().transitions
    step = module.model.predict(log.states(), log.actions, 1e3 * torch.ones_like(log.states()), 0)
    assert (step.next_states <= module.model.high).all()
    assert torch.isfinite(step.next_states).all()


def test_a_single_training_step_is_learned_from() -> None:
    log = make_transitions([1, 1], [False, False])
    module = learning(EpisodeData.prepare(log, make_rewards(log)), 2, members=2, elites=1)
    fit(module, description="test")
    still = module.trained().predict(log.states(), log.actions, torch.zeros_like(log.states()), 0)
    assert torch.isfinite(still.next_states).all()
