"""Returns of a log, and lambda-returns against their definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cvl_pipeline.readout.logged_returns import LoggedReturns, lambda_returns, of_next_pairs
from cvl_pipeline.testing.builders import make_transitions
from cvl_pipeline.testing.finite_mdp import garnet


@given(
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    ends=st.lists(st.booleans(), min_size=4, max_size=4),
    short=st.floats(0.0, 0.9),
    seed=st.integers(0, 100),
)
def test_lambda_returns_are_the_mixture_of_n_step_returns(
    lengths: list[int], ends: list[bool], short: float, seed: int
) -> None:
    gamma = 0.9
    mix = short / gamma
    data = make_transitions(lengths, ends[: len(lengths)])
    generator = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, len(data), generator=generator)
    expected = []
    for episode in range(len(lengths)):
        start, end = (int(data.episode_starts[episode + k]) for k in (0, 1))
        for t in range(start, end):

            def n_step(n: int, t: int = t, end: int = end, episode: int = episode) -> float:
                last = min(t + n, end)
                total = sum(gamma ** (k - t) * (1 - gamma) * float(rewards[k]) for k in range(t, last))
                over = last == end and bool(data.terminated[episode])
                return total + (0.0 if over else gamma ** (last - t) * float(values[last - 1]))

            left = end - t
            parts = [(1 - mix) * mix ** (n - 1) * n_step(n) for n in range(1, left)]
            expected.append(sum(parts) + mix ** (left - 1) * n_step(left))
    found = lambda_returns(rewards, values, data, gamma, short)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_lambda_returns_of_the_true_v_have_the_mean_q() -> None:
    mdp = garnet(states=12, actions=3, branching=2, discount=0.8, rewards="signed", seed=4)
    transitions, rewards = mdp.log_episodes(400, 50, seed=0)
    value = torch.from_numpy((mdp.policy * mdp.q()).sum(1) * (1 - mdp.discount))
    index = torch.arange(len(transitions))
    states = transitions.states().argmax(1)
    arrived = transitions.arrivals(index).argmax(1)
    found = lambda_returns(rewards.rewards, value[arrived], transitions, mdp.discount, 0.4)
    sums, counts = np.zeros((2, mdp.states, mdp.actions))
    at = (states.numpy(), transitions.actions.argmax(1).numpy())
    np.add.at(sums, at, found.numpy())
    np.add.at(counts, at, 1)
    errors = sums / counts / (1 - mdp.discount) - mdp.q()
    assert np.sqrt((errors**2).mean()) < 0.1 * mdp.q().std()  # 550 visits a pair


def test_the_next_pair_follows_and_at_the_end_the_state_alone() -> None:
    data = make_transitions([3, 1, 2], [False, True, False])
    pairs, arrivals = torch.arange(6.0), torch.arange(10.0, 16.0)
    assert of_next_pairs(pairs, arrivals, data).tolist() == [1.0, 2.0, 12.0, 13.0, 5.0, 15.0]


def test_targets_are_in_the_scale_of_the_episodes_that_decide_it() -> None:
    data = make_transitions([4] * 5, [False] * 5)
    rewards = torch.arange(20.0)
    index = torch.arange(8)
    log = LoggedReturns.of(data, rewards, 0.9, 0.5, index)
    assert log.deviation == pytest.approx(float(log.returns[index].std(correction=0)))
    weighted = float((log.shares[index] * log.returns[index]).sum() / log.shares[index].sum())
    assert log.mean == pytest.approx(weighted)
    torch.testing.assert_close(log.mean + log.deviation * log.standard(log.returns), log.returns.float())
    following = lambda_returns(rewards, torch.full((20,), log.mean), data, 0.9, 0.5)
    torch.testing.assert_close(log.followed(torch.zeros(20)), following)


def test_without_transitions_there_is_no_deviation() -> None:
    data = make_transitions([4] * 2, [False] * 2)
    assert LoggedReturns.of(data, torch.arange(8.0), 0.9, 0.5, torch.arange(0)).deviation == 0.0
