from __future__ import annotations

import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cvl_pipeline.episodes.container import Rewards, Transitions
from cvl_pipeline.episodes.validation import validate_rewards, validate_transitions
from cvl_pipeline.errors import InputError
from cvl_pipeline.sources.steps import Steps, episodes_from_steps, one_hot
from cvl_pipeline.testing.builders import slices
from tests.sources.rows import assert_equal

END = {"": (False, False), "fell": (True, False), "cut": (False, True), "both": (True, True)}


def _log(endings: list[str], next_observations: bool, **changes: Any) -> Steps:
    """Steps whose numbers identify their row: row 3 starts at observation 3 and leads to 3.5."""
    rows = np.arange(len(endings), dtype=np.float32)
    flags = np.array([END[ending] for ending in endings], dtype=bool).reshape(-1, 2)
    values: dict[str, Any] = {
        "observations": np.stack([rows, -rows], axis=1),
        "actions": np.stack([rows / 64, rows, 1 - rows], axis=1),
        "terminated": flags[:, 0],
        "truncated": flags[:, 1],
        "next_observations": np.stack([rows + 0.5, -rows - 0.5], axis=1) if next_observations else None,
        "rewards": 10 * rows,
        "successes": rows % 3 == 0,
    }
    return Steps(**(values | changes))


def _rows(data: Transitions) -> list[list[float]]:
    """First dimension of each episode's observations."""
    return [episode["observations"][:, 0].tolist() for episode in slices(data)]


def _plain_loop(endings: list[str], next_observations: bool) -> list[dict[str, Any]]:
    """The expected episodes of the log of ``_log``, computed step by step."""
    episodes: list[dict[str, Any]] = []
    steps: list[int] = []
    for row, ending in enumerate(endings):
        steps.append(row)
        if ending == "" and row < len(endings) - 1:
            continue
        fell = ending in ("fell", "both")
        observed = [float(step) for step in steps]
        if next_observations:
            observed.append(row + 0.5)
        elif fell:
            observed.append(float(row))
        else:
            steps.pop()
        if steps:
            episodes.append({"steps": steps, "observed": observed, "fell": fell})
        steps = []
    return episodes


@given(endings=st.lists(st.sampled_from(list(END)), min_size=1, max_size=25), following=st.booleans())
@example(endings=[""], following=True)
@example(endings=["fell"], following=False)
@example(endings=["cut", "fell", "cut"], following=False)
def test_episodes_are_those_of_a_plain_loop(endings: list[str], following: bool) -> None:
    log, expected = _log(endings, following), _plain_loop(endings, following)
    if not expected:
        with pytest.raises(InputError, match="no next_observations"):
            episodes_from_steps(log, "log")
        return
    kept = [step for episode in expected for step in episode["steps"]]
    lost = sorted({*range(len(endings))} - {*kept})
    solved = [sum(step % 3 == 0 for step in steps) for steps in (kept, lost)]
    if (len(kept) == 1 and lost) or (solved[1] and not solved[0]):
        with pytest.raises(InputError, match=r"log: all \d+ (rewards|successes)"):
            episodes_from_steps(log, "log")
        return
    data, rewards = episodes_from_steps(log, "log")
    validate_transitions(data)
    validate_rewards(rewards, data)
    lengths = [len(episode["steps"]) for episode in expected]
    observed = torch.tensor([row for episode in expected for row in episode["observed"]])
    torch.testing.assert_close(data.observations, torch.stack([observed, -observed], 1), rtol=0, atol=0)
    assert data.episode_starts.tolist() == [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    assert data.actions.tolist() == log.actions[kept].tolist()
    assert data.terminated.tolist() == [episode["fell"] for episode in expected]
    assert data.truncated.tolist() == [not episode["fell"] for episode in expected]
    assert rewards.rewards.tolist() == [10.0 * step for step in kept]
    assert rewards.successes.tolist() == [step % 3 == 0 for step in kept]
    assert rewards.reports_success
    assert (int(rewards.dropped_steps), int(rewards.dropped_successes)) == (len(lost), solved[1])
    assert float(rewards.dropped_reward) == 10.0 * sum(lost)
    ended = sum(ending != "" for ending in endings[:-1]) + 1
    assert int(rewards.dropped_episodes) == ended - len(expected)


@pytest.mark.parametrize(
    ("endings", "following", "rows", "terminated"),
    [
        # With next observations, no step is lost.
        (["", "cut", "fell", "", ""], True, [[0, 1, 1.5], [2, 2.5], [3, 4, 4.5]], [False, True, False]),
        (["cut", "fell"], True, [[0, 0.5], [1, 1.5]], [False, True]),
        # Without them, a truncated episode loses its last step, and a terminated one keeps it.
        (["", "", "cut", "", "", ""], False, [[0, 1, 2], [3, 4, 5]], [False, False]),
        (["", "", "fell"], False, [[0, 1, 2, 2]], [True]),
        (["cut", "", "cut", "cut", "fell"], False, [[1, 2], [4, 4]], [False, True]),
        # A step that terminates at the time limit has terminated.
        (["", "both"], False, [[0, 1, 1]], [True]),
    ],
)
def test_examples_of_episodes(
    endings: list[str], following: bool, rows: list[list[float]], terminated: list[bool]
) -> None:
    data, _ = episodes_from_steps(_log(endings, following, successes=None), "log")
    assert _rows(data) == rows
    assert data.terminated.tolist() == terminated
    assert data.truncated.tolist() == [not fell for fell in terminated]


def test_discrete_actions_have_bounds_0_and_1_even_if_some_are_missing() -> None:
    log = _log(["", "fell"], next_observations=False, actions=np.eye(3)[[1, 1]], discrete=True)
    data, _ = episodes_from_steps(log, "log")
    assert bool(data.discrete)
    assert (data.action_low.tolist(), data.action_high.tolist()) == ([0, 0, 0], [1, 1, 1])


@pytest.mark.parametrize("dtype", ["<f8", ">f8", ">f4", "<f2", "i8", ">i2", "u2", "bool"])
def test_any_type_of_number_becomes_the_same_episodes(dtype: str) -> None:
    """HDF5 files may be big-endian, which torch does not read."""
    ones = np.array([[0.0, 1.0], [1.0, 1.0], [1.0, 0.0]])
    log = _log(["", "", "fell"], next_observations=True, observations=ones, actions=ones, rewards=ones[:, 0])
    log = replace(log, next_observations=ones[::-1])
    fields = ("observations", "actions", "rewards", "next_observations", "terminated")
    stored = replace(log, **{name: getattr(log, name).astype(dtype) for name in fields})
    assert_equal(episodes_from_steps(stored, "log"), episodes_from_steps(log, "log"))


def test_next_observations_keep_their_fraction_if_observations_are_integers() -> None:
    log = _log(["", "cut"], next_observations=True, observations=np.array([[3, 4], [5, 6]]))
    data, _ = episodes_from_steps(replace(log, next_observations=np.array([[5, 6], [7.25, 8.5]])), "log")
    assert data.observations.tolist() == [[3, 4], [5, 6], [7.25, 8.5]]


def test_the_log_is_not_changed() -> None:
    log = _log(["", "cut", "", "fell"], next_observations=True)
    bounds: tuple[NDArray[Any], NDArray[Any]] = (
        np.full(3, -9, dtype=np.float32), np.full(3, 9, dtype=np.float32)
    )  # fmt: skip
    arrays = [value for value in vars(log).values() if isinstance(value, np.ndarray)] + list(bounds)
    before = [array.copy() for array in arrays]
    data, rewards = episodes_from_steps(log, "log", bounds)
    for value in (*vars(data).values(), *vars(rewards).values()):
        if isinstance(value, torch.Tensor):
            value.zero_()
    for array, kept in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, kept)


