from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, SupportsFloat

import numpy as np
import pytest
import torch

from cvl_pipeline.environments import rollouts as module
from cvl_pipeline.environments.base import Array, Environment, SuccessRewarded, success_in
from cvl_pipeline.environments.gymnasium import GymnasiumEnvironment
from cvl_pipeline.environments.rollouts import (
    Episode,
    RolloutTask,
    run_episodes,
    stack_episodes,
)
from cvl_pipeline.episodes.container import Rewards
from cvl_pipeline.episodes.validation import validate_rewards, validate_transitions
from cvl_pipeline.errors import InputError
from tests.environments.toys import Dying, Push, Walk
from tests.own import Broken, Leaving, LeavingPush
from tests.training.processes import linux, wait_for

TASK = RolloutTask(make_environment=Walk, make_policy=Push)


def _run(seeds: list[int], workers: int = 1) -> list[Episode]:
    return run_episodes(TASK, seeds, workers=workers, description="test")


def _by_hand(seed: int) -> dict[str, list[float]]:
    place, action = (seed % 10) / 10.0, np.float32(np.clip(5.0 * (seed % 10) / 10.0 - 2.0, -1.0, 1.0))
    places, rewards = [place], []
    for _ in range(6):
        place += float(action)
        places.append(place)
        rewards.append(place)
        if place > 3.0:
            break
    return {"places": places, "rewards": rewards, "action": [float(action)]}


def test_episodes_have_the_order_of_their_seeds_and_the_right_ends() -> None:
    seeds = [9, 3, 14, 7, 0, 5, 8, 1, 2, 6, 4, 19, 13]  # more than one batch, with different lengths
    recorded = _run(seeds)
    assert len(recorded) == len(seeds)
    for seed, episode in zip(seeds, recorded, strict=True):
        expected = _by_hand(seed)
        assert [float(row[0]) for row in episode.observations] == pytest.approx(expected["places"])
        assert episode.rewards == pytest.approx(expected["rewards"])
        assert {float(action[0]) for action in episode.actions} == set(expected["action"])
        assert len(episode.actions) == len(expected["rewards"]) == len(episode.observations) - 1
        assert episode.successes == [place > 2.0 for place in expected["places"][1:]]
        assert episode.terminated == (expected["places"][-1] > 3.0)
        assert episode.truncated == (len(expected["rewards"]) == 6)
    assert {episode.terminated for episode in recorded} == {True, False}


def test_actions_are_clipped_and_recorded_as_they_were_executed() -> None:
    worker = module._Worker(TASK)
    (episode,) = worker.run([0])  # the policy returns -2
    environment = worker._environments[0]
    assert isinstance(environment, Walk)
    assert environment.executed == [-1.0] * 6
    assert [float(action[0]) for action in episode.actions] == environment.executed
    assert episode.actions[0].dtype == np.float32


def test_environments_are_built_once_and_used_again() -> None:
    built = []

    def make() -> Walk:
        built.append(1)
        return Walk()

    run_episodes(RolloutTask(make, Push), list(range(30)), workers=1, description="test")
    assert len(built) == module.BATCH


class Reusing(Walk):
    """Returns the same array at every step."""

    def __init__(self) -> None:
        super().__init__()
        self._buffer = np.zeros(2)

    def reset(self, *, seed: int) -> tuple[Array, dict[str, Any]]:
        observation, info = super().reset(seed=seed)
        self._buffer[:] = observation
        return self._buffer, info

    def step(self, action: Array) -> tuple[Array, SupportsFloat, bool, bool, dict[str, Any]]:
        observation, *others = super().step(action)
        self._buffer[:] = observation
        return self._buffer, *others  # type: ignore[return-value]


def test_an_environment_may_use_one_array_for_all_observations() -> None:
    recorded = run_episodes(RolloutTask(Reusing, Push), [9, 3], workers=1, description="test")
    for one, other in zip(recorded, _run([9, 3]), strict=True):
        assert np.array_equal(np.stack(one.observations), np.stack(other.observations))


