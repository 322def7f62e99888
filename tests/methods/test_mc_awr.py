"""Monte Carlo returns as the targets of Q; what it shares with other one-step methods is in test_one_step."""

from __future__ import annotations

import pytest
import torch
from torch import Generator

from cvl_pipeline.methods.one_step import ReturnRegression
from tests.methods.toys import make_episodes, method_parameters


def test_targets_are_the_logged_returns_with_the_logged_shares_as_weights() -> None:
    data, gamma = make_episodes(), 0.9
    assert data.rewards is not None
    module = ReturnRegression(data, method_parameters("mc_awr", discount=gamma), seed=0)
    log = data.transitions
    expected, weights = [], []
    for episode in data.split.train.tolist():
        start, end = log.episode_starts[episode : episode + 2].tolist()
        for t in range(start, end):
            total = sum(gamma ** (k - t) * float(data.rewards.rewards[k]) for k in range(t, end))
            share = 1.0 if log.terminated[episode] else 1.0 - gamma ** (end - t)
            expected.append((1.0 - gamma) * total / share)
            weights.append(share)
    targets, shares = torch.tensor(expected), torch.tensor(weights)
    assert len(set(weights)) > 2
    unit = module.unit
    torch.testing.assert_close(unit.mean + unit.std * module._targets, targets, rtol=1e-4, atol=1e-5)
    assert unit.mean == pytest.approx(float((shares * targets).sum() / shares.sum()), rel=1e-4)
    batch = module.draw(1, Generator().manual_seed(0))[0]
    loss, _ = module.training_loss(batch)
    states, actions = log.states(index := log.transition_index(data.split.train)), log.actions[index]
    with torch.no_grad():
        errors = (module.q(states, actions) - (targets - unit.mean) / unit.std).square()
        by_hand = ((shares / shares.mean()) * errors)[:, batch].mean(1).sum()
    assert float(loss.detach()) == pytest.approx(float(by_hand), rel=1e-4)
