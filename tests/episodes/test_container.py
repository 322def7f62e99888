from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cvl_pipeline.episodes.container import Transitions
from cvl_pipeline.testing.builders import make_discrete_transitions, make_rewards, make_transitions, slices

EPISODES = st.lists(st.tuples(st.integers(1, 6), st.booleans()), min_size=1, max_size=6)


def _build(episodes: list[tuple[int, bool]]) -> Transitions:
    return make_transitions([length for length, _ in episodes], [end for _, end in episodes])


def test_transition_n_of_episode_e_starts_from_observation_row_n_plus_e(transitions: Transitions) -> None:
    # By hand, for lengths 5, 1, 7, 3, 9, 4.
    expected = [0, 1, 2, 3, 4, 6, 8, 9, 10, 11, 12, 13, 14, 16, 17, 18]
    assert torch.equal(transitions.states()[:16], transitions.observations[expected])
    assert len(transitions) == 29
    assert transitions.episodes == 6
    assert transitions.lengths.tolist() == [5, 1, 7, 3, 9, 4]


def test_episode_of_finds_first_and_last_transition_of_every_episode(transitions: Transitions) -> None:
    assert transitions.episode_of(torch.tensor([0, 4, 5, 6, 12, 13, 15, 16, 24, 25, 28])).tolist() == [
        0, 0, 1, 2, 2, 3, 3, 4, 4, 5, 5,
    ]  # fmt: skip
    assert transitions.episode_of(torch.tensor([[0, 28], [5, 6]])).tolist() == [[0, 5], [1, 2]]


@given(EPISODES)
def test_states_and_arrivals_lack_the_last_and_the_first_row_of_each_episode(
    episodes: list[tuple[int, bool]],
) -> None:
    data = _build(episodes)
    rows = [part["observations"] for part in slices(data)]
    assert torch.equal(data.states(), torch.cat([part[:-1] for part in rows]))
    assert torch.equal(data.arrivals(), torch.cat([part[1:] for part in rows]))


@given(EPISODES)
def test_selecting_all_episodes_is_the_identity(episodes: list[tuple[int, bool]]) -> None:
    data = _build(episodes)
    selected = data.select(torch.arange(data.episodes))
    torch.testing.assert_close(vars(selected), vars(data), rtol=0, atol=0)


@given(EPISODES, st.data())
def test_select_copies_the_given_episodes_in_the_given_order(
    episodes: list[tuple[int, bool]], draw: st.DataObject
) -> None:
    data = _build(episodes)
    chosen = draw.draw(st.lists(st.integers(0, data.episodes - 1), min_size=1, max_size=8))
    selected = slices(data.select(torch.tensor(chosen)))
    whole = slices(data)
    assert len(selected) == len(chosen)
    for part, episode in zip(selected, chosen, strict=True):
        assert torch.equal(part["observations"], whole[episode]["observations"])
        assert torch.equal(part["actions"], whole[episode]["actions"])
        assert part["terminated"] == whole[episode]["terminated"]
        assert part["truncated"] == whole[episode]["truncated"]


@given(EPISODES, st.data())
def test_transition_index_lists_the_transitions_of_the_chosen_episodes(
    episodes: list[tuple[int, bool]], draw: st.DataObject
) -> None:
    data = _build(episodes)
    chosen = draw.draw(st.lists(st.integers(0, data.episodes - 1), min_size=1, max_size=8))
    expected = [n for episode in chosen for n in slices(data)[episode]["index"]]
    assert data.transition_index(torch.tensor(chosen)).tolist() == expected


def test_rewards_follow_the_transitions_that_are_selected(transitions: Transitions) -> None:
    rewards = make_rewards(transitions)
    chosen = torch.tensor([3, 1])
    labels = rewards.select(transitions.transition_index(chosen))
    assert labels.rewards.tolist() == rewards.rewards[[13, 14, 15, 5]].tolist()
    assert labels.successes.tolist() == rewards.successes[[13, 14, 15, 5]].tolist()


@pytest.mark.parametrize("reported", [True, False])
def test_selected_rewards_report_success_if_all_of_them_do(transitions: Transitions, reported: bool) -> None:
    rewards = replace(make_rewards(transitions), success_reported=torch.tensor(reported))
    assert rewards.reports_success is reported
    assert rewards.select(torch.tensor([3, 1])).reports_success is reported
    assert make_rewards(transitions).reports_success


def test_rewards_are_missing_only_if_all_of_them_are(transitions: Transitions) -> None:
    rewards = make_rewards(transitions)
    assert not rewards.missing
    nothing = torch.full_like(rewards.rewards, torch.nan)
    assert replace(rewards, rewards=nothing).missing
    assert not replace(rewards, rewards=torch.where(torch.arange(len(nothing)) == 3, 1.0, nothing)).missing


def test_to_keeps_every_field() -> None:
    data = make_discrete_transitions([5, 1, 7], [True, False, False])
    torch.testing.assert_close(vars(data.to("cpu")), vars(data), rtol=0, atol=0)


def test_a_selection_keeps_the_kind_of_the_actions(
    transitions: Transitions,
) -> None:
    discrete = make_discrete_transitions([5, 1, 7], [True, False, False])
    for data, expected in ((transitions, False), (discrete, True)):
        assert bool(data.discrete) is expected
        assert bool(data.select(torch.tensor([2, 0])).discrete) is expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_states_are_on_the_device_of_the_episodes(transitions: Transitions) -> None:
    assert torch.equal(transitions.to("cuda").states().cpu(), transitions.states())
