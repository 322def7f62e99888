from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box

from cvl_pipeline.environments.collection import episode_seeds
from cvl_pipeline.environments.metaworld import (
    BENCHMARKS,
    GOAL,
    GOALS,
    PAIRS,
    MetaWorldEnvironment,
    MetaWorldExpert,
    _goals,
    _scripts,
    check_metaworld_task,
    metaworld_tasks,
)
from cvl_pipeline.errors import InputError
from tests.environments.play import play

TASKS = ("reach-v3", "door-open-v3", "push-v3")


@pytest.fixture(scope="module", params=TASKS)
def environment(request: pytest.FixtureRequest) -> Iterator[MetaWorldEnvironment]:
    built = MetaWorldEnvironment(request.param, 6)
    yield built
    built.close()


def test_the_seed_alone_determines_the_episode(environment: MetaWorldEnvironment) -> None:
    first = play(environment, 11, 6)
    other = play(environment, 12, 6)
    play(environment, 13, 3)  # an unfinished episode
    np.testing.assert_array_equal(play(environment, 11, 6), first)
    assert not np.array_equal(first[0], other[0])


@pytest.mark.parametrize("task", TASKS)
def test_a_fresh_environment_and_a_used_one_agree(task: str) -> None:
    used = MetaWorldEnvironment(task, 6)
    play(used, 5, 6)
    np.random.seed(1)
    ours = play(used, 7, 6)
    np.random.seed(2)
    np.testing.assert_array_equal(play(MetaWorldEnvironment(task, 6), 7, 6), ours)


def test_the_goal_is_visible_and_does_not_move(environment: MetaWorldEnvironment) -> None:
    rows = play(environment, 3, 6)
    goals = rows[:, 36:39]
    assert np.abs(goals[0]).max() > 0.01
    assert (goals != 0.0).any(axis=1).all()
    np.testing.assert_array_equal(goals, np.broadcast_to(goals[0], goals.shape))
    target = environment._environment._target_pos
    assert target is not None
    np.testing.assert_allclose(goals[0], target)


def test_seeds_draw_different_goals(environment: MetaWorldEnvironment) -> None:
    starts = np.stack([environment.reset(seed=seed)[0] for seed in range(8)])
    assert len(np.unique(starts.round(6), axis=0)) == 8


def test_observations_and_rewards_are_in_their_ranges(environment: MetaWorldEnvironment) -> None:
    rows = play(environment, 4, 6)
    assert rows.shape == (7, 42)
    assert environment.observation_space.shape == (39,)
    # The bounds are those of a visible goal; those of a hidden goal would be zero.
    assert isinstance(environment.observation_space, Box)
    assert (environment.observation_space.high[36:39] > 0.0).any()
    assert (rows[1:, 39] >= 0.0).all()
    assert (rows[1:, 39] <= 10.0).all()
    # The second half is the observation one step earlier.
    np.testing.assert_array_equal(rows[1:, 18:36], rows[:-1, 0:18])
    assert environment.action_space.shape == (4,)


def test_episodes_are_truncated_at_their_length_and_not_terminated(environment: MetaWorldEnvironment) -> None:
    for _ in range(2):  # the count restarts
        environment.reset(seed=1)
        ends = [environment.step(np.zeros(4, dtype=np.float32))[2:4] for _ in range(6)]
        assert ends == [(False, False)] * 5 + [(False, True)]


@pytest.mark.parametrize("make", [lambda task: MetaWorldEnvironment(task, 5), MetaWorldExpert])
def test_an_unknown_task_is_refused_with_the_nearest_ones(make: object) -> None:
    with pytest.raises(InputError, match=r"'reech-v3'.*did you mean .*reach-v3"):
        make("reech-v3")  # type: ignore[operator]


def test_there_are_fifty_tasks_with_a_scripted_policy_each() -> None:
    tasks = metaworld_tasks()
    assert len(tasks) == 50
    assert tasks == sorted(tasks)
    for task in tasks:
        MetaWorldExpert(task)


def test_the_expert_solves_reach_because_it_sees_the_goal() -> None:
    environment, expert = MetaWorldEnvironment("reach-v3", 100), MetaWorldExpert("reach-v3")
    solved = 0
    for seed in range(3):
        observation, _ = environment.reset(seed=seed)
        for _ in range(100):
            action = expert(observation)
            assert np.abs(action).max() <= 1.0
            observation, _, _, truncated, info = environment.step(action)
            if info["success"] or truncated:
                break
        solved += bool(info["success"])
    assert solved == 3


def test_a_benchmark_counts_as_a_task_only_where_several_tasks_are_allowed() -> None:
    check_metaworld_task("MT10", BENCHMARKS)
    with pytest.raises(InputError, match="unknown Meta-World task 'MT10'"):
        check_metaworld_task("MT10")


def test_without_metaworld_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "metaworld.env_dict", None)
    with pytest.raises(
        InputError, match=r"'reach-v3' needs Meta-World: pip install 'cvl-pipeline\[metaworld\]'"
    ):
        check_metaworld_task("reach-v3")


def test_tasks_that_undo_each_other_share_a_scene() -> None:
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    def scene(task: str) -> str:
        kind: Any = ALL_V3_ENVIRONMENTS[task]
        return str(kind.model_name.fget(object.__new__(kind)))  # without building the simulation

    for pair in PAIRS:
        assert scene(pair[0]) == scene(pair[1]), pair
    named = [task for pair in PAIRS for task in pair]
    assert len(named) == len(set(named))


@pytest.mark.parametrize(("task", "scripts"), [
    ("reach-v3", ["reach-v3"]),
    ("push-v3", ["push-v3", "reach-v3"]),
    ("door-close-v3", ["door-close-v3", "door-open-v3", "reach-v3"]),
])  # fmt: skip
def test_other_goals_are_those_of_scripts_for_the_scene(task: str, scripts: list[str]) -> None:
    assert _scripts(task) == scripts
    expert, generator = MetaWorldExpert(task), np.random.default_rng(0)
    observation, _ = MetaWorldEnvironment(task, 5).reset(seed=1)
    before = observation.copy()
    actions = [expert.other_goal(observation, generator)(observation) for _ in range(40)]
    np.testing.assert_array_equal(observation, before)
    # Every action is one of a script, for one of its own goals.
    known = []
    for script in scripts:
        for goal in _goals(script):
            changed = observation.copy()
            changed[GOAL] = goal
            known.append(MetaWorldExpert(script)(changed))
    assert all(any(np.array_equal(action, other) for other in known) for action in actions)
    assert len(np.unique(np.stack(actions), axis=0)) > 5


def test_goals_that_are_pursued_are_not_those_of_evaluation() -> None:
    goals = _goals("reach-v3")
    assert len(np.unique(goals, axis=0)) == GOALS
    environment = MetaWorldEnvironment("reach-v3", 5)
    for index in (0, GOALS - 1):
        np.testing.assert_array_equal(environment.reset(seed=2 * index)[0][GOAL], goals[index])
    evaluation = [environment.reset(seed=seed)[0][GOAL] for seed in episode_seeds(0, "evaluation", 50)]
    assert len(np.unique(np.concatenate([goals, np.stack(evaluation)]), axis=0)) == GOALS + 50
