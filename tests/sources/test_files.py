from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cvl_pipeline.sources.files import load_file
from cvl_pipeline.trajectories.container import Rewards, Transitions
from cvl_pipeline.trajectories.validation import validate_rewards, validate_transitions
from tests.builders import labelled_transitions, make_rewards, make_transitions, slices
from tests.sources.rows import (
    ARRAYS,
    SMALL,
    TABLES,
    Log,
    assert_equal,
    log_of,
    mapping,
    mapping_of,
    refusal,
    write,
)


def _logged_bounds(data: Transitions) -> dict[str, Any]:
    return {"action_low": data.actions.amin(0), "action_high": data.actions.amax(0)}


@pytest.mark.parametrize("name", ARRAYS + TABLES)
def test_every_format_gives_the_very_same_episodes(
    tmp_path: Path, transitions: Transitions, rewards: Rewards, log: Log, name: str
) -> None:
    bounds = {"action_low": (-1.0, -1.0), "action_high": (1.0, 1.0)}
    found = load_file(write(tmp_path / name, log), mapping_of(name), **bounds)
    validate_transitions(found[0])
    validate_rewards(found[1], found[0])
    assert_equal(found, (transitions, rewards))


@st.composite
def _episodes(draw: st.DrawFn) -> tuple[Transitions, Rewards]:
    endings = draw(st.lists(st.tuples(st.integers(1, 4), st.booleans()), min_size=1, max_size=4))
    data = make_transitions([length for length, _ in endings], [fell for _, fell in endings])
    numbers = st.floats(width=32, allow_nan=False, allow_infinity=False)
    sizes = {"observations": data.observations.shape, "actions": data.actions.shape}
    drawn = {
        name: torch.from_numpy(draw(arrays(np.float32, tuple(shape), elements=numbers)))
        for name, shape in sizes.items()
    }
    data = Transitions(**(vars(data) | drawn))
    data = Transitions(**(vars(data) | _logged_bounds(data)))
    values = torch.from_numpy(draw(arrays(np.float32, len(data), elements=numbers)))
    return data, Rewards(values, torch.from_numpy(draw(arrays(np.bool_, len(data)))))


@settings(max_examples=30)
@given(
    episodes=_episodes(),
    marks=st.sampled_from(
        [
            ("terminated", "truncated"),
            ("episode", "terminated"),
            ("episode", "step", "truncated", "terminated"),
        ]
    ),
)
def test_what_is_written_is_loaded(episodes: tuple[Transitions, Rewards], marks: tuple[str, ...]) -> None:
    given_marks = dict.fromkeys(("terminated", "truncated", "episode", "step")) | {
        mark: mark for mark in marks
    }
    with tempfile.TemporaryDirectory() as folder:
        for name in ("log.hdf5", "log.npz", "log.parquet", "log.csv"):
            path = write(Path(folder, name), log_of(*episodes))
            assert_equal(load_file(path, mapping_of(name, **given_marks)), episodes)


@pytest.mark.parametrize("name", ARRAYS + TABLES)
@pytest.mark.parametrize(
    "ids", [[7, 7, 7, 3], [0.5, 0.5, 0.5, -1.0], [True, True, True, False], ["run b", "run b", "run b", "a"]]
)
def test_episode_ids_are_numbers_or_text(tmp_path: Path, name: str, ids: list[Any]) -> None:
    data = make_transitions([3, 1], [True, False])
    # Text is of variable length in HDF5 and tables; NPZ has it of fixed length alone.
    values = np.array(ids, dtype=object if isinstance(ids[0], str) and name != "log.npz" else None)
    path = write(tmp_path / name, log_of(data, make_rewards(data)) | {"episode": values})
    found, _ = load_file(path, mapping_of(name, episode="episode", terminated=None, truncated=None))
    assert found.lengths.tolist() == [3, 1]
    assert found.truncated.tolist() == [True, True]


