from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cvl_pipeline.episodes.bounds import bound_actions
from cvl_pipeline.episodes.container import Transitions
from cvl_pipeline.episodes.validation import validate_rewards, validate_transitions
from cvl_pipeline.errors import InputError
from cvl_pipeline.sources import d4rl
from cvl_pipeline.sources.columns import Columns
from cvl_pipeline.sources.d4rl import D4RL, fetch_d4rl, load_d4rl, normalised_score, read_tables
from cvl_pipeline.sources.files import load_file
from cvl_pipeline.testing.builders import names_in, slices
from tests.sources.rows import assert_equal
from tests.sources.test_download import sending, serving

Arrays = dict[str, Any]


def write(path: Path, arrays: Arrays) -> Path:
    """Write a file as D4RL does: with compressed arrays, uncompressed texts and single numbers."""
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            array = np.asarray(values)
            file.create_dataset(name, data=array, compression="gzip" if array.ndim else None)
    return path


def rows(count: int, size: int, start: float = 0.0) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Rows that contain their index: row n is (start + n, start + n + 0.1, ...)."""
    return (start + np.arange(count)[:, None] + 0.1 * np.arange(size)).astype(np.float32)


def flags(count: int, *places: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    return np.isin(np.arange(count), places)


def a_log(count: int = 8, **changes: Any) -> Arrays:
    """A log of two episodes, one ended by a fall and one by the time limit."""
    arrays: Arrays = {
        "observations": rows(count, 3),
        "actions": np.tanh(rows(count, 2) - 4.0),
        "rewards": np.arange(count, dtype=np.float32) / 8.0,
        "terminals": flags(count, 2),
        "timeouts": flags(count, count - 1),
    }
    return {name: values for name, values in (arrays | changes).items() if values is not None}


def episode_ids(transitions: Transitions) -> list[list[int]]:
    """Row indices of each episode's observations, for a log made with ``rows``."""
    return [part["observations"][:, 0].round().int().tolist() for part in slices(transitions)]


def endings(transitions: Transitions) -> list[str]:
    return ["terminated" if ended else "truncated" for ended in transitions.terminated.tolist()]


# D4RL's published layouts.


def test_locomotion_with_next_observations_keeps_every_step(tmp_path: Path) -> None:
    """Locomotion v1 and v2: files have all arrays, and many others."""
    besides: Arrays = {
        "infos/action_log_probs": np.zeros(8, np.float32),
        "infos/qpos": np.zeros((8, 5)),
        "metadata/algorithm": np.bytes_("SAC"),
        "metadata/iteration": np.int32(3),
        "metadata/policy/fc0/weight": np.zeros((4, 3), np.float32),
    }
    log = a_log(next_observations=rows(8, 3, start=1.0), timeouts=flags(8, 5), **besides)
    transitions, rewards = load_d4rl(write(tmp_path / "hopper.hdf5", log), "hopper-medium-v2")
    assert episode_ids(transitions) == [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8]]
    assert endings(transitions) == ["terminated", "truncated", "truncated"]
    torch.testing.assert_close(transitions.states(), torch.from_numpy(log["observations"]), rtol=0, atol=0)
    torch.testing.assert_close(
        transitions.arrivals(), torch.from_numpy(log["next_observations"]), rtol=0, atol=0
    )
    torch.testing.assert_close(transitions.actions, torch.from_numpy(log["actions"]), rtol=0, atol=0)
    assert rewards.rewards.tolist() == log["rewards"].tolist()
    assert not rewards.successes.any()
    assert not rewards.reports_success
    assert transitions.action_low.tolist() == [-1.0, -1.0]
    assert transitions.action_high.tolist() == [1.0, 1.0]
    validate_transitions(transitions)
    validate_rewards(rewards, transitions)


def test_locomotion_without_next_observations_loses_the_last_step_of_a_truncated_episode(
    tmp_path: Path,
) -> None:
    """Locomotion v0 and replay buffers: columns are matrices, in double precision."""
    log = a_log(
        observations=rows(8, 3).astype(np.float64),
        rewards=np.arange(8.0)[:, None],
        terminals=flags(8, 2).astype(np.float64)[:, None],
        timeouts=flags(8, 5)[:, None],
    )
    transitions, rewards = load_d4rl(write(tmp_path / "walker.hdf5", log), "walker2d-medium-replay-v0")
    # After the fall, the last observation is repeated.
    assert episode_ids(transitions) == [[0, 1, 2, 2], [3, 4, 5], [6, 7]]
    assert endings(transitions) == ["terminated", "truncated", "truncated"]
    assert rewards.rewards.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 6.0]
    torch.testing.assert_close(
        transitions.actions, torch.from_numpy(log["actions"][[0, 1, 2, 3, 4, 6]]), rtol=0, atol=0
    )
    assert {transitions.observations.dtype, transitions.actions.dtype, rewards.rewards.dtype} == {
        torch.float32
    }


