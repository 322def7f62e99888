from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from cvl_pipeline.episodes.container import Rewards, Transitions
from cvl_pipeline.episodes.validation import validate_rewards, validate_transitions
from cvl_pipeline.errors import InputError
from cvl_pipeline.testing.builders import make_discrete_transitions


def _with(values: torch.Tensor, place: tuple[int, int], value: float) -> torch.Tensor:
    changed = values.clone()
    changed[place] = value
    return changed


def test_sound_episodes_and_rewards_pass(transitions: Transitions, rewards: Rewards) -> None:
    validate_transitions(transitions)
    validate_rewards(rewards, transitions)


def test_actions_on_the_bounds_pass(transitions: Transitions) -> None:
    actions = transitions.actions.clone()
    actions[0], actions[1] = transitions.action_low, transitions.action_high
    validate_transitions(replace(transitions, actions=actions))


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (
            lambda d: {"observations": _with(d.observations, (7, 2), float("nan"))},
            ["transitions.observations", "nan", "(7, 2)"],
        ),
        (
            lambda d: {"observations": _with(d.observations, (0, 0), float("inf"))},
            ["transitions.observations", "inf", "(0, 0)"],
        ),
        (
            lambda d: {"actions": _with(d.actions, (28, 1), float("nan"))},
            ["transitions.actions", "nan", "(28, 1)"],
        ),
        (
            lambda d: {"actions": _with(d.actions, (3, 1), 1.5)},
            ["transitions.actions", "1.5", "transition 3", "dimension 1", "[-1, 1]"],
        ),
        (
            lambda d: {"actions": _with(d.actions, (4, 0), -1.25)},
            ["transitions.actions", "-1.25", "transition 4", "dimension 0"],
        ),
        (lambda d: {"observations": d.observations[:-1]}, ["transitions.observations", "34", "29", "35"]),
        (
            lambda d: {"episode_starts": torch.tensor([0, 5, 6, 13, 16, 25, 30])},
            ["transitions.episode_starts", "30", "29"],
        ),
        (
            lambda d: {"episode_starts": torch.tensor([1, 5, 6, 13, 16, 25, 29])},
            ["transitions.episode_starts", "1 to 29"],
        ),
        (
            lambda d: {"episode_starts": torch.tensor([0, 5, 5, 13, 16, 25, 29])},
            ["transitions.episode_starts", "episode 1"],
        ),
        (
            lambda d: {"observations": d.observations[:, :0]},
            ["transitions.observations", "(35, 0)", "no numbers"],
        ),
        (lambda d: {"actions": d.actions[:, :0]}, ["transitions.actions", "(29, 0)", "no numbers"]),
        (lambda d: {"terminated": d.terminated[:-1]}, ["transitions.terminated", "(5,)", "(6,)"]),
        (lambda d: {"truncated": d.truncated[:, None]}, ["transitions.truncated", "(6, 1)"]),
        (lambda d: {"terminated": d.terminated.long()}, ["transitions.terminated", "int64", "torch.bool"]),
        (lambda d: {"truncated": d.truncated.float()}, ["transitions.truncated", "float32", "torch.bool"]),
        (lambda d: {"actions": d.actions.double()}, ["transitions.actions", "float64", "float32"]),
        (
            lambda d: {
                "actions": d.actions[:, 0],
                "action_low": d.action_low[:1],
                "action_high": d.action_high[:1],
            },
            ["transitions.actions", "(29,)", "(transitions, A)"],
        ),
        (
            lambda d: {"action_low": torch.tensor([-1.0, -3e38]), "action_high": torch.tensor([1.0, 2e38])},
            ["transitions.action_high", "2e+38", "dimension 1", "-3e+38", "bounds"],
        ),
    ],
)
def test_faulty_episodes_are_refused_by_field_place_and_value(
    transitions: Transitions, change: Any, parts: list[str]
) -> None:
    with pytest.raises(InputError) as caught:
        validate_transitions(replace(transitions, **change(transitions)))
    for part in parts:
        assert part in str(caught.value)


def test_discrete_actions_that_are_one_hot_pass() -> None:
    validate_transitions(make_discrete_transitions([5, 1, 7], [True, False, False]))


@pytest.mark.parametrize("row", [[0.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.5, 0.5, 0.0], [0.0, 0.7, 0.0]])
def test_discrete_actions_that_are_not_one_hot_are_refused(row: list[float]) -> None:
    data = make_discrete_transitions([5, 1, 7], [True, False, False])
    actions = data.actions.clone()
    actions[11] = torch.tensor(row)
    faulty = replace(data, actions=actions)
    with pytest.raises(InputError, match=r"transitions\.actions.* at transition 11 is not one-hot"):
        validate_transitions(faulty)
    # The same vectors are valid continuous actions.
    validate_transitions(replace(faulty, discrete=torch.tensor(False)))


def test_no_episode_at_all_is_refused(transitions: Transitions) -> None:
    empty = replace(
        transitions,
        observations=transitions.observations[:0],
        actions=transitions.actions[:0],
        episode_starts=torch.zeros(1, dtype=torch.int64),
        terminated=transitions.terminated[:0],
        truncated=transitions.truncated[:0],
    )
    with pytest.raises(InputError, match="no episode"):
        validate_transitions(empty)


@pytest.mark.parametrize("field", ["rewards", "successes"])
def test_labels_of_another_number_of_transitions_are_refused(
    transitions: Transitions, rewards: Rewards, field: str
) -> None:
    short = replace(rewards, **{field: getattr(rewards, field)[:-1]})
    with pytest.raises(InputError, match=rf"rewards\.{field}.*\(28,\).*29"):
        validate_rewards(short, transitions)


def test_successes_that_are_no_flags_are_refused(transitions: Transitions, rewards: Rewards) -> None:
    with pytest.raises(InputError, match=r"rewards\.successes: torch\.int64; it must be torch\.bool"):
        validate_rewards(replace(rewards, successes=rewards.successes.long()), transitions)


def test_a_reward_that_is_no_number_is_refused(transitions: Transitions, rewards: Rewards) -> None:
    values = rewards.rewards.clone()
    values[11] = -torch.inf
    with pytest.raises(InputError, match=r"rewards\.rewards: -inf at index \(11,\)"):
        validate_rewards(replace(rewards, rewards=values), transitions)
