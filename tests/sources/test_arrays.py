from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from cvl_pipeline.episodes.container import Rewards, Transitions
from cvl_pipeline.episodes.validation import validate_rewards, validate_transitions
from cvl_pipeline.errors import InputError
from cvl_pipeline.sources.arrays import load_arrays
from cvl_pipeline.testing.builders import make_discrete_transitions, make_rewards, make_transitions, slices
from tests.sources.rows import assert_equal, log_of

ROWS = np.arange(6)
SMALL: dict[str, Any] = {
    "observations": np.stack([ROWS, -ROWS], axis=1).astype(np.float32),
    "actions": np.array([[0.0, 1.0], [0.5, -1.0], [1.0, 0.0], [-1.0, 0.5], [0.0, 0.0], [0.25, 0.25]]),
    "rewards": np.linspace(0.0, 1.0, 6),
    "truncated": np.array([0, 0, 1, 0, 0, 1]),
}
"""Two truncated episodes of three steps."""


def _load(**changes: Any) -> tuple[Transitions, Rewards]:
    transitions, rewards = load_arrays(**(SMALL | changes))
    validate_transitions(transitions)
    validate_rewards(rewards, transitions)
    return transitions, rewards


def _arrays(data: Transitions, rewards: Rewards) -> dict[str, Any]:
    """All arrays of a log, with one row per step."""
    log = log_of(data, rewards)
    names = {
        "observations": "observation", "actions": "action", "next_observations": "next", "rewards": "reward",
        "successes": "success", "terminated": "terminated", "truncated": "truncated",
    }  # fmt: skip
    return {name: log[column] for name, column in names.items()}


@pytest.mark.parametrize(
    "kind", [np.asarray, torch.tensor, np.ndarray.tolist], ids=["arrays", "tensors", "lists"]
)
def test_episodes_with_next_observations_lose_no_step(
    transitions: Transitions, rewards: Rewards, kind: Any
) -> None:
    arrays = {name: kind(values) for name, values in _arrays(transitions, rewards).items()}
    found = load_arrays(**arrays, action_low=[-1.0, -1.0], action_high=[1.0, 1.0])
    assert_equal(found, (transitions, rewards))


def test_choices_become_one_hot_vectors() -> None:
    data = make_discrete_transitions([5, 1, 7], [True, False, False], action_size=3)
    rewards = make_rewards(data)
    arrays = _arrays(data, rewards) | {"actions": data.actions.argmax(1).numpy()}
    assert_equal(load_arrays(**arrays, action_count=3), (data, rewards))
    more, _ = load_arrays(**arrays, action_count=5)
    assert more.actions.shape == (13, 5)
    assert (more.action_low.tolist(), more.action_high.tolist()) == ([0.0] * 5, [1.0] * 5)


@pytest.mark.parametrize(("codes", "size"), [([0, 2, 1, 0, 0, 1], 3), ([0, 1, 0, 0, 0, 0], 2)])
def test_the_largest_choice_tells_how_many_there_are(codes: list[int], size: int) -> None:
    transitions, _ = _load(actions=codes)
    assert transitions.discrete
    assert transitions.actions.shape[1] == size


def test_flags_say_how_episodes_end() -> None:
    transitions, _ = _load(terminated=[False, True, False, False, False, False], truncated=None)
    assert transitions.terminated.tolist() == [True, False]
    assert transitions.truncated.tolist() == [False, True]  # by the end of the arrays
    assert [len(episode["index"]) for episode in slices(transitions)] == [2, 3]
    transitions, _ = _load(terminated=SMALL["truncated"])
    assert transitions.terminated.tolist() == [True, True]
    assert transitions.truncated.tolist() == [False, False]


def test_rewards_and_successes_are_optional() -> None:
    _, rewards = _load(rewards=None)
    assert rewards.missing
    assert not rewards.reports_success
    _, rewards = _load(successes=[0, 1, 0, 0, 0, 1])
    assert rewards.reports_success
    assert rewards.successes.tolist() == [False, True, False, False]
    _, rewards = _load(successes=[0] * 6)
    assert rewards.reports_success