def test_a_step_with_both_flags_is_a_termination(tmp_path: Path) -> None:
    log = a_log(terminals=flags(8, 2, 7), timeouts=flags(8, 2))
    transitions, _ = load_d4rl(write(tmp_path / "log.hdf5", log), "ant-expert-v2")
    assert episode_ids(transitions) == [[0, 1, 2, 2], [3, 4, 5, 6, 7, 7]]
    assert endings(transitions) == ["terminated", "terminated"]


@pytest.mark.parametrize(
    ("dataset_id", "kind"),
    [("pen-human-v0", np.float32), ("door-cloned-v0", np.float64), ("relocate-expert-v1", np.float32)],
)
def test_adroit_ends_demonstrations_by_timeouts(
    tmp_path: Path, dataset_id: str, kind: type[np.floating[Any]]
) -> None:
    besides: Arrays = {"infos/qpos": np.zeros((8, 6), kind), "metadata/algorithm": np.bytes_("DAPG")}
    log = a_log(observations=rows(8, 5).astype(kind), terminals=flags(8), timeouts=flags(8, 3, 7), **besides)
    transitions, rewards = load_d4rl(write(tmp_path / "pen.hdf5", log), dataset_id)
    assert episode_ids(transitions) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert endings(transitions) == ["truncated", "truncated"]
    assert rewards.rewards.tolist() == [0.0, 0.125, 0.25, 0.5, 0.625, 0.75]
    assert not rewards.successes.any()
    assert not rewards.reports_success


def an_antmaze(**changes: Any) -> Arrays:
    """Twelve steps. The ant is at the goal from step 3 to 5 and at step 7, and restarts after step 9."""
    goal = flags(12, 3, 4, 5, 7).astype(np.float32)
    observations = rows(12, 29)
    observations[:, 1] = np.where(np.arange(12) < 10, 0.0, 30.0)
    stays: Arrays = {"rewards": goal, "terminals": goal, "timeouts": flags(12, 9)}
    return a_log(12, observations=observations, **(stays | changes))


def test_antmaze_ends_at_the_goal_and_skips_the_steps_there(tmp_path: Path) -> None:
    log = an_antmaze(**{"infos/goal": np.zeros((12, 2), np.float32), "infos/qpos": np.zeros((12, 15))})
    transitions, rewards = load_d4rl(write(tmp_path / "maze.hdf5", log), "antmaze-umaze-v2")
    assert episode_ids(transitions) == [[0, 1, 2, 3, 3], [6, 7, 7], [8, 9], [10, 11]]
    assert endings(transitions) == ["terminated", "terminated", "truncated", "truncated"]
    assert rewards.rewards.tolist() == [0.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0]
    assert rewards.successes.tolist() == (rewards.rewards == 1.0).tolist()
    assert rewards.reports_success
    torch.testing.assert_close(
        transitions.actions, torch.from_numpy(log["actions"][[0, 1, 2, 3, 6, 7, 8, 10]]), rtol=0, atol=0
    )


def test_antmaze_that_restarts_at_the_goal_loses_nothing(tmp_path: Path) -> None:
    """As in antmaze-umaze-diverse: one terminal, and the next step belongs to the next episode."""
    observations = rows(6, 29)
    observations[3:, 1] = 30.0
    log = a_log(6, observations=observations, terminals=flags(6, 2), timeouts=flags(6, 5))
    transitions, _ = load_d4rl(write(tmp_path / "maze.hdf5", log), "antmaze-umaze-diverse-v2")
    assert episode_ids(transitions) == [[0, 1, 2, 2], [3, 4, 5]]