def test_where_the_id_changes_without_a_flag_the_episode_was_truncated(csv: Callable[[str], Path]) -> None:
    path = csv("x,u,end,id\n0,0,0,1\n1,0,0,1\n2,0,0,2\n3,0,1,2\n4,0,0,3\n5,0,0,3\n")
    data, _ = load_file(path, mapping(**SMALL | {"episode": "id"}))
    assert (data.terminated.tolist(), data.truncated.tolist()) == ([False, True, False], [True, False, True])
    assert [episode["observations"][:, 0].tolist() for episode in slices(data)] == [[0, 1], [2, 3, 3], [4, 5]]


def test_an_episode_that_terminates_where_the_id_changes_was_not_truncated(
    csv: Callable[[str], Path],
) -> None:
    path = csv("x,u,end,cut,id\n0,0,0,0,a\n1,0,1,0,a\n2,0,0,0,b\n3,0,0,1,b\n")
    data, _ = load_file(path, mapping(**SMALL | {"episode": "id", "truncated": "cut"}))
    assert (data.terminated.tolist(), data.truncated.tolist()) == ([True, False], [False, True])


def test_missing_rewards_come_out_as_nan_and_missing_successes_as_none(npz: Callable[..., Path]) -> None:
    _, rewards = load_file(npz(), mapping(rewards=None, successes=None))
    assert rewards.rewards.isnan().tolist() == [True] * 4
    assert rewards.successes.tolist() == [False] * 4


def test_steps_may_start_anywhere_and_be_too_large_for_single_precision(npz: Callable[..., Path]) -> None:
    path = npz(step=np.arange(4) + 2**30)
    assert len(load_file(path, mapping(step="step"))[0]) == 4


DISCRETE: dict[str, Any] = SMALL | {"discrete": True}


@pytest.mark.parametrize(("count", "size"), [(None, 3), (3, 3), (5, 5)])
def test_codes_become_one_hot(csv: Callable[[str], Path], count: int | None, size: int) -> None:
    path = csv("x,u,end\n0,2,0\n1,0,0\n2,2,1\n")
    data, _ = load_file(path, mapping(**DISCRETE | {"action_count": count}))
    validate_transitions(data)
    assert data.actions.argmax(1).tolist() == [2, 0, 2]
    assert data.actions.shape == (3, size)
    assert (data.action_low.tolist(), data.action_high.tolist()) == ([0] * size, [1] * size)
    assert bool(data.discrete)


@pytest.mark.parametrize(
    ("codes", "count", "parts"),
    [
        ([0, 1, -1], None, ["-1", "row 2", "0 to"]),
        ([0, 3, 1], 3, ["3", "row 1", "0 to 2", "action_count"]),
        ([0, 70000, 1], None, ["70000", "row 1"]),
        ([0, 2**40, 1], None, [str(2**40), "row 1"]),
        ([0.5, 1, 0], None, ["0.5", "integers"]),
        ([1.0, 0.0, 1.0], None, ["1.0", "float64", "integers"]),
        ([0, 0, 0], None, ["action_count"]),
    ],
)
def test_what_is_no_code_is_refused(
    csv: Callable[[str], Path], codes: list[float], count: int | None, parts: list[str]
) -> None:
    path = csv("x,u,end\n" + "".join(f"{i},{code},{i // 2}\n" for i, code in enumerate(codes)))
    text = refusal(path, mapping(**DISCRETE | {"action_count": count}))
    for part in ["'u'", "dataset.columns.actions", *parts]:
        assert part in text


def test_discrete_actions_are_one_column_and_have_no_bounds(csv: Callable[[str], Path]) -> None:
    path = csv("x,u,v,end\n0,1,0,0\n1,0,1,1\n")
    assert "2 numbers a row" in refusal(path, mapping(**DISCRETE | {"actions": "u v"}))
    text = refusal(path, mapping(**DISCRETE), action_low=(0.0, 0.0))
    assert "dataset.action_low" in text