def test_bounds_are_those_of_the_log_unless_they_are_given() -> None:
    transitions, _ = _load()
    assert (transitions.action_low.tolist(), transitions.action_high.tolist()) == ([-1, -1], [0.5, 1])
    transitions, _ = _load(action_low=[-2, -3])
    assert (transitions.action_low.tolist(), transitions.action_high.tolist()) == ([-2, -3], [1, 1])
    transitions, _ = _load(action_high=(4, 5))
    assert (transitions.action_low.tolist(), transitions.action_high.tolist()) == ([-1, -1], [4, 5])


@pytest.mark.parametrize("name", ["observations", "next_observations"])
def test_images_stay_as_they_are(name: str) -> None:
    pictures = np.arange(7 * 5 * 4 * 3).reshape(7, 5, 4, 3).astype(np.uint8)
    changes: dict[str, Any] = {"observations": pictures[:6]}
    if name == "next_observations":
        changes |= {name: pictures[1:]}
    transitions, _ = _load(**changes)
    assert transitions.observations.dtype == torch.uint8
    expected = pictures[:6] if name == "observations" else pictures[[0, 1, 2, 3, 3, 4, 5, 6]]
    np.testing.assert_array_equal(transitions.observations, expected)


def test_arrays_are_copied() -> None:
    arrays = {name: values.copy() for name, values in SMALL.items()}
    transitions, rewards = load_arrays(**arrays)
    for values in arrays.values():
        values[:] = 0
    expected = _load()
    assert_equal((transitions, rewards), expected)


def _with(name: str, place: Any, value: Any) -> dict[str, Any]:
    values = SMALL[name].astype(np.float64) if name in SMALL else np.zeros(6)
    values[place] = value
    return {name: values}