def test_a_goal_after_a_timeout_starts_another_episode(tmp_path: Path) -> None:
    log = an_antmaze(terminals=flags(12, 9, 10), timeouts=flags(12, 9))
    transitions, _ = load_d4rl(write(tmp_path / "maze.hdf5", log), "antmaze-large-play-v2")
    assert [len(ids) - 1 for ids in episode_ids(transitions)] == [10, 1]
    assert endings(transitions) == ["terminated", "terminated"]


def test_antmaze_whose_timeouts_miss_the_starts_is_refused(tmp_path: Path) -> None:
    """As in v0."""
    path = write(tmp_path / "maze.hdf5", an_antmaze(timeouts=flags(12, 8)))
    with pytest.raises(
        InputError, match=r"maze\.hdf5: the ant jumps 30\.0 after step 9 \(1 such steps\).*v2"
    ):
        load_d4rl(path, "antmaze-medium-play-v0")


def a_maze2d(**changes: Any) -> Arrays:
    """One walk; the walker is at the target in the states before steps 4 and 7."""
    target = flags(8, 4, 7).astype(np.float32)
    walk: Arrays = {"rewards": target, "terminals": flags(8), "timeouts": flags(8, 2)}
    return a_log(**(walk | changes))


@pytest.mark.parametrize("dataset_id", ["maze2d-umaze-v1", "bullet-maze2d-large-v0"])
def test_maze2d_counts_rewards_on_arrival(tmp_path: Path, dataset_id: str) -> None:
    transitions, rewards = load_d4rl(write(tmp_path / "maze.hdf5", a_maze2d()), dataset_id)
    assert episode_ids(transitions) == [[0, 1, 2], [3, 4, 5, 6, 7]]
    assert endings(transitions) == ["truncated", "truncated"]
    # The rewarded states, 4 and 7, follow the third and the last remaining step.
    assert rewards.rewards.tolist() == [0.0, 0.0, 1.0, 0.0, 0.0, 1.0]
    assert rewards.successes.tolist() == [False, False, True, False, False, True]
    assert rewards.reports_success


def test_rewards_do_not_move_across_episodes_or_with_next_observations(tmp_path: Path) -> None:
    log = a_maze2d(rewards=np.arange(8, dtype=np.float32), timeouts=flags(8, 3, 7))
    _, rewards = load_d4rl(write(tmp_path / "maze.hdf5", log), "maze2d-umaze-dense-v1")
    assert rewards.rewards.tolist() == [1.0, 2.0, 3.0, 5.0, 6.0, 7.0]
    log["next_observations"] = rows(8, 3, start=1.0)
    _, rewards = load_d4rl(write(tmp_path / "maze.hdf5", log), "maze2d-umaze-dense-v1")
    assert rewards.rewards.tolist() == list(range(8))


def test_maze2d_with_dense_rewards_reports_no_success(tmp_path: Path) -> None:
    path = write(tmp_path / "maze.hdf5", a_maze2d())
    _, rewards = load_d4rl(path, "maze2d-umaze-dense-v1")
    assert not rewards.successes.any()
    assert not rewards.reports_success
    _, rewards = load_d4rl(path, "maze2d-umaze-dense-v1", success_reward=1.0)
    assert rewards.successes.sum() == 2
    assert rewards.reports_success


@pytest.mark.parametrize("timeouts", [None, flags(1000)])
@pytest.mark.parametrize(
    ("dataset_id", "lengths"),
    [
        ("maze2d-open-v0", [149] * 6 + [99]),
        ("maze2d-umaze-v1", [299] * 3 + [99]),
        ("maze2d-eval-medium-dense-v1", [599, 399]),
        ("maze2d-large-dense-v1", [799, 199]),
    ],
)
def test_maze2d_without_a_flag_is_cut_at_the_step_limit(
    tmp_path: Path, timeouts: Any, dataset_id: str, lengths: list[int]
) -> None:
    log = a_log(1000, terminals=flags(1000), timeouts=timeouts)
    transitions, _ = load_d4rl(write(tmp_path / "maze.hdf5", log), dataset_id)
    assert transitions.lengths.tolist() == lengths
    assert not transitions.terminated.any()


def a_kitchen() -> Arrays:
    """Two demonstrations; the second solves all four subtasks."""
    return a_log(
        rewards=np.array([0, 1, 1, 2, 2, 2, 3, 4], np.float32),
        terminals=flags(8, 3, 7).astype(np.float32),
        timeouts=None,
        infos=np.repeat([0, 1], 4),
    )


