from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from cvl_pipeline.episodes.validation import validate_rewards, validate_transitions
from cvl_pipeline.testing.builders import slices
from cvl_pipeline.testing.finite_mdp import FiniteMDP, chain, grid_world

MDPS: dict[str, Any] = {
    "grid": grid_world(), "grid, terminal": grid_world(terminal=True), "grid, goal": grid_world(goal=True),
    "chain": chain(), "chain, terminal": chain(terminal=True),
}  # fmt: skip


@pytest.fixture(params=list(MDPS))
def mdp(request: pytest.FixtureRequest) -> FiniteMDP:
    found: FiniteMDP = MDPS[request.param]
    return found


def test_all_laws_are_probabilities(mdp: FiniteMDP) -> None:
    for law in (mdp.step, mdp.policy, mdp.p_gamma()):
        assert (law >= -1e-12).all()
        np.testing.assert_allclose(law.sum(-1), 1.0)


def test_q_is_the_expected_reward_under_p_gamma(mdp: FiniteMDP) -> None:
    """Two linear systems give the same values; the absorbing state earns nothing."""
    reward = np.append(mdp.reward, 0.0)
    alive = ~mdp.terminal  # actions in a terminal state have no meaning
    np.testing.assert_allclose((mdp.p_gamma() @ reward)[alive] / (1.0 - mdp.discount), mdp.q()[alive])


def test_only_an_mdp_that_ends_is_absorbed(mdp: FiniteMDP) -> None:
    absorbed = mdp.p_gamma()[~mdp.terminal][..., -1]
    assert (absorbed > 0.0).all() if mdp.terminal.any() else (absorbed < 1e-12).all()


def test_q_is_the_mean_return_of_simulated_episodes(mdp: FiniteMDP) -> None:
    transitions, rewards = mdp.log_episodes(4000, 80, seed=0)
    states = transitions.states()[transitions.episode_starts[:-1]].argmax(1).numpy()
    actions = transitions.actions[transitions.episode_starts[:-1]].argmax(1).numpy()
    returns = np.zeros(transitions.episodes)
    for episode, part in enumerate(slices(transitions)):
        labels = rewards.rewards[part["index"]].double().numpy()
        returns[episode] = labels @ mdp.discount ** np.arange(len(labels))
    expected = mdp.q()[states, actions]
    error = (returns - expected).mean() / ((returns - expected).std() / np.sqrt(len(returns)))
    assert abs(error) < 4.0
    assert np.corrcoef(returns, expected)[0, 1] > 0.1


def test_logged_episodes_are_sound(mdp: FiniteMDP) -> None:
    transitions, rewards = mdp.log_episodes(20, 15, seed=1)
    validate_transitions(transitions)
    validate_rewards(rewards, transitions)
    arrivals = transitions.arrivals().argmax(1).numpy()
    np.testing.assert_allclose(rewards.rewards, mdp.reward[arrivals], rtol=1e-6)
    ends = transitions.episode_starts[1:] - 1
    assert torch.equal(torch.from_numpy(mdp.terminal[arrivals[ends]]), transitions.terminated)
    assert (transitions.lengths[~transitions.terminated] == 15).all()
    again, _ = mdp.log_episodes(20, 15, seed=1)
    assert torch.equal(again.observations, transitions.observations)
