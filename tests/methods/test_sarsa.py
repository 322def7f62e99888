"""SARSA's loss; what it shares with other one-step methods is in test_one_step."""

from __future__ import annotations

import pytest
import torch

from cvl_pipeline.methods.sarsa import SarsaLearning
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
    mean, std = rewards.mean(), rewards.std(correction=0)
    squares, without_next, terminal = torch.zeros(()), 0, 0
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
                place = torch.tensor([index + 1])
                following = module.target_q(log.states(place), log.actions[place]).mean()
            wanted = (1.0 - gamma) * (reward - mean) / std + gamma * following
            place = torch.tensor([index])
            squares += (module.q(log.states(place), log.actions[place]) - wanted).square().sum()
    assert without_next
    assert terminal
    assert float(loss.detach()) == pytest.approx(float(squares) / len(train), rel=1e-4)