PICTURES = np.arange(6 * 5 * 4 * 3).reshape(6, 5, 4, 3).astype(np.uint8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"observations": np.zeros((0, 2))}, "observations have no rows"),
        ({"observations": np.arange(6.0)}, r"observations are float64 of shape \(6,\); give vectors, \(N, O\)"),
        ({"observations": np.zeros((6, 1, 2))}, r"observations are float64 of shape \(6, 1, 2\)"),
        ({"observations": np.zeros((6, 0))}, r"observations are float64 of shape \(6, 0\)"),
        ({"observations": np.zeros((6, 5, 4, 3))}, r"float64 of shape \(6, 5, 4, 3\); .* or images, .* uint8"),
        ({"observations": [["a", "b"]] * 6}, "observations are <U1, not numbers"),
        ({"observations": np.array([[None, 1]] * 6)}, "observations are object, not numbers"),
        ({"observations": [[1.0, 2.0], [3.0]] * 3}, r"observations are not an array of numbers \(ValueError: "),
        ({"observations": np.ones((6, 2), dtype=complex)}, "observations are complex128, not numbers"),
        (_with("observations", (4, 1), np.nan), r"observations\[4, 1\] is nan, not a finite number; repair"),
        (_with("observations", (3, 0), -np.inf), r"observations\[3, 0\] is -inf, not a finite number"),
        (_with("observations", (3, 0), 1e60), r"observations\[3, 0\] is 1e\+60, too large for single precision"),
        ({"observations": SMALL["observations"][:5]}, "actions have 6 rows, but observations 5; give one per step"),
        ({"actions": np.zeros((6, 1, 2))}, r"actions have shape \(6, 1, 2\); give vectors, \(N, A\), or discrete"),
        ({"actions": 1.0}, r"actions have shape \(\); give vectors"),
        ({"actions": np.zeros((6, 0))}, r"actions have shape \(6, 0\); give vectors"),
        ({"actions": ["left"] * 6}, "actions are <U4, not numbers"),
        ({"actions": [0.0, 1.0] * 3}, r"actions are float64 of shape \(6,\), which means discrete actions; give int"),
        ({"actions": [True, False] * 3}, r"actions are bool of shape \(6,\), which means discrete actions"),
        ({"actions": [0, 1, -1, 0, 0, 0]}, r"actions\[2\] is -1, not from 0 to 65535; number"),
        ({"actions": [0, 1, 10**7, 0, 0, 0]}, r"actions\[2\] is 10000000, not from 0 to 65535"),
        ({"actions": [0, 1, 2, 0, 0, 0], "action_count": 2}, r"actions\[2\] is 2, not from 0 to 1"),
        ({"actions": [0] * 6}, "actions are all 0, so there is nothing to choose; give action_count"),
        ({"actions": [0, 1] * 3, "action_count": 1}, "action_count is 1; it must be from 2 to 65536"),
        ({"actions": [0, 1] * 3, "action_low": [0, 0]}, "action_low and action_high: discrete actions have no bounds"),
        ({"action_count": 2}, "action_count is 2, but actions are vectors; leave it out"),
        (_with("actions", (5, 1), np.nan), r"actions\[5, 1\] is nan, not a finite number"),
        ({"action_low": [-1.0]}, r"action_low has shape \(1,\), not \(2,\); give one number per action dimension"),
        ({"action_high": 1.0}, r"action_high has shape \(\), not \(2,\)"),
        ({"action_high": ["a", "b"]}, "action_high are <U1, not numbers"),
        ({"action_low": [np.nan, -1.0]}, r"action_low\[0\] is nan, not a finite number$"),
        ({"action_low": [-0.5, -1.0]}, r"actions\[3, 0\] is -1, outside \[-0.5, 1\]; 1 action is .* by at most 0.5"),
        ({"action_low": [-9, 8], "action_high": [9, 7]}, r"actions\[0, 1\] is 1, outside \[8, 7\]"),
        ({"rewards": 2**53 + np.arange(6)}, "arrays: rewards: 6 different numbers from 9007199254740992"),
        ({"actions": 2**53 + np.arange(12).reshape(6, 2)}, "arrays: actions, dimension 0: .* different numbers from"),
        (
            {"actions": 2**53 + np.arange(12).reshape(6, 2), "action_low": [0, 0], "action_high": [1e20, 1e20]},
            "arrays: actions, dimension 0: .* different numbers from",
        ),
        ({"rewards": np.arange(6) // 5}, r"arrays: all 1 rewards other than 0 \(rewards\) are in the last step"),
        ({"rewards": np.zeros((6, 1))}, r"rewards have shape \(6, 1\), not \(6,\); give one number per step"),
        ({"rewards": np.zeros(5)}, r"rewards have shape \(5,\), not \(6,\)"),
        ({"rewards": np.ma.masked_equal(np.arange(6), 2)}, "rewards have masked values, .* fill them in"),
        ({"observations": np.ma.masked_less(SMALL["observations"], 1)}, "observations have masked values"),
        ({"rewards": ["much"] * 6}, "rewards are <U4, not numbers"),
        # Row 3 is transition 2: the last step of the first episode is dropped.
        (_with("rewards", 3, np.nan), r"rewards\[3\] is nan, not a finite number"),
        ({"rewards": np.full(6, np.nan)}, r"rewards\[0\] is nan, not a finite number"),
        ({"truncated": SMALL["truncated"][:, None]}, r"truncated have shape \(6, 1\), not \(6,\)"),
        ({"terminated": np.zeros(5)}, r"terminated have shape \(5,\), not \(6,\)"),
        ({"terminated": ["no"] * 6}, "terminated are <U2, not numbers"),
        (_with("terminated", 2, np.nan), r"terminated\[2\] is nan, not a finite number"),
        (_with("truncated", 1, 2), r"truncated\[1\] is 2.0, not a flag; give 0 and 1, or False and True"),
        (_with("successes", 4, 0.5), r"successes\[4\] is 0.5, not a flag"),
        ({"next_observations": np.zeros((6, 3))}, r"next_observations have shape \(6, 3\), but observations \(6, 2\)"),
        ({"next_observations": np.arange(6.0)}, r"next_observations are float64 of shape \(6,\); give vectors"),
        ({"next_observations": [["a", "b"]] * 6}, "next_observations are <U1, not numbers"),
        ({"next_observations": np.full((6, 2), np.nan)}, r"next_observations\[0, 0\] is nan"),
        ({"truncated": [1] * 6}, "every episode is one step long and the log has no next_observations"),
    ],
)  # fmt: skip
def test_faulty_arrays_are_refused_by_name_place_and_value(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_arrays(**(SMALL | changes))
    assert "\n" not in str(caught.value)


def test_steps_that_do_not_follow_each_other_are_refused() -> None:
    """A shuffled replay buffer has next observations, but no episodes."""
    following = np.roll(SMALL["observations"], -1, axis=0)
    assert len(_load(next_observations=following)[0]) == 6
    order = [0, 2, 1, 3, 4, 5]
    with pytest.raises(
        InputError, match=r"next_observations\[0\] differs from observations\[1\], although no flag"
    ):
        _load(observations=SMALL["observations"][order], next_observations=following[order])
    with pytest.raises(InputError, match=r"next_observations\[3\] differs from observations\[4\]"):
        _load(observations=PICTURES, next_observations=np.roll(PICTURES, -1, axis=0)[[0, 1, 2, 0, 4, 5]])


def test_rounded_next_observations_are_accepted() -> None:
    data = make_transitions([4, 3], [False, True])
    arrays = _arrays(data, make_rewards(data))
    rounded = arrays | {"next_observations": arrays["next_observations"].round(4)}
    assert len(load_arrays(**rounded)[0]) == 7


def _parts(rows: slice) -> dict[str, Any]:
    pictures = np.arange(7 * 5 * 4 * 3).reshape(7, 5, 4, 3).astype(np.uint8)
    return {"wrist": pictures[rows], "state": np.arange(14.0).reshape(7, 2)[rows]}


@pytest.mark.parametrize("following", [True, False])
def test_dictionaries_of_arrays_are_packed(following: bool) -> None:
    changes: dict[str, Any] = {"observations": _parts(slice(6))}
    if following:
        changes["next_observations"] = _parts(slice(1, 7))
    transitions, _ = _load(**changes)
    assert transitions.parts is not None
    assert transitions.parts.names == ("state", "wrist")
    parts = transitions.parts.unpack(transitions.observations)
    expected = [0, 1, 2, 3, 3, 4, 5, 6] if following else range(6)
    np.testing.assert_array_equal(parts["wrist"], _parts(slice(7))["wrist"][expected])
    np.testing.assert_array_equal(parts["state"], _parts(slice(7))["state"][expected])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"observations": {"state": np.zeros((6, 2)), "wrist": np.zeros((5, 2))}}, "6 rows of state, 5 rows of wrist"),
        ({"observations": {"state": np.zeros((6, 2, 2))}}, r"observations\['state'\] are float64 of shape"),
        ({"observations": {"state": np.full((6, 2), np.nan)}}, r"observations\['state'\]\[0, 0\] is nan"),
        ({"observations": {}}, "there are no parts"),
        ({"next_observations": {"state": np.zeros((6, 2))}}, "next_observations are a dictionary, but observations"),
        (
            {"observations": _parts(slice(6)), "next_observations": {"state": np.zeros((6, 2))}},
            r"next_observations have the parts state \(2,\), but observations state \(2,\), wrist",
        ),
        (
            {"observations": _parts(slice(6)), "next_observations": np.zeros((6, 2))},
            "observations are a dictionary, but next_observations are not",
        ),
    ],
)  # fmt: skip
def test_other_dictionaries_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        _load(**changes)
