from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from cvl_pipeline.episodes.validation import validate_rewards, validate_transitions
from cvl_pipeline.testing.builders import slices
from cvl_pipeline.testing.finite_mdp import FiniteMDP, chain, garnet, grid_world

MDPS: dict[str, Any] = {
    "grid": grid_world(), "grid, terminal": grid_world(terminal=True), "grid, goal": grid_world(goal=True),
    "chain": chain(), "chain, terminal": chain(terminal=True),
    "garnet": garnet(states=12, actions=3, branching=3, discount=0.8, rewards="dense", seed=0),
    "garnet, terminal": garnet(
        states=15, actions=2, branching=4, discount=0.8, rewards="signed", terminal=2, skewed=True, seed=1
    ),
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


# Random MDPs.


def _garnet(**changes: Any) -> FiniteMDP:
    settings: dict[str, Any] = {
        "states": 45, "actions": 4, "branching": 3, "discount": 0.9, "rewards": "dense", "seed": 0,
    }  # fmt: skip
    return garnet(**settings | changes)


@pytest.mark.parametrize("branching", [1, 2, 5, 45])
def test_every_action_of_a_garnet_leads_to_as_many_states_as_its_branching(branching: int) -> None:
    step = _garnet(branching=branching).step
    assert step.shape == (45, 4, 45)
    assert ((step > 0.0).sum(-1) == branching).all()
    np.testing.assert_allclose(step.sum(-1), 1.0)


def test_all_successors_of_a_garnet_are_equally_likely() -> None:
    """Over many draws, each state is a successor equally often, and each successor has the same mean probability."""
    step = np.concatenate([_garnet(seed=seed).step for seed in range(10)]).reshape(-1, 45)
    shares, error = (step > 0.0).mean(0), np.sqrt(3 / 45 * 42 / 45 / len(step))
    assert np.abs(shares - 3 / 45).max() < 4.0 * error
    # Spacings of two uniform points have mean 1/3 and variance 1/18.
    spacings = step[step > 0.0]
    assert spacings.var() == pytest.approx(1 / 18, rel=0.05)


def test_rewards_of_a_garnet_follow_their_law() -> None:
    many: dict[str, Any] = {"states": 600, "actions": 1, "branching": 1}
    sparse, signed, dense = (
        _garnet(**many, rewards=rewards).reward for rewards in ("sparse", "signed", "dense")
    )
    assert sorted(set(sparse)) == [0.0, 1.0]
    assert sparse.sum() == 40
    assert _garnet(states=20, rewards="sparse").reward.sum() == 2, "at least two"
    assert abs(signed.mean()) < 4.0 / np.sqrt(600)
    assert signed.std() == pytest.approx(1.0, abs=0.15)
    assert dense.min() >= 0.0
    assert dense.max() <= 1.0
    assert dense.std() == pytest.approx(np.sqrt(1 / 12), rel=0.1)
    with pytest.raises(ValueError, match="rewards is 'rare'; use sparse, signed or dense"):
        _garnet(rewards="rare")


@pytest.mark.parametrize("terminal", [0, 1, 6])
def test_a_garnet_has_the_given_number_of_terminal_states(terminal: int) -> None:
    assert _garnet(terminal=terminal).terminal.sum() == terminal


def test_the_policy_of_a_garnet_is_near_uniform_or_prefers_one_action_per_state() -> None:
    uniform, skewed = _garnet().policy, _garnet(skewed=True).policy
    for policy in (uniform, skewed):
        assert policy.shape == (45, 4)
        np.testing.assert_allclose(policy.sum(-1), 1.0)
    assert uniform.min() > 0.02
    assert uniform.max() < 0.7
    np.testing.assert_allclose(np.sort(skewed, axis=-1), np.tile([0.05, 0.05, 0.05, 0.85], (45, 1)))
    assert len(set(skewed.argmax(-1))) == 4, "another one in other states"


def test_the_seed_determines_a_garnet() -> None:
    one, again, other = _garnet(terminal=2), _garnet(terminal=2), _garnet(terminal=2, seed=1)
    for name in ("step", "policy", "reward", "terminal"):
        np.testing.assert_array_equal(getattr(one, name), getattr(again, name))
        assert not np.array_equal(getattr(one, name), getattr(other, name))