class Counting(Walk):
    """Leaves a file for every start of an episode, and for every environment that was made or closed."""

    def __init__(self, folder: Path, fails: bool = False) -> None:
        super().__init__()
        self._folder, self._fails = folder, fails
        self._note("made")

    def _note(self, what: str) -> None:
        (self._folder / f"{what}_{os.getpid()}_{time.monotonic_ns()}").touch()

    def reset(self, *, seed: int) -> tuple[Array, dict[str, Any]]:
        self._note("start")
        if self._fails and seed == 0:
            raise OSError("no simulator")
        time.sleep(0.005 if self._fails else 0.0)
        return super().reset(seed=seed)

    def close(self) -> None:
        self._note("closed")


@pytest.mark.parametrize("workers", [1, 2])
def test_all_environments_are_closed(tmp_path: Path, workers: int) -> None:
    task = RolloutTask(partial(Counting, tmp_path), Push)
    run_episodes(task, range(24), workers=workers, description="test")

    def count(what: str) -> int:
        return len(list(tmp_path.glob(f"{what}_*")))

    wait_for(lambda: count("made") == count("closed"))
    assert count("made") >= module.BATCH


def test_after_an_error_no_further_episodes_begin(tmp_path: Path) -> None:
    task = RolloutTask(partial(Counting, tmp_path, True), Push)
    with pytest.raises(InputError, match="no simulator"):
        run_episodes(task, range(300), workers=2, description="test")
    assert len(list(tmp_path.glob("start_*"))) < 150


def test_an_episode_depends_on_its_own_seed_alone() -> None:
    alone = [_run([seed])[0] for seed in range(13)]
    together = _run(list(range(13)))
    for one, other in zip(alone, together, strict=True):
        assert np.array_equal(np.stack(one.observations), np.stack(other.observations))
        assert one.rewards == other.rewards


def test_stacked_episodes_keep_every_row_in_its_place() -> None:
    recorded = _run([9, 0, 8])
    transitions, rewards = stack_episodes(recorded, Walk())
    validate_transitions(transitions)
    validate_rewards(rewards, transitions)
    assert transitions.lengths.tolist() == [len(episode.actions) for episode in recorded]
    assert transitions.terminated.tolist() == [True, False, True]
    assert transitions.truncated.tolist() == [False, True, False]
    for e, episode in enumerate(recorded):
        part = transitions.select(torch.tensor([e]))
        np.testing.assert_array_equal(part.observations, np.stack(episode.observations).astype(np.float32))
        np.testing.assert_array_equal(part.actions, np.stack(episode.actions))
        labels = rewards.select(transitions.transition_index(torch.tensor([e])))
        np.testing.assert_array_equal(labels.rewards, np.array(episode.rewards, dtype=np.float32))
        assert labels.successes.tolist() == episode.successes
    for name in ("observations", "actions", "action_low", "action_high"):
        assert getattr(transitions, name).dtype == torch.float32
    assert transitions.episode_starts.dtype == torch.int64
    assert transitions.terminated.dtype == rewards.successes.dtype == torch.bool
    assert not transitions.discrete