def test_kitchen_terminates_where_the_task_is_solved(tmp_path: Path) -> None:
    transitions, rewards = load_d4rl(write(tmp_path / "kitchen.hdf5", a_kitchen()), "kitchen-mixed-v0")
    assert episode_ids(transitions) == [[0, 1, 2, 3], [4, 5, 6, 7, 7]]
    assert endings(transitions) == ["truncated", "terminated"]
    assert rewards.rewards.tolist() == [1.0, 1.0, 2.0, 2.0, 3.0, 4.0, 4.0]
    assert rewards.successes.tolist() == [False] * 5 + [True] * 2
    assert rewards.reports_success


def test_the_success_reward_does_not_change_the_ends(tmp_path: Path) -> None:
    path = write(tmp_path / "kitchen.hdf5", a_kitchen())
    transitions, rewards = load_d4rl(path, "kitchen-partial-v0", success_reward=2.0)
    assert endings(transitions) == ["truncated", "terminated"]
    assert rewards.successes.tolist() == [False, False, True, True, True, True, True]
    assert rewards.reports_success


# User logs.


def test_a_log_of_your_own_is_read_unchanged(tmp_path: Path) -> None:
    log = an_antmaze(timeouts=None)
    transitions, rewards = load_d4rl(write(tmp_path / "own.hdf5", log))
    assert episode_ids(transitions) == [[0, 1, 2, 3, 3], [4, 4], [5, 5], [6, 7, 7], [8, 9, 10, 11]]
    assert not rewards.successes.any()
    assert not rewards.reports_success
    assert load_d4rl(tmp_path / "own.hdf5", success_reward=0.5)[1].successes.sum() == 4


def test_actions_have_the_bounds_of_all_tasks_of_d4rl(tmp_path: Path) -> None:
    path = write(tmp_path / "own.hdf5", a_log(actions=rows(8, 2) - 3.0, timeouts=flags(8)))
    transitions, _ = load_d4rl(path)
    assert (transitions.action_low.tolist(), transitions.action_high.tolist()) == ([-1, -1], [1, 1])
    with pytest.raises(InputError, match=r"is outside \[-1, 1\].*set dataset.actions_out_of_bounds to clip"):
        bound_actions(transitions, "refuse", "own.hdf5")


def test_numbers_beyond_single_precision_are_refused_by_name(tmp_path: Path) -> None:
    observations = rows(8, 3).astype(np.float64)
    observations[4, 1] = 1e300
    path = write(tmp_path / "own.hdf5", a_log(observations=observations))
    with pytest.raises(
        InputError, match=r"own.hdf5: observations: 1e\+300 at row 4, dimension 1 is too large"
    ):
        load_d4rl(path)


@pytest.mark.parametrize("timeouts", [flags(8, 3, 7), None])
def test_the_remedy_for_rewards_that_would_be_lost_works(tmp_path: Path, timeouts: Any) -> None:
    rewards = np.where(flags(8, 3, 7) if timeouts is not None else flags(8, 7), 1.0, 0.0)
    path = write(tmp_path / "own.hdf5", a_log(rewards=rewards, timeouts=timeouts))
    with pytest.raises(InputError, match="which is dropped") as caught:
        load_d4rl(path)
    assert "leave the column out" not in str(caught.value)
    settings = dict(re.findall(r"dataset\.columns\.(\w+)=(\w+)", str(caught.value)))
    columns = Columns(**{field: None if name == "null" else name for field, name in settings.items()})
    transitions, labels = load_file(path, columns)
    assert (labels.missing, len(transitions)) == (True, 8 - int(rewards.sum()))


@pytest.mark.parametrize("name", ["observations", "actions", "rewards", "next_observations"])
def test_numbers_that_are_not_finite_are_refused_by_their_row_of_the_file(tmp_path: Path, name: str) -> None:
    """Row 6 is in the second episode, whose rows have other numbers in the container."""
    log = a_log(next_observations=rows(8, 3, start=1.0))
    log[name][6] = np.nan
    with pytest.raises(
        InputError, match=rf"own.hdf5: {name} have nan in row 6; remove or repair that episode"
    ):
        load_d4rl(write(tmp_path / "own.hdf5", log))


