"""SARSA's loss; what it shares with other one-step methods is in test_one_step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from cvl_pipeline.episodes.data import EpisodeData
from cvl_pipeline.errors import InputError
from cvl_pipeline.methods.base import METHODS
from cvl_pipeline.methods.sarsa import SarsaLearning
from cvl_pipeline.testing.builders import make_rewards, make_transitions
from tests.methods.toys import make_episodes, method_parameters


def test_loss_equals_the_formula() -> None:
    data, gamma = make_episodes(), 0.9
    assert data.rewards is not None
    module = SarsaLearning(data, method_parameters("sarsa", discount=gamma), seed=0)
    with torch.no_grad():
        for parameter in module.target_q.parameters():
            parameter.mul_(0.5)
    log = data.transitions
    train = log.transition_index(data.split.train)
    loss, _ = module.training_loss(torch.arange(len(train)))
    rewards = data.rewards.rewards[train]
    mean = rewards.mean()
    std = torch.maximum(rewards.std(correction=0), mean.abs())  # some episodes end
    squares, ended = torch.zeros(()), torch.zeros(())
    without_next, with_next, terminal = 0, 0, 0
    with torch.no_grad():
        for index, reward in zip(train.tolist(), rewards, strict=True):
            episode = int(log.episode_of(torch.tensor(index)))
            last = index == int(log.episode_starts[episode + 1]) - 1
            if last and not log.terminated[episode]:
                without_next += 1
                continue
            if last:
                terminal += 1
                following = -mean / std  # zero, in the unit of the network
            else:
                with_next += 1
                place = torch.tensor([index + 1])
                following = module.target_q(log.states(place), log.actions[place]).mean()
            wanted = (1.0 - gamma) * (reward - mean) / std + gamma * following
            place = torch.tensor([index])
            square = (module.q(log.states(place), log.actions[place]) - wanted).square().sum()
            squares, ended = (squares, ended + square) if last else (squares + square, ended)
    assert without_next
    assert terminal
    share = with_next / (with_next + without_next)  # so terminations weigh as often as they happen
    assert float(loss.detach()) == pytest.approx(float(squares + share * ended) / len(train), rel=1e-4)


def test_the_value_of_an_end_has_the_size_of_other_values_if_rewards_hardly_differ() -> None:
    log = make_transitions([5] * 12, [True] * 12)
    labels = make_rewards(log)
    nearly = 1.0 + 1e-3 * labels.rewards
    data = EpisodeData.prepare(log, replace(labels, rewards=nearly))
    module = SarsaLearning(data, method_parameters("sarsa"), seed=0)
    assert module._nothing == pytest.approx(-1.0, abs=1e-6)
    assert float(module._rewards.abs().max()) < 0.1


def test_where_no_step_is_followed_terminations_still_train() -> None:
    log = make_transitions([1] * 6, [True] * 6)
    module = SarsaLearning(EpisodeData.prepare(log, make_rewards(log)), method_parameters("sarsa"), seed=0)
    loss, _ = module.training_loss(torch.arange(3))
    assert float(loss.detach()) > 0.0


@pytest.mark.parametrize(
    ("lengths", "ends"), [([1] * 6, False), ([1] * 6, True), ([1, 1, 1, 1, 1, 2], False)]
)
def test_a_log_in_which_nothing_follows_is_refused(lengths: list[int], ends: bool) -> None:
    log = make_transitions(lengths, [ends] * 6)
    data = EpisodeData.prepare(log, make_rewards(log))
    train = [lengths[episode] for episode in data.split.train.tolist()]
    method: Any = METHODS.create(method_parameters("sarsa"))
    if ends or max(train) > 1:
        method.check(data)
    else:
        with pytest.raises(InputError, match="'sarsa' needs steps that another one follows"):
            method.check(data)