class Reporting(Walk):
    """Reports success under some names, from a given step on."""

    def __init__(
        self, names: tuple[str, ...], values: tuple[Any, ...] = (False, True), first: int = 1
    ) -> None:
        super().__init__()
        self._names, self._values, self._first = names, values, first

    def step(self, action: Array) -> tuple[Array, SupportsFloat, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, _ = super().step(action)
        solved = self._values[self.taken % len(self._values)]
        info = {} if self.taken < self._first else dict.fromkeys(self._names, solved)
        return observation, reward, terminated, truncated, {"other": 1.0, **info}


def _labels(make: Callable[[], Environment]) -> Rewards:
    recorded = run_episodes(RolloutTask(make, Push), [0, 1], workers=1, description="test")
    return stack_episodes(recorded, make())[1]


@pytest.mark.parametrize("name", ["success", "is_success", "goal_achieved"])
@pytest.mark.parametrize("values", [(False, True), (0.0, 1.0), (np.False_, np.True_)])
def test_success_has_one_of_three_names_in_info(name: str, values: tuple[Any, ...]) -> None:
    labels = _labels(partial(Reporting, (name,), values))
    assert labels.reports_success
    assert labels.successes.tolist() == [True, False, True, False, True, False] * 2


def test_the_first_name_of_success_counts() -> None:
    class Both(Reporting):
        def step(self, action: Array) -> tuple[Array, SupportsFloat, bool, bool, dict[str, Any]]:
            *outcome, info = super().step(action)
            return *outcome, info | {"is_success": True, "goal_achieved": True}  # type: ignore[return-value]

    labels = _labels(partial(Both, ("success",), (False,)))
    assert labels.reports_success
    assert not labels.successes.any()


def test_success_that_the_environment_never_reports_is_missing() -> None:
    labels = _labels(partial(Reporting, ()))
    assert not labels.reports_success
    assert not labels.successes.any()


def test_success_that_is_reported_late_is_no_success_before() -> None:
    labels = _labels(partial(Reporting, ("is_success",), (True,), 5))
    assert labels.reports_success
    assert labels.successes.tolist() == [False] * 4 + [True] * 2 + [False] * 4 + [True] * 2


@pytest.mark.parametrize("nothing", [None, float("nan"), np.float32("nan"), np.array([np.nan])])
def test_none_and_nan_say_nothing_about_success(nothing: Any) -> None:
    assert not _labels(partial(Reporting, ("success", "is_success"), (nothing,))).reports_success
    labels = _labels(partial(Reporting, ("is_success",), (nothing, True)))
    assert labels.reports_success
    assert labels.successes.tolist() == [True, False, True, False, True, False] * 2
    assert success_in({"success": nothing, "goal_achieved": True}) is True


@pytest.mark.parametrize(
    ("solved", "expected"),
    [
        (1, True), (0, False), (1.0, True), (np.float32(0.0), False), (np.array(True), True),
        (np.array([False]), False), ([1.0], True), (torch.tensor([True]), True), (np.int8(1), True),
    ],
)  # fmt: skip
def test_success_may_be_any_single_flag_or_number(solved: Any, expected: bool) -> None:
    assert success_in({"is_success": solved}) is expected


@pytest.mark.parametrize(
    "solved", ["no", {"left": True}, np.zeros(4), [1, [2]], b"yes", [], object(), 0.5, -1.0, 2, np.inf]
)
def test_success_that_is_no_flag_is_refused(solved: Any) -> None:
    with pytest.raises(InputError, match=r"info\['is_success'\] is .* not a flag"):
        success_in({"is_success": solved})


class AtReset(Reporting):
    """Mentions success when an episode starts, and then only where the task is solved."""

    def reset(self, *, seed: int) -> tuple[Array, dict[str, Any]]:
        return super().reset(seed=seed)[0], {"is_success": False}


def test_success_that_only_the_reset_mentions_is_reported_and_not_reached() -> None:
    labels = _labels(partial(AtReset, ()))
    assert labels.reports_success
    assert not labels.successes.any()


def test_an_episode_without_end_is_an_error_that_names_the_field(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cvl_pipeline.environments.rollouts.LONGEST_EPISODE", 30)
    message = r"did not end within 30 steps.* set evaluation\.episode_steps \(dataset\.episode_steps"
    with pytest.raises(InputError, match=message):
        _labels(partial(Walk, 31))
    assert len(_labels(partial(Walk, 30)).rewards) > 0


class Lever:
    """Two alternating actions as one-hot vectors; the seed selects the first."""

    def start(self, seeds: Sequence[int]) -> None:
        self.seeds = list(seeds)
        self.steps = 0

    def act(self, observations: list[Array], running: list[int]) -> list[Array]:
        self.steps += 1
        return [np.eye(2)[(self.seeds[i] + self.steps) % 2] for i in running]


def test_episodes_of_discrete_actions_have_one_hot_vectors() -> None:
    make = partial(GymnasiumEnvironment, "CartPole-v1", 12)
    recorded = run_episodes(RolloutTask(make, Lever), list(range(12)), workers=1, description="test")
    transitions, rewards = stack_episodes(recorded, make())
    validate_transitions(transitions)
    validate_rewards(rewards, transitions)
    assert transitions.discrete.dtype == torch.bool
    assert transitions.discrete
    assert transitions.action_low.tolist() == [0.0, 0.0]
    assert transitions.action_high.tolist() == [1.0, 1.0]
    assert (transitions.terminated ^ transitions.truncated).all()
    for e, episode in enumerate(recorded):
        expected = [(e + step) % 2 for step in range(1, len(episode.actions) + 1)]
        assert [int(np.argmax(action)) for action in episode.actions] == expected


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("task", "message"),
    [
        (RolloutTask(Leaving, Push), r"tests\.own:Leaving\.step ended Python at .*own\.py:\d+"),
        (RolloutTask(Walk, LeavingPush), r"tests\.own:LeavingPush\.act ended Python at .*own\.py:\d+"),
        (
            RolloutTask(Broken, Push),
            r"tests\.own:Broken\.step failed at .*own\.py:\d+ \(ZeroDivisionError: no step",
        ),
    ],
)
def test_code_of_the_user_that_fails_or_ends_python_is_named(
    task: RolloutTask, message: str, workers: int
) -> None:
    with pytest.raises(InputError, match=message):
        run_episodes(task, range(12), workers=workers, description="test")


def test_a_worker_that_dies_is_reported_with_a_fix() -> None:
    task = RolloutTask(make_environment=Dying, make_policy=Push)
    with pytest.raises(InputError, match=r"evaluation\.workers"):
        run_episodes(task, range(20), workers=2, description="dying")


class Noted(Push):
    """Writes its process id to a file, and then is slow."""

    def __init__(self, folder: Path) -> None:
        (folder / str(os.getpid())).touch()

    def act(self, observations: list[Array], running: list[int]) -> list[Array]:
        time.sleep(60)
        return super().act(observations, running)


def _collect(folder: Path) -> None:
    task = RolloutTask(partial(GymnasiumEnvironment, "CartPole-v1", 12), partial(Noted, folder))
    run_episodes(task, range(20), workers=2, description="slow")


@linux
def test_a_run_that_is_killed_leaves_no_worker(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_collect, args=(tmp_path,))
    process.start()
    wait_for(lambda: len(list(tmp_path.iterdir())) == 2)
    workers = [Path("/proc", path.name) for path in tmp_path.iterdir()]
    (server,) = {Path("/proc", _parent(worker)) for worker in workers}
    assert server.name != str(process.pid)
    process.kill()
    process.join()
    wait_for(lambda: not any(path.exists() for path in (*workers, server)))


def _parent(process: Path) -> str:
    return (process / "stat").read_text().rpartition(")")[2].split()[1]


class Surroundings(Push):
    """Acts by a variable of the environment, in a worker of another process."""

    def __init__(self, parent: int) -> None:
        assert os.getpid() != parent

    def act(self, observations: list[Array], running: list[int]) -> list[Array]:
        return [np.array([float(os.environ["OWN_ACTION"])]) for _ in running]


def test_workers_see_variables_that_were_set_after_their_server_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _run(list(range(20)), workers=2)  # the server runs now
    for action in (0.25, 0.5):
        monkeypatch.setenv("OWN_ACTION", str(action))
        task = RolloutTask(Walk, partial(Surroundings, os.getpid()))
        episodes = run_episodes(task, range(20), workers=2, description="test")
        assert {float(row[0]) for episode in episodes for row in episode.actions} == {action}


def test_without_a_server_every_worker_is_a_fresh_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> None:
        raise OSError("AF_UNIX path too long")

    monkeypatch.setattr("multiprocessing.forkserver.ensure_running", refused)
    assert module.start_server().get_start_method() == "spawn"
    seeds = list(range(12))
    for one, other in zip(_run(seeds, workers=2), _run(seeds), strict=True):
        assert repr(one) == repr(other)


def test_the_reward_of_success_is_0_or_1_and_changes_nothing_else() -> None:
    plain, rewarded = Walk(), SuccessRewarded(Walk)
    assert (rewarded.observation_space, rewarded.discrete) == (plain.observation_space, False)
    np.testing.assert_array_equal(rewarded.reset(seed=3)[0], plain.reset(seed=3)[0])
    rewards = []
    for _ in range(4):
        action = np.array([1.0], dtype=np.float32)
        observation, reward, *flags = rewarded.step(action)
        expected, _, *others = plain.step(action)
        np.testing.assert_array_equal(observation, expected)
        assert flags == others
        rewards.append(reward)
    assert rewards == [0.0, 1.0, 1.0, 1.0]
    rewarded.close()
    assert rewarded._environment.closed  # type: ignore[attr-defined]