@pytest.mark.parametrize("order", [[0, 2, 1, 3, 4, 5, 6, 7], [0, 1, 2, 3, 5, 4, 6, 7]])
def test_a_shuffled_log_is_refused(tmp_path: Path, order: list[int]) -> None:
    log = a_log(next_observations=rows(8, 3, start=1.0))
    for name in ("observations", "actions", "rewards", "next_observations"):
        log[name] = log[name][order]
    row = next(row for row in range(8) if order[row + 1] != order[row] + 1)
    with pytest.raises(
        InputError,
        match=rf"own.hdf5: next_observations are {order[row] + 1} in row {row}, dimension 0, but row {row + 1} starts "
        f"from {order[row + 1]}; sort",
    ):
        load_d4rl(write(tmp_path / "own.hdf5", log))


def test_rewards_that_are_all_nan_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "own.hdf5", a_log(rewards=np.full(8, np.nan)))
    with pytest.raises(InputError, match=r"rewards have nan in row 0; .* dataset.columns.rewards=null"):
        load_d4rl(path)


def test_repeated_terminals_of_antmaze_are_counted(tmp_path: Path) -> None:
    """Rows 4 and 5 repeat the terminal of row 3; row 6 is a truncated episode of one step."""
    log = a_log(
        terminals=flags(8, 3, 4, 5, 7), timeouts=flags(8, 6), rewards=flags(8, 3, 4, 5, 7).astype(np.float32)
    )
    _, rewards = load_d4rl(write(tmp_path / "own.hdf5", log), "antmaze-umaze-v2")
    assert (int(rewards.dropped_steps), float(rewards.dropped_reward), int(rewards.dropped_successes)) == (
        3,
        2.0,
        2,
    )


def test_rewards_of_start_states_that_another_step_has_are_not_counted_as_dropped(tmp_path: Path) -> None:
    """The reward of a maze's last row is that of the step before it."""
    log = a_log(terminals=flags(8), timeouts=flags(8, 3), rewards=np.arange(8, dtype=np.float32))
    _, rewards = load_d4rl(write(tmp_path / "own.hdf5", log), "maze2d-umaze-v1")
    assert rewards.rewards.tolist() == [1, 2, 3, 5, 6, 7]
    assert (int(rewards.dropped_steps), float(rewards.dropped_reward)) == (2, 0.0)


# Faulty files.


@pytest.mark.parametrize(
    ("change", "dataset_id", "message"),
    [
        ({"observations": None}, None, "no array 'observations', the file contains actions, rewards, terminals, timeo"),
        ({"actions": None, "actions/left": rows(8, 2)}, None, "no array 'actions', the file contains actions, obs"),
        ({"rewards": None}, None, "no array 'rewards', the file contains actions, "),
        ({"terminals": None}, None, "no array 'terminals', the file contains actions, "),
        ({"actions": rows(7, 2)}, None, "7 rows of actions, but 8 of observations"),
        ({"rewards": np.zeros(9)}, None, "9 rows of rewards, but 8 of observations"),
        ({"timeouts": flags(5)}, None, "5 rows of timeouts, but 8 of observations"),
        ({"next_observations": rows(1, 3)}, None, "1 rows of next_observations, but 8"),
        ({"next_observations": rows(8, 2)}, None, r"next_observations have shape \(8, 2\), obs.* \(8, 3\)"),
        ({"observations": np.zeros((8, 4, 4, 3), np.uint8)}, None, r"have shape \(8, 4, 4, 3\), .*images"),
        ({"actions": np.arange(8)}, None, r"actions have shape \(8,\), .*discrete"),
        ({"rewards": np.zeros((8, 2))}, None, r"rewards have shape \(8, 2\), not \(8,\)"),
        ({"terminals": np.zeros((8, 3))}, None, r"terminals have shape \(8, 3\), not \(8,\)"),
        ({"rewards": np.float32(1.0)}, None, "rewards have no rows"),
        ({"rewards": np.array([b"1"] * 8)}, None, r"rewards have type \|S1; give numbers"),
        ({"observations": rows(8, 3) * 1j}, None, "observations have type complex"),
        ({"terminals": np.arange(8) / 4}, None, "terminals have 0.25 at step 1; use 0 or 1"),
        ({"timeouts": np.full(8, np.nan)}, None, "timeouts have nan at step 0"),
        (a_log(0), None, "observations have no rows"),
        ({"timeouts": None}, "hopper-medium-v0", "there are no timeouts, so the ends of episodes are unknown"),
        ({"timeouts": None}, "antmaze-umaze-v2", "there are no timeouts, so the ends of episodes"),
        ({"timeouts": None}, "hammer-human-v1", "there are no timeouts, so the ends of episodes"),
        ({"timeouts": None, "terminals": flags(8)}, None, "there are no timeouts and no step is a termin"),
        ({"timeouts": None, "terminals": flags(8)}, "kitchen-complete-v0", "there are no time.* and"),
        ({"timeouts": flags(8), "terminals": flags(8)}, "pen-human-v1", "no step is a timeout and no"),
        ({}, "hoper-medium-v2", "unknown family of D4RL's datasets 'hoper': did you mean hopper"),
    ],
)  # fmt: skip
def test_contradictory_logs_are_refused(
    tmp_path: Path, change: Arrays, dataset_id: str | None, message: str
) -> None:
    path = write(tmp_path / "log.hdf5", a_log(**change))
    with pytest.raises(InputError, match=message) as caught:
        load_d4rl(path, dataset_id)
    assert "\n" not in str(caught.value)
    assert dataset_id == "hoper-medium-v2" or str(path) in str(caught.value)


