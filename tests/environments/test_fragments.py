from __future__ import annotations

import logging

import numpy as np
import pytest

from cvl_pipeline.environments.fragments import cut, third_of_a_solution
from cvl_pipeline.environments.rollouts import Episode
from cvl_pipeline.errors import InputError


def _episode(
    steps: int, solved_after: int | None = None, terminated: bool = False, label: int = 0
) -> Episode:
    """An episode whose observations are (label, time), solved from some step on."""
    return Episode(
        observations=[np.array([label, time]) for time in range(steps + 1)],
        actions=[np.array([float(time)]) for time in range(steps)],
        rewards=[float(time) for time in range(steps)],
        successes=[solved_after is not None and time + 1 >= solved_after for time in range(steps)],
        success_reported=True,
        terminated=terminated,
        truncated=not terminated,
    )


def _start(window: Episode) -> int:
    return int(window.observations[0][1])


def test_windows_are_parts_of_their_episode_that_do_not_overlap() -> None:
    episodes = [_episode(100, solved_after=60, label=label) for label in range(20)]
    windows, _ = cut(episodes, range(20), 8, "test")
    assert len(windows) == 20 * 6
    for label, episode in enumerate(episodes):
        parts = [window for window in windows if window.observations[0][0] == label]
        starts = [_start(part) for part in parts]
        assert (np.diff(starts) >= 8).all()
        for part, start in zip(parts, starts, strict=True):
            assert len(part.observations) == 9
            np.testing.assert_array_equal(part.observations, episode.observations[start : start + 9])
            assert part.actions == episode.actions[start : start + 8]
            assert part.rewards == episode.rewards[start : start + 8]
            assert part.successes == episode.successes[start : start + 8]
            assert (part.terminated, part.truncated, part.success_reported) == (False, True, True)
    assert len({_start(window) for window in windows}) > 60


@pytest.mark.parametrize(
    ("steps", "window", "solved_after"), [(40, 8, 5), (12, 8, 8), (9, 20, 9), (40, 8, 9)]
)
def test_no_window_holds_both_the_start_and_a_success(steps: int, window: int, solved_after: int) -> None:
    windows, _ = cut([_episode(steps, solved_after)] * 300, range(300), window, "test")
    assert not any(_start(part) == 0 and any(part.successes) for part in windows)
    if solved_after > window:  # the start itself is not excluded
        assert any(_start(part) == 0 for part in windows)
    assert any(any(part.successes) for part in windows)


def test_the_seed_of_an_episode_alone_determines_its_windows() -> None:
    episodes = [_episode(100)] * 3
    together, _ = cut(episodes, [2, 4, 6], 10, "test")
    alone, _ = cut(episodes[:1], [4], 10, "test")
    assert [_start(part) for part in alone] == [_start(part) for part in together[5:10]]
    assert [_start(part) for part in alone] != [_start(part) for part in together[:5]]


def test_only_the_last_steps_of_an_episode_that_terminated_end_in_a_termination() -> None:
    windows, _ = cut([_episode(10, terminated=True)] * 100, range(100), 4, "test")
    ends = np.array([part.terminated for part in windows])
    np.testing.assert_array_equal(ends, [_start(part) == 6 for part in windows])
    assert 0 < ends.sum() < 100
    np.testing.assert_array_equal(ends, [not part.truncated for part in windows])


def test_what_is_in_no_window_is_counted_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    episodes = [_episode(30, solved_after=20), _episode(3), _episode(1, solved_after=1)]
    with caplog.at_level(logging.INFO):
        windows, dropped = cut(episodes, [0, 1, 2], 5, "reach")
    kept = [step for part in windows for step in zip(part.rewards, part.successes, strict=True)]
    every = [step for part in episodes for step in zip(part.rewards, part.successes, strict=True)]
    assert [len(part.actions) for part in windows] == [5, 5, 5, 3]
    assert int(dropped["dropped_steps"]) == len(every) - len(kept) == 16
    assert int(dropped["dropped_episodes"]) == 1
    assert float(dropped["dropped_reward"]) == sum(r for r, _ in every) - sum(r for r, _ in kept)
    assert int(dropped["dropped_successes"]) == sum(s for _, s in every) - sum(s for _, s in kept)
    assert (
        "reach: 3 episodes are cut into 4 windows of 5 steps. 16 of 34 steps are in no window" in caplog.text
    )


def test_the_default_window_is_a_third_of_the_median_solution() -> None:
    clean = [_episode(60, steps) for steps in (30, 36, 59)]
    assert third_of_a_solution(clean, "reach") == 12
    assert third_of_a_solution([*clean[:2], _episode(60)], "reach") == 11  # one never solves the task
    assert third_of_a_solution([_episode(60, 2)], "reach") == 1


def test_a_task_that_the_controller_never_solves_needs_a_window() -> None:
    with pytest.raises(InputError, match=r"none of 2 undisturbed episodes of reach .*; set dataset\.window"):
        third_of_a_solution([_episode(60)] * 2, "reach")


def test_episodes_of_one_step_that_solves_the_task_have_no_window() -> None:
    with pytest.raises(
        InputError, match="preset fragments: every episode of press is solved in its only step"
    ):
        cut([_episode(1, solved_after=1)] * 3, range(3), 8, "press")
