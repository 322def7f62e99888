"""Regression of returns, on a small MDP with exact values."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from benchmarks.regression import regress_alone, regress_returns
from benchmarks.truth import q_values, score
from benchmarks.worlds import EARLIER, queries

from cvl_pipeline.api import EpisodeData, QFunction, extract_policy
from cvl_pipeline.episodes.preparation import split_episodes
from cvl_pipeline.readout.parameters import RegressionParameters
from cvl_pipeline.readout.regression import RegressedReadout
from cvl_pipeline.testing.builders import identity_normalisation


def grid_data(transitions: int, seed: int = 0) -> EpisodeData:
    """Log of the grid with timeouts."""
    log, rewards = EARLIER["grid with timeouts"].log(seed, transitions)
    return EpisodeData(log, split_episodes(log, 0.05, seed), identity_normalisation(log), rewards)


@pytest.fixture(scope="module")
def q() -> QFunction:
    return regress_returns(grid_data(40_000), 0.9, steps=600, hidden=(64, 64))


def test_returns_of_a_small_mdp_are_regressed_to_its_exact_values(q: QFunction) -> None:
    asked = queries(EARLIER["grid with timeouts"].world(0))
    values = q_values(asked, q)
    assert score(asked.exact, values, 0.0)["correlation"] > 0.97
    assert np.median(values / asked.exact) == pytest.approx(1.0, abs=0.1)  # in the units of Q


def test_the_same_seed_gives_the_same_values() -> None:
    data = grid_data(2_000)
    states, actions = data.transitions.states()[:5], data.transitions.actions[:5]
    values = [
        regress_returns(data, 0.9, steps=3, hidden=(8,), seed=seed)(states, actions) for seed in (1, 1, 2)
    ]
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])


def test_held_out_rewards_are_not_read() -> None:
    data = grid_data(2_000)
    assert data.rewards is not None
    changed = data.rewards.rewards.clone()
    changed[data.transitions.transition_index(data.split.validation)] = 1e6
    values = []
    for rewards in (data.rewards.rewards, changed):
        data.rewards.rewards.copy_(rewards)
        q = regress_returns(data, 0.9, steps=3, hidden=(8,))
        values.append(q(data.transitions.states()[:5], data.transitions.actions[:5]))
    assert torch.equal(values[0], values[1])


def test_a_policy_can_be_extracted(q: QFunction) -> None:
    data = grid_data(2_000)
    training = {"steps": 2, "accelerator": "cpu"}
    policy = extract_policy(q.critic, q.readout, data, training=training).policy
    assert policy(data.transitions.states()[:5]).shape == (5, 4)


def test_the_own_regression_of_cvl_stands_alone() -> None:
    asked = queries(EARLIER["grid with timeouts"].world(0))
    parameters = RegressionParameters(steps=500, value_steps=200, hidden=(64, 64))
    q = regress_alone(grid_data(40_000), 0.9, 0.68, parameters)
    assert isinstance(q.readout, RegressedReadout)
    assert q.readout.mixture[1] == 0.0  # no weight for a readout that knows nothing
    values = q_values(asked, q)
    assert score(asked.exact, values, 0.0)["correlation"] > 0.97
    assert np.median(values / asked.exact) == pytest.approx(1.0, abs=0.1)


def test_the_own_regression_without_any_reward_is_zero() -> None:
    data = grid_data(2_000)
    assert data.rewards is not None
    nothing = replace(data, rewards=replace(data.rewards, rewards=torch.zeros(len(data.rewards.rewards))))
    q = regress_alone(nothing, 0.9, 0.68, RegressionParameters(steps=2, value_steps=2, hidden=(8,)))
    assert not q(data.transitions.states()[:5], data.transitions.actions[:5]).any()