def test_an_empty_file_of_the_format_is_reported(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no array 'observations', the file contains nothing"):
        load_d4rl(write(tmp_path / "log.hdf5", {}))


@pytest.mark.parametrize("content", [b"", b"<html>403 Forbidden</html>", b"\x89HDF\r\n\x1a\n"])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "log.hdf5"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"log\.hdf5 cannot be read as HDF5 .* download it again"):
        load_d4rl(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is not a file; correct dataset\.path, or put the file there"):
        load_d4rl(tmp_path / "log.hdf5")
    with pytest.raises(InputError, match=r"dataset\.path: .* is a folder; name one file in it"):
        load_d4rl(tmp_path)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0.0, 1.0, exclude_max=True))
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, share: float) -> None:
    path = write(tmp_path / "log.hdf5", a_log())
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match="cannot be read as HDF5"):
        load_d4rl(path)


@settings(  # fixed examples, because some damage needs too much memory
    max_examples=80,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_a_damaged_file_gives_a_one_line_error_or_other_numbers(tmp_path: Path, data: st.DataObject) -> None:
    path = write(tmp_path / "log.hdf5", a_log())
    content = bytearray(path.read_bytes())
    for place, value in data.draw(
        st.dictionaries(st.integers(0, len(content) - 1), st.integers(0, 255), min_size=1, max_size=30)
    ).items():
        content[place] = value
    path.write_bytes(content)
    try:
        load_d4rl(path)
    except InputError as error:
        message = str(error)
    else:
        message = ""
    assert "\n" not in message


# Tables, scores and downloads.


def test_the_tables_know_the_published_datasets() -> None:
    tables = read_tables()
    assert tables.urls["halfcheetah-medium-replay-v2"].endswith(
        "/gym_mujoco_v2/halfcheetah_medium_replay-v2.hdf5"
    )
    assert tables.urls["kitchen-mixed-v0"].endswith("kitchen_microwave_kettle_bottomburner_light-v0.hdf5")
    assert tables.min_scores["hopper-medium-v2"] == -20.272305
    assert tables.max_scores["hopper-medium-v2"] == 3234.3
    for dataset_id, url in tables.urls.items():
        assert url.startswith("http")
        assert d4rl._family(dataset_id) in d4rl._FAMILIES.values()
    # All datasets share one cache folder.
    assert len({url.rsplit("/", 1)[1] for url in tables.urls.values()}) == len(tables.urls)


def test_scores_are_0_and_100_at_the_references(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = read_tables()
    monkeypatch.setattr(d4rl, "read_tables", lambda: tables)  # read once
    for dataset_id, low in tables.min_scores.items():
        high = tables.max_scores[dataset_id]
        assert normalised_score(dataset_id, low) == 0.0
        assert normalised_score(dataset_id, high) == pytest.approx(100.0)
        assert normalised_score(dataset_id, (low + high) / 2.0) == pytest.approx(50.0)


def test_a_dataset_without_references_has_no_score() -> None:
    assert normalised_score("ant-random-expert-v0", 1000.0) is None
    assert normalised_score("maze2d-eval-umaze-v1", 1000.0) is None


@pytest.mark.parametrize(
    "ask", [lambda name: normalised_score(name, 1.0), lambda name: fetch_d4rl(name, Path())]
)
def test_an_unknown_dataset_is_refused_with_the_nearest_ones(ask: Callable[[str], object]) -> None:
    with pytest.raises(
        InputError, match=r"unknown D4RL dataset 'hopper-medum-v2': did you mean hopper-medium-v2"
    ):
        ask("hopper-medum-v2")


@pytest.mark.parametrize(
    "ask", [lambda: normalised_score("hopper-medium-v2", 1.0), lambda: fetch_d4rl("hopper-medium-v2", Path())]
)
def test_without_the_package_the_error_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, ask: Callable[[], object]
) -> None:
    monkeypatch.setitem(sys.modules, "d4rl", None)
    with pytest.raises(InputError, match=r"pip install --no-deps d4rl==1\.1 .*dataset\.path"):
        ask()


@pytest.mark.parametrize(
    "content", ["import gym", "DATASET_URLS = {}", "DATASET_URLS = {", "1 / 0", "print('hello')", None]
)
def test_another_package_of_that_name_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    folder = tmp_path / "d4rl"
    folder.mkdir()
    (folder / "__init__.py").touch()
    if content is not None:
        (folder / "infos.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=r"pip install --no-deps d4rl==1\.1"):
        read_tables()


def test_neither_d4rl_nor_its_simulators_are_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("gym", "mujoco_py"):  # importable, so that the test would notice an import
        (tmp_path / f"{name}.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    load_d4rl(write(tmp_path / "log.hdf5", a_log()), "hopper-medium-v2")
    normalised_score("hopper-medium-v2", 1.0)
    assert not {"d4rl", "d4rl.infos", "gym", "mujoco_py"} & set(sys.modules)


def test_a_dataset_is_fetched_once_and_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    content = write(tmp_path / "published.hdf5", a_log()).read_bytes()
    with serving(sending(content, len(content))) as server:
        tables = read_tables()
        tables = replace(tables, urls=tables.urls | {"hopper-medium-v2": server.url})
        monkeypatch.setattr(d4rl, "read_tables", lambda: tables)
        path = fetch_d4rl("hopper-medium-v2", tmp_path / "cache")
        assert fetch_d4rl("hopper-medium-v2", tmp_path / "cache") == path
        assert server.requests == 1
    assert names_in(tmp_path / "cache") == ["log.hdf5"]
    assert load_d4rl(path, "hopper-medium-v2")[0].lengths.tolist() == [3, 4]


# The source.


def _source(**settings: Any) -> D4RL:
    return D4RL(D4RL.Parameters(**settings))


def test_the_source_reads_a_local_file(tmp_path: Path) -> None:
    path = write(tmp_path / "log.hdf5", a_log())
    source = _source(task="hopper-medium-v2", path=str(path), success_reward=0.5)
    assert source.files() == [path]
    assert source.parameters.label == "log.hdf5"
    assert_equal(source.load(0, None), load_d4rl(path, "hopper-medium-v2", success_reward=0.5))


def test_a_log_of_ones_own_has_no_task_and_no_environment(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.hdf5", a_log(timeouts=None))
    source = _source(task=None, path=str(path))
    assert (source.parameters.label, source.parameters.folder) == ("mine.hdf5", "mine.hdf5")
    assert source.make_environment() is None
    assert source.score(1.0) is None
    assert_equal(source.load(0, None), load_d4rl(path))
    with pytest.raises(
        ValueError, match=r"dataset\.task is null: name a dataset of D4RL's, or your own file"
    ):
        _source(task=None)


def test_the_source_downloads_a_published_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "log.hdf5", a_log())
    asked: list[str] = []

    def fetch(dataset_id: str, cache: Path) -> Path:
        asked.append(dataset_id)
        return path

    monkeypatch.setattr(d4rl, "fetch_d4rl", fetch)
    source = _source()
    assert source.files() == []
    assert source.parameters.label == "hopper-medium-v2"
    assert len(source.load(0, None)[0]) > 0
    assert asked == ["hopper-medium-v2"]


def test_the_source_knows_d4rls_score(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _source(task="hopper-medium-v2").score(1000.0) == normalised_score("hopper-medium-v2", 1000.0)
    assert _source(task="ant-random-expert-v0").score(1000.0) is None
    assert _source(task="my-own-log", path="log.hdf5").score(1000.0) is None
    monkeypatch.setitem(sys.modules, "d4rl", None)
    assert _source(task="hopper-medium-v2").score(1000.0) is None