def test_bounds_are_the_logs_own_extremes_unless_given(npz: Callable[..., Path]) -> None:
    path = npz(action=np.array([[1.0, -3.0], [2.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
    data, _ = load_file(path, mapping())
    assert (data.action_low.tolist(), data.action_high.tolist()) == ([0, -3], [2, 1])
    data, _ = load_file(path, mapping(), action_low=(-4.0, -5.0))
    assert (data.action_low.tolist(), data.action_high.tolist()) == ([-4, -5], [2, 1])
    data, _ = load_file(path, mapping(), action_high=(4.0, 5.0))
    assert (data.action_low.tolist(), data.action_high.tolist()) == ([0, -3], [4, 5])


@pytest.mark.parametrize(
    ("bounds", "parts"),
    [
        ({"action_low": (-9.0,)}, ["dataset.action_low", "1 numbers", "2 dimensions"]),
        ({"action_high": (9.0, 9.0, 9.0)}, ["dataset.action_high", "3 numbers", "2 dimensions"]),
        (
            {"action_low": (-9.0, 8.0), "action_high": (9.0, 7.0)},
            ["dataset.action_low", "8 in dimension 1", "7"],
        ),
        ({"action_low": (0.5, -9.0)}, ["action 0 at row 2", "dimension 0", "[0.5, 2]"]),
        ({"action_high": (9.0, 0.5)}, ["action 1 at row 2", "dimension 1", "[-3, 0.5]"]),
    ],
)
def test_bounds_that_do_not_fit_are_refused(
    npz: Callable[..., Path], bounds: dict[str, Any], parts: list[str]
) -> None:
    path = npz(action=np.array([[1.0, -3.0], [2.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
    text = refusal(path, **bounds)
    for part in parts:
        assert part in text


def test_an_id_that_returns_is_refused(csv: Callable[[str], Path]) -> None:
    path = csv("x,u,id\n0,0,a\n1,0,a\n2,0,b\n3,0,a\n")
    text = refusal(path, mapping(**SMALL | {"terminated": None, "episode": "id"}))
    assert (
        "'id' (dataset.columns.episode): 'a' returns at row 3 (the first is 0) after another episode" in text
    )


@pytest.mark.parametrize("flag", ["terminated", "truncated"])
def test_a_flag_in_the_middle_of_an_episode_is_refused(csv: Callable[[str], Path], flag: str) -> None:
    path = csv("x,u,end,id\n0,0,0,7\n1,0,1,7\n2,0,0,7\n3,0,1,8\n")
    text = refusal(path, mapping(**SMALL | {"terminated": None, "episode": "id"} | {flag: "end"}))
    assert (
        f"'end' (dataset.columns.{flag}): set at row 1 (the first is 0), but episode 7 of 'id' goes on"
        in text
    )


@pytest.mark.parametrize(
    ("steps", "part"),
    [("0 1 3 0", "3 at row 2 (the first is 0) after 1"), ("0 1 1 0", "1 at row 2"), ("0 1 0 0", "0 at row 2"),
     ("0 0.5 1 0", "0.5 at row 1")],
)  # fmt: skip
def test_a_step_that_does_not_follow_is_refused(csv: Callable[[str], Path], steps: str, part: str) -> None:
    rows = "".join(f"{i},0,{int(i == 2)},{step}\n" for i, step in enumerate(steps.split()))
    text = refusal(csv("x,u,end,t\n" + rows), mapping(**SMALL | {"step": "t"}))
    assert f"'t' (dataset.columns.step): {part}" in text


def test_rows_that_do_not_start_where_the_last_one_led_are_refused(npz: Callable[..., Path]) -> None:
    data = labelled_transitions([4], [False])
    log = log_of(data, make_rewards(data))
    changes = {"observation": log["observation"][[0, 2, 1, 3]], "next": log["next"][[0, 2, 1, 3]]}
    text = refusal(npz(**changes))
    assert (
        "next_observations is 1 at row 0 (the first is 0), dimension 1, but the row after it starts from 2"
        in text
    )


def test_next_observations_that_were_rounded_pass(npz: Callable[..., Path]) -> None:
    data = make_transitions([4], [False])
    following = log_of(data, make_rewards(data))["next"]
    assert len(load_file(npz(next=following.round(4)), mapping())[0]) == 4
    assert "starts from" in refusal(npz(next=following.round(1)))
