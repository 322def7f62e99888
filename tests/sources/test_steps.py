from __future__ import annotations

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
from cvl_pipeline.sources.steps import Steps, episodes_from_steps
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
    data, rewards = episodes_from_steps(log, "log")
    validate_transitions(data)
    validate_rewards(rewards, data)
    kept = [step for episode in expected for step in episode["steps"]]
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
    data, _ = episodes_from_steps(_log(endings, following), "log")
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
    for tensor in (*vars(data).values(), *vars(rewards).values()):
        tensor.zero_()
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