@pytest.mark.parametrize(
    "field", ["actions", "terminated", "truncated", "next_observations", "rewards", "successes"]
)
def test_another_number_of_rows_is_refused_by_name(field: str) -> None:
    log = _log(["", "", "fell"], next_observations=True)
    with pytest.raises(InputError, match=f"my log: 2 rows of {field}, but 3 of observations"):
        episodes_from_steps(replace(log, **{field: getattr(log, field)[:2]}), "my log")


def test_next_observations_of_another_size_are_refused() -> None:
    log = _log(["fell"], next_observations=True)
    with pytest.raises(InputError, match=r"my log: next_observations have shape \(1, 1\), .*\(1, 2\)"):
        episodes_from_steps(replace(log, next_observations=np.zeros((1, 1))), "my log")


def test_a_log_without_steps_is_refused() -> None:
    with pytest.raises(InputError, match="my log: no steps"):
        episodes_from_steps(_log([], next_observations=True), "my log")


def test_a_log_without_any_known_next_state_is_refused() -> None:
    with pytest.raises(InputError, match=r"my log: every episode is one step long.*next_observations"):
        episodes_from_steps(_log(["cut", "cut", ""], next_observations=False), "my log")


def test_labels_have_the_types_of_the_container() -> None:
    _, rewards = episodes_from_steps(
        _log(["", "fell"], next_observations=True, rewards=np.array([1, 2]), successes=np.array([0, 1])),
        "log",
    )
    assert isinstance(rewards, Rewards)
    assert (rewards.rewards.dtype, rewards.successes.dtype) == (torch.float32, torch.bool)
    assert (rewards.rewards.tolist(), rewards.successes.tolist()) == ([1, 2], [False, True])


def _sparse(last: float, other: float, ending: str = "cut") -> Steps:
    """Two episodes of three steps, whose last step has another reward and is solved."""
    end = np.tile([False, False, True], 2)
    rewards = np.where(end, last, other)
    return _log(["", "", ending] * 2, next_observations=False, rewards=rewards, successes=end)


