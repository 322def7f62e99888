from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cvl_pipeline.episodes.container import Rewards, Transitions
from cvl_pipeline.episodes.preparation import (
    coverage,
    discounted_returns,
    duplicate_episodes,
    episode_summary,
    episode_table,
    fit_normalisation,
    observed_returns,
    split_episodes,
    with_tasks,
)
from cvl_pipeline.errors import InputError
from cvl_pipeline.testing.builders import make_rewards, make_transitions, slices, split_first


@given(
    episodes=st.integers(2, 40),
    fraction=st.floats(0.0, 1.0, exclude_min=True, exclude_max=True),
    seed=st.integers(0, 2**40),
)
def test_split_is_disjoint_complete_ascending_and_leaves_no_part_empty(
    episodes: int, fraction: float, seed: int
) -> None:
    split = split_episodes(make_transitions([1] * episodes, [False] * episodes), fraction, seed)
    train, validation = split.train.tolist(), split.validation.tolist()
    assert sorted(train + validation) == list(range(episodes))
    assert train == sorted(train)
    assert validation == sorted(validation)
    assert len(validation) == min(max(1, round(fraction * episodes)), episodes - 1)


def test_the_seed_determines_the_split() -> None:
    data = make_transitions([2] * 30, [False] * 30)
    first, again, other = (split_episodes(data, 0.3, seed).validation.tolist() for seed in (5, 5, 6))
    assert first == again
    assert first != other


def test_every_episode_is_held_out_by_some_seed() -> None:
    data = make_transitions([1] * 6, [False] * 6)
    held_out = {int(e) for seed in range(60) for e in split_episodes(data, 0.2, seed).validation}
    assert held_out == set(range(6))


def test_one_episode_cannot_be_split() -> None:
    with pytest.raises(InputError, match="1 episode cannot be split"):
        split_episodes(make_transitions([5], [False]), 0.1, 0)


def test_normalisation_uses_only_training_episodes(transitions: Transitions) -> None:
    split = split_first(transitions, 4)
    spoilt = transitions.observations.clone()
    spoilt[4 + 16 :] = 1e6  # all rows of episodes 4 and 5
    spoilt_actions = transitions.actions.clone()
    spoilt_actions[16:] = 1e6
    fitted = fit_normalisation(replace(transitions, observations=spoilt, actions=spoilt_actions), split, 1e-3)
    observations = torch.cat([part["observations"] for part in slices(transitions)[:4]]).double().numpy()
    actions = transitions.actions[:16].double().numpy()
    np.testing.assert_allclose(fitted.observation_mean, observations.mean(0), rtol=1e-6)
    np.testing.assert_allclose(fitted.observation_std, observations.std(0), rtol=1e-6)
    np.testing.assert_allclose(fitted.action_mean, actions.mean(0), rtol=1e-5)
    np.testing.assert_allclose(fitted.action_std, actions.std(0), rtol=1e-6)
    assert fitted.observation_mean.dtype == torch.float32


def test_almost_constant_dimensions_get_the_floor(transitions: Transitions) -> None:
    observations = transitions.observations.clone()
    observations[:, 1] = 0.25
    observations[:, 2] = 0.25 + 1e-5 * observations[:, 2]
    fitted = fit_normalisation(
        replace(transitions, observations=observations), split_first(transitions, 5), 0.01
    )
    assert fitted.observation_std[1:].tolist() == pytest.approx([0.01, 0.01])
    assert fitted.observation_std[0] > 0.1


@given(
    episodes=st.lists(st.tuples(st.integers(1, 8), st.booleans()), min_size=1, max_size=5),
    discount=st.floats(0.0, 1.0),
)
def test_discounted_returns_equal_the_explicit_sum(episodes: list[tuple[int, bool]], discount: float) -> None:
    data = make_transitions([length for length, _ in episodes], [end for _, end in episodes])
    rewards = make_rewards(data).rewards
    expected = []
    for part in slices(data):
        for t in part["index"]:
            rest = [n for n in part["index"] if n >= t]
            expected.append(sum(discount ** (n - t) * float(rewards[n]) for n in rest))
    result = discounted_returns(rewards, data, discount)
    assert result.dtype == torch.float64
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-12, atol=1e-12)


def test_observed_returns_are_divided_by_the_logged_share_of_the_future() -> None:
    data = make_transitions([3, 2], [False, True])
    rewards = torch.tensor([1.0, 2.0, 4.0, 3.0, 5.0])
    returns = observed_returns(rewards, data, 0.5)
    # Three, two and one logged steps of the truncated episode are 7/8, 3/4 and 1/2 of its future.
    np.testing.assert_allclose(returns, [3.0 / 0.875, 4.0 / 0.75, 4.0 / 0.5, 5.5, 5.0])


