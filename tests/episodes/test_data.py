from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cvl_pipeline.episodes.container import Rewards, Transitions
from cvl_pipeline.episodes.data import EpisodeData
from cvl_pipeline.episodes.parameters import IngestionParameters
from cvl_pipeline.episodes.preparation import fit_normalisation, split_episodes
from cvl_pipeline.errors import InputError
from cvl_pipeline.testing.builders import make_rewards, make_transitions


def test_prepared_episodes_have_a_split_and_statistics(transitions: Transitions, rewards: Rewards) -> None:
    parameters = IngestionParameters(validation_fraction=0.3, std_floor=0.5)
    data = EpisodeData.prepare(transitions, rewards, parameters, seed=3)
    split = split_episodes(transitions, 0.3, 3)
    assert data.transitions is transitions
    assert data.rewards is rewards
    assert torch.equal(data.split.train, split.train)
    assert torch.equal(data.split.validation, split.validation)
    expected = fit_normalisation(transitions, split, 0.5)
    torch.testing.assert_close(vars(data.normalisation), vars(expected), rtol=0, atol=0)


def test_settings_and_rewards_are_optional(transitions: Transitions) -> None:
    data = EpisodeData.prepare(transitions)
    assert data.rewards is None
    assert torch.equal(data.split.train, split_episodes(transitions, 0.1, 0).train)


def test_faulty_episodes_and_rewards_are_refused(transitions: Transitions, rewards: Rewards) -> None:
    with pytest.raises(InputError, match=r"transitions\.actions: nan"):
        EpisodeData.prepare(replace(transitions, actions=transitions.actions * torch.nan), rewards)
    with pytest.raises(InputError, match=r"rewards\.rewards: shape \(28,\)"):
        EpisodeData.prepare(transitions, replace(rewards, rewards=rewards.rewards[1:]))
    with pytest.raises(
        InputError, match=r"1 episode cannot be split, and all 4 steps are in one; .* flag the last row"
    ):
        EpisodeData.prepare(make_transitions([4], [False]))


def test_a_split_of_another_log_is_named(transitions: Transitions) -> None:
    data = EpisodeData.prepare(transitions)
    with pytest.raises(InputError, match=r"the split names episode \d+, but the transitions have 2"):
        replace(data, transitions=transitions.select(torch.tensor([0, 1])))


def test_other_rewards_must_be_those_of_the_transitions(transitions: Transitions, rewards: Rewards) -> None:
    data = EpisodeData.prepare(transitions, rewards)
    with pytest.raises(InputError, match=r"rewards\.rewards: shape \(\d+,\)"):
        data.with_rewards(replace(rewards, rewards=rewards.rewards.repeat(2)))


def test_rewards_are_in_single_precision(transitions: Transitions, rewards: Rewards) -> None:
    for values in (rewards.rewards.double(), (rewards.rewards > 0.5).long()):
        other = replace(rewards, rewards=values)
        for data in (
            EpisodeData.prepare(transitions, other),
            EpisodeData.prepare(transitions).with_rewards(other),
        ):
            assert data.rewards is not None
            assert torch.equal(data.rewards.rewards, values.float())
    too_large = replace(rewards, rewards=torch.full((29,), 1e39, dtype=torch.float64))
    with pytest.raises(InputError, match=r"rewards\.rewards: inf at index"):
        EpisodeData.prepare(transitions, too_large)


def test_rewards_are_replaced_or_removed_and_nothing_else(transitions: Transitions, rewards: Rewards) -> None:
    data = EpisodeData.prepare(transitions, rewards)
    other = make_rewards(transitions, seed=9)
    for changed, expected in ((data.with_rewards(other), other), (data.without_rewards(), None)):
        assert changed.rewards is expected
        assert changed.transitions is data.transitions
        assert changed.split is data.split
        assert changed.normalisation is data.normalisation
    assert data.rewards is rewards


def test_parts_are_named_by_their_kind(transitions: Transitions, rewards: Rewards) -> None:
    data = EpisodeData.prepare(transitions, rewards)
    assert list(data.parts()) == ["transitions", "split", "normalisation", "rewards"]
    assert list(data.without_rewards().parts()) == ["transitions", "split", "normalisation"]
    assert EpisodeData(**data.parts()) == data