@pytest.mark.parametrize(
    ("log", "parts"),
    [
        (_sparse(1.0, 0.0), ["all 2 rewards other than 0 (rewards) and all 2 successes (successes)"]),
        (_sparse(0.0, -1.0), ["all 2 rewards other than -1"]),
        (
            replace(_sparse(1.0, 0.0), successes=None),
            ["all 2 rewards other than 0 (rewards) are in the last"],
        ),
        (replace(_sparse(1.0, 0.0), rewards=None), ["log: all 2 successes (successes) are in the last step"]),
        (replace(_sparse(1.0, 0.0), rewards=np.arange(6.0)), ["log: all 2 successes (successes)"]),
    ],
)
def test_a_log_that_would_lose_all_rewards_or_successes_is_refused_with_the_remedy(
    log: Steps, parts: list[str]
) -> None:
    with pytest.raises(InputError) as caught:
        episodes_from_steps(log, "log")
    for part in [*parts, "give next_observations", "as terminated", "leave the column out"]:
        assert part in str(caught.value)


def test_the_remedies_for_a_lost_reward_keep_it() -> None:
    _, rewards = episodes_from_steps(_sparse(1.0, 0.0, "fell"), "log")
    assert rewards.rewards.tolist() == rewards.successes.tolist() == [0, 0, 1, 0, 0, 1]
    assert int(rewards.dropped_steps) == 0
    log = _sparse(1.0, 0.0)
    known = replace(log, next_observations=log.observations)
    assert episodes_from_steps(known, "log")[1].rewards.tolist() == [0, 0, 1, 0, 0, 1]
    _, rewards = episodes_from_steps(replace(log, rewards=None, successes=None), "log")
    assert (int(rewards.dropped_steps), rewards.missing) == (2, True)


def test_equal_rewards_and_other_losses_are_reported_but_not_refused(
    caplog: pytest.LogCaptureFixture,
) -> None:
    episodes_from_steps(replace(_sparse(1.0, 1.0), successes=None), "log")
    episodes_from_steps(_log(["", "", "fell"], next_observations=False), "log")
    log = _log(["", "", "fell", "", "cut", "cut", ""], next_observations=False)
    _, rewards = episodes_from_steps(log, "log")
    counts = [
        rewards.dropped_steps,
        rewards.dropped_episodes,
        rewards.dropped_reward,
        rewards.dropped_successes,
    ]
    assert [count.item() for count in counts] == [3, 2, 150.0, 1]  # rows 4, 5 and 6
    assert len(caplog.messages) == 2
    assert caplog.messages[-1] == (
        "log: dropped 3 of the logged steps, 3 because nothing says where they led (next_observations would keep "
        "them); lost with them: episodes 2, reward 150, successes 1"
    )


def test_ignored_rows_are_in_no_episode_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    log = _log(["", "fell", "fell", "", "fell"], next_observations=False)
    log = replace(log, ignored=np.array([False, False, True, False, False]))
    data, rewards = episodes_from_steps(log, "log")
    assert _rows(data) == [[0, 1, 1], [3, 4, 4]]
    assert (int(rewards.dropped_steps), float(rewards.dropped_reward)) == (1, 20.0)
    assert "1 because the episode was over" in caplog.text


@pytest.mark.parametrize("field", ["terminated", "truncated", "successes"])
@pytest.mark.parametrize(
    ("values", "word"), [([0, np.nan, 1], "nan"), ([0, 2, 1], "2"), (["no", "no", "yes"], "no")]
)
def test_flags_that_are_no_flags_are_refused(field: str, values: list[Any], word: str) -> None:
    changes: dict[str, Any] = {field: np.array(values)}
    log = replace(_log(["", "", "fell"], next_observations=True), **changes)
    with pytest.raises(InputError, match=f"log: {field} have {word}.* at row"):
        episodes_from_steps(log, "log")


@pytest.mark.parametrize("field", ["observations", "next_observations", "actions", "rewards"])
@pytest.mark.parametrize(
    ("values", "part"),
    [
        (
            [2**53, 2**53 + 1, 2**53 + 2],
            "3 different numbers from 9007199254740992 to 9007199254740994 become",
        ),
        ([0.0, 1e300, 1.0], "1e\\+300 at row 1.*too large for single precision"),
        ([0j, 1j, 2j], "complex128, not numbers"),
        (["a", "b", "c"], "<U1, not numbers"),
    ],
)
def test_numbers_that_single_precision_cannot_keep_are_refused(
    field: str, values: list[Any], part: str
) -> None:
    log = _log(["cut"] * 3, next_observations=True)
    column = np.array(values) if field == "rewards" else np.array(values)[:, None]
    changes: Any = {field: column}
    if field.endswith("observations"):
        changes = {"observations": column, "next_observations": column}
    with pytest.raises(InputError, match=f"log: {field.removeprefix('next_')}.*: {part}"):
        episodes_from_steps(replace(log, **changes), "log")


def test_one_hot_vectors_are_not_held_in_memory() -> None:
    codes = np.arange(20_000) % 1000
    tracemalloc.start()
    vectors = one_hot(codes, 1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert vectors.nbytes == 80_000_000
    assert peak < 20_000_000
    assert np.array_equal(vectors.argmax(1), codes)
    assert (vectors.sum(1) == 1).all()