def test_the_episode_table_has_one_row_per_episode(transitions: Transitions, rewards: Rewards) -> None:
    split = split_episodes(transitions, 0.34, 2)
    table = episode_table(transitions, rewards, split)
    assert table["episode"].tolist() == [0, 1, 2, 3, 4, 5]
    assert table["length"].tolist() == [5, 1, 7, 3, 9, 4]
    assert table["terminated"].tolist() == [True, False, False, True, False, True]
    assert table["truncated"].tolist() == [False, True, True, False, True, False]
    assert set(table.loc[table["part"] == "validation", "episode"]) == set(split.validation.tolist())
    assert set(table.loc[table["part"] == "train", "episode"]) == set(split.train.tolist())
    for e, part in enumerate(slices(transitions)):
        labels = rewards.select(torch.tensor(part["index"]))
        assert table["return"][e] == pytest.approx(float(labels.rewards.double().sum()), rel=1e-12)
        assert table["success"][e] == bool(labels.successes.any())


def test_the_summary_has_length_return_and_success_at_any_step() -> None:
    data = make_transitions([3, 1, 2], [False, True, False])
    labels = Rewards(
        rewards=torch.tensor([1.0, 2.0, 4.0, 0.5, -1.0, -2.0]),
        successes=torch.tensor([False, True, False, False, False, True]),
    )
    table = episode_summary(data, labels)
    assert table["length"].tolist() == [3, 1, 2]
    assert table["return"].tolist() == [7.0, 0.5, -3.0]
    assert table["success"].tolist() == [True, False, True]
    assert not table["success"].isna().any()


def test_success_and_return_are_missing_where_nothing_reports_them(
    transitions: Transitions, rewards: Rewards
) -> None:
    nothing = torch.zeros(len(transitions), dtype=torch.bool), torch.tensor(False)
    unreported = Rewards(rewards.rewards, *nothing)
    without = Rewards(torch.full_like(rewards.rewards, torch.nan), *nothing)
    split = split_first(transitions, 4)
    for table in (episode_summary(transitions, unreported), episode_table(transitions, unreported, split)):
        assert table["success"].isna().all()
        assert table["success"].dtype == "boolean"
        assert table["success"][0] is pd.NA
        assert table["return"].notna().all()
    assert episode_table(transitions, without, split)["return"].isna().all()
    # Reported, but never solved, is another thing.
    never = Rewards(rewards.rewards, nothing[0])
    assert episode_summary(transitions, never)["success"].tolist() == [False] * 6


def test_a_table_of_several_tasks_names_the_task_of_every_episode() -> None:
    data = make_transitions([2, 1, 3], [False] * 3, observation_size=4)
    observations = data.observations.clone()
    observations[:, 2:] = torch.tensor([[0.0, 1.0]] * 3 + [[1.0, 0.0]] * 2 + [[0.0, 1.0]] * 4)
    data = replace(data, observations=observations)
    table = pd.DataFrame({"return": [1.0, 2.0, 3.0]})
    assert with_tasks(table, data, ("reach", "push"))["task"].tolist() == ["push", "reach", "push"]
    assert with_tasks(table, data, ()) is table


def test_an_episode_that_repeats_an_earlier_one_is_found() -> None:
    data = make_transitions([3, 5, 3, 5], [False, True, False, True])
    order = torch.tensor([0, 1, 2, 0, 3, 1])
    assert duplicate_episodes(data.select(order)).tolist() == [False, False, False, True, False, True]


def test_episodes_that_differ_in_one_action_are_not_duplicates() -> None:
    data = make_transitions([3, 3], [False, False])
    same = data.select(torch.tensor([0, 0]))
    actions = same.actions.clone()
    actions[-1, 0] += 0.25
    assert duplicate_episodes(same).tolist() == [False, True]
    assert not duplicate_episodes(replace(same, actions=actions)).any()


def test_coverage_is_the_plane_of_largest_variance() -> None:
    data = make_transitions([500], [False], observation_size=3)
    spread = data.observations * torch.tensor([1.0, 10.0, 0.01])
    data = replace(data, observations=spread)
    split = split_first(data, 1)
    plain = replace(fit_normalisation(data, split, 1e-6), observation_std=torch.ones(3))
    found = coverage(data, plain, count=10_000, seed=0)
    assert len(found) == 501
    order = torch.randperm(501, generator=torch.Generator().manual_seed(0))
    wide = (spread[order] - spread.mean(0))[:, 1].numpy()
    assert abs(np.corrcoef(found["first"], wide)[0, 1]) > 0.999
    assert found["first"].std() == pytest.approx(10.0, rel=0.1)
    assert found["second"].std() == pytest.approx(1.0, rel=0.1)
    assert len(coverage(data, plain, count=20, seed=0)) == 20


def test_coverage_of_a_single_dimension_is_a_line() -> None:
    data = make_transitions([30], [False], observation_size=1)
    found = coverage(data, fit_normalisation(data, split_first(data, 1), 1e-3), count=10, seed=0)
    assert (found["second"] == 0.0).all()


def test_a_source_can_hold_out_its_last_episodes() -> None:
    transitions = replace(make_transitions([2, 3, 2, 4], [False] * 4), held_out=torch.tensor(1))
    for seed in (0, 1):
        split = split_episodes(transitions, 0.5, seed)
        assert (split.train.tolist(), split.validation.tolist()) == ([0, 1, 2], [3])
    for held_out in (-1, 4):
        with pytest.raises(InputError, match=f"the source holds out {held_out} of 4 episodes"):
            split_episodes(replace(transitions, held_out=torch.tensor(held_out)), 0.5, 0)
