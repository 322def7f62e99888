from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from cvl_pipeline.episodes.preparation import observed_returns
from cvl_pipeline.episodes.validation import validate_rewards, validate_transitions
from cvl_pipeline.testing.linear_gaussian import CONTRACTION, Floats, LinearGaussian, linear_gaussian

WORLDS = {
    "one dimension": linear_gaussian(size=1, actions=1, discount=0.7, seed=3),
    "small": linear_gaussian(size=3, actions=2, discount=0.8, seed=0),
    "more actions than states": linear_gaussian(size=2, actions=4, discount=0.9, seed=1),
}


@pytest.fixture(params=list(WORLDS))
def world(request: pytest.FixtureRequest) -> LinearGaussian:
    return WORLDS[request.param]


def _step(world: LinearGaussian, states: Floats, actions: Floats, generator: np.random.Generator) -> Floats:
    mean = states @ world.drift.T + actions @ world.push.T
    return np.asarray(mean + world.noise * generator.standard_normal(mean.shape))


def _reward(world: LinearGaussian, states: Floats) -> Floats:
    quadratic = np.einsum("...i,ij,...j->...", states, world.quadratic, states)
    return np.asarray(quadratic + states @ world.linear)


def _errors(samples: Floats, expected: Floats) -> Floats:
    """Differences of means over the last axis from their expectations, in standard errors."""
    return np.asarray((samples.mean(-1) - expected) / (samples.std(-1) / np.sqrt(samples.shape[-1])))


def test_q_is_the_mean_return_of_simulated_episodes(world: LinearGaussian) -> None:
    generator = np.random.default_rng(0)
    pairs, runs = 4, 4000
    first, taken = (
        generator.standard_normal((pairs, world.size)),
        generator.standard_normal((pairs, len(world.gain))),
    )
    expected = world.q(first, taken)
    states = np.repeat(first[:, None], runs, axis=1)
    actions = np.repeat(taken[:, None], runs, axis=1)
    returns, weight = np.zeros((pairs, runs)), 1.0
    while weight > 1e-4:
        states = _step(world, states, actions, generator)
        returns += weight * _reward(world, states)
        actions = world.act(states, generator)
        weight *= world.discount
    assert np.abs(_errors(returns, expected)).max() < 4.0
    assert expected.std() > 0.1, "pairs differ"


def test_q_solves_the_equation_of_bellman(world: LinearGaussian) -> None:
    """Q is the reward on arrival and the discounted Q of the next pair, on average."""
    generator = np.random.default_rng(1)
    first, taken = generator.standard_normal((3, world.size)), generator.standard_normal((3, len(world.gain)))
    states, actions = (np.repeat(part[:, None], 200_000, axis=1) for part in (first, taken))
    arrived = _step(world, states, actions, generator)
    targets = _reward(world, arrived) + world.discount * world.q(arrived, world.act(arrived, generator))
    assert np.abs(_errors(targets, world.q(first, taken))).max() < 4.0


def test_without_noise_q_is_the_return_of_the_only_course() -> None:
    world = replace(WORLDS["small"], noise=0.0, spread=0.0)
    state, action = np.array([1.0, -0.5, 2.0]), np.array([0.3, -1.0])
    generator = np.random.default_rng(0)
    expected, weight, place, move = 0.0, 1.0, state, action
    for _ in range(300):
        place = _step(world, place, move, generator)
        expected += weight * float(_reward(world, place))
        weight *= world.discount
        move = world.act(place, generator)
    assert float(world.q(state, action)) == pytest.approx(expected, rel=1e-9)


def test_the_covariance_stays_what_it_is(world: LinearGaussian) -> None:
    covariance, loop = world.covariance(), world.closed_loop
    np.testing.assert_allclose(loop @ covariance @ loop.T + world.shocks, covariance, atol=1e-12)
    assert (np.linalg.eigvalsh(covariance) > 0.0).all()
    generator = np.random.default_rng(2)
    states = generator.multivariate_normal(np.zeros(world.size), covariance, size=200_000)
    after = _step(world, states, world.act(states, generator), generator)
    np.testing.assert_allclose(
        np.cov(after.T).reshape(covariance.shape), covariance, atol=0.03 * covariance.max()
    )


def test_all_directions_contract_alike(world: LinearGaussian) -> None:
    np.testing.assert_allclose(np.abs(np.linalg.eigvals(world.closed_loop)), CONTRACTION)
    assert (np.linalg.eigvalsh(world.quadratic) < 1e-12).all(), "distance is punished"
    assert np.linalg.matrix_rank(world.quadratic) == max(1, world.size // 2)


def test_logged_episodes_are_sound_and_stationary() -> None:
    world = WORLDS["small"]
    transitions, rewards = world.log_episodes(2000, 12, seed=0)
    validate_transitions(transitions)
    validate_rewards(rewards, transitions)
    assert (len(transitions), transitions.episodes) == (24_000, 2000)
    assert transitions.truncated.all()
    index = torch.arange(len(transitions))
    np.testing.assert_allclose(
        rewards.rewards, _reward(world, transitions.arrivals(index).double().numpy()), atol=1e-5
    )
    states = transitions.observations.reshape(2000, 13, 3).double().numpy()
    for t in (0, 12):
        np.testing.assert_allclose(
            np.cov(states[:, t].T), world.covariance(), atol=0.15 * world.covariance().max()
        )
    shocks = states[:, 1:].reshape(-1, 3) - states[:, :-1].reshape(-1, 3) @ world.closed_loop.T
    np.testing.assert_allclose(np.cov(shocks.T), world.shocks, atol=0.05 * world.shocks.max())


def test_q_agrees_with_the_returns_of_the_log() -> None:
    world = WORLDS["small"]
    transitions, rewards = world.log_episodes(4000, 40, seed=1)
    first = transitions.episode_starts[:-1]
    returns = observed_returns(rewards.rewards, transitions, world.discount)[first].numpy()
    expected = world.q(
        transitions.states(first).double().numpy(), transitions.actions[first].double().numpy()
    )
    assert abs(float(_errors(returns - expected, np.zeros(())))) < 4.0
    assert np.corrcoef(returns, expected)[0, 1] > 0.3


def test_the_seed_determines_world_and_log() -> None:
    one, again, other = (linear_gaussian(size=3, actions=2, discount=0.8, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.drift, again.drift)
    assert not np.array_equal(one.drift, other.drift)
    logs = [one.log_episodes(3, 4, seed)[0].observations for seed in (0, 0, 1)]
    assert torch.equal(logs[0], logs[1])
    assert not torch.equal(logs[0], logs[2])
