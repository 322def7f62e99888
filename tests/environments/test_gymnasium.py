from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete, MultiDiscrete, Sequence, Space

from cvl_pipeline.environments.gymnasium import GymnasiumEnvironment
from cvl_pipeline.errors import InputError
from tests.environments.play import play
from tests.environments.toys import Spaces

VECTOR = Box(-1.0, 1.0, (2,), np.float32)


@pytest.fixture
def register() -> Iterator[Callable[[Space[Any], Space[Any]], str]]:
    """Register an environment with the given spaces and return its id."""
    name = "tests/Spaces-v0"

    def register(observations: Space[Any], actions: Space[Any]) -> str:
        gymnasium.register(
            name,
            entry_point="tests.environments.toys:Spaces",
            max_episode_steps=3,
            kwargs={"observations": observations, "actions": actions},
            disable_env_checker=True,
        )
        return name

    yield register
    gymnasium.registry.pop(name, None)


def test_the_environment_gets_the_index_of_a_one_hot_action() -> None:
    ours, theirs = GymnasiumEnvironment("CartPole-v1"), gymnasium.make("CartPole-v1")
    assert ours.discrete
    assert ours.action_space == Box(0.0, 1.0, (2,), np.float32)
    observation, _ = ours.reset(seed=5)
    np.testing.assert_array_equal(observation, theirs.reset(seed=5)[0])
    for chosen in (0, 1, 1, 0):
        observation, reward, terminated, truncated, _ = ours.step(np.eye(2, dtype=np.float32)[chosen])
        expected = theirs.step(chosen)
        np.testing.assert_array_equal(observation, expected[0])
        assert (reward, terminated, truncated) == expected[1:4]
    ours.close()
    theirs.close()


@pytest.mark.parametrize("environment_id", ["CliffWalking-v1", "Blackjack-v1"])
def test_an_environment_without_a_time_limit_is_refused_with_the_field_that_gives_one(
    environment_id: str,
) -> None:
    message = rf"'{environment_id}' has no time limit.* set evaluation\.episode_steps"
    with pytest.raises(InputError, match=message):
        GymnasiumEnvironment(environment_id)
    with pytest.raises(InputError, match=r"has no time limit.* set dataset\.episode_steps"):
        GymnasiumEnvironment(environment_id, limit_field="dataset.episode_steps")
    GymnasiumEnvironment(environment_id, 5).close()


def test_a_time_limit_that_is_switched_off_is_none() -> None:
    with pytest.raises(InputError, match="has no time limit"):
        GymnasiumEnvironment("CartPole-v1", -1)


def _limited() -> gymnasium.Env[Any, Any]:
    return gymnasium.make("Pendulum-v1")


def test_a_time_limit_inside_the_environment_counts() -> None:
    wrapped = "tests/Limited-v0"
    try:
        gymnasium.register(wrapped, entry_point=f"{__name__}:_limited")
        GymnasiumEnvironment(wrapped).close()
    finally:
        gymnasium.registry.pop(wrapped, None)


def test_continuous_actions_are_passed_unchanged() -> None:
    ours, theirs = GymnasiumEnvironment("Pendulum-v1"), gymnasium.make("Pendulum-v1")
    assert not ours.discrete
    assert ours.action_space == theirs.action_space
    assert ours.observation_space == theirs.observation_space
    np.testing.assert_array_equal(ours.reset(seed=5)[0], theirs.reset(seed=5)[0])
    for torque in (-2.0, 0.3, 1.7):
        action = np.array([torque], dtype=np.float32)
        observation, reward, *_ = ours.step(action)
        expected = theirs.step(action)
        np.testing.assert_array_equal(observation, expected[0])
        assert reward == expected[1]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_executed_actions_are_in_the_space_of_the_environment(
    register: Callable[[Space[Any], Space[Any]], str], dtype: type[np.floating[Any]]
) -> None:
    space = Box(-0.1, 0.1, (2,), dtype)
    environment = GymnasiumEnvironment(register(VECTOR, space))
    environment.reset(seed=0)
    actions = [[0.1, -0.1], [0.05, 0.0], [9.0, -9.0]]
    for action in actions:
        environment.step(np.array(action, dtype=np.float32))
    inner = environment._environment.unwrapped
    assert isinstance(inner, Spaces)
    assert all(space.contains(action) for action in inner.executed)
    np.testing.assert_allclose(inner.executed, np.clip(actions, -0.1, 0.1), rtol=1e-3)


@pytest.mark.parametrize(("steps", "length"), [(7, 7), (None, 200)])
def test_episodes_end_at_the_given_or_the_registered_length(steps: int | None, length: int) -> None:
    environment = GymnasiumEnvironment("Pendulum-v1", steps)
    for _ in range(2):
        environment.reset(seed=0)
        ends = [environment.step(np.zeros(1, dtype=np.float32))[2:4] for _ in range(length)]
        assert ends == [(False, False)] * (length - 1) + [(False, True)]


def test_the_seed_alone_determines_a_gymnasium_episode() -> None:
    environment = GymnasiumEnvironment("CartPole-v1")
    first, _ = environment.reset(seed=3)
    other, _ = environment.reset(seed=4)
    environment.step(np.array([1.0, 0.0], dtype=np.float32))
    np.testing.assert_array_equal(environment.reset(seed=3)[0], first)
    assert not np.array_equal(first, other)


ROBOTICS = [
    "AntMaze_UMaze-v5", "PointMaze_UMaze-v3", "FrankaKitchen-v1",
    "AdroitHandPen-v1", "AdroitHandDoor-v1", "AdroitHandHammer-v1", "AdroitHandRelocate-v1",
]  # fmt: skip


@pytest.mark.parametrize("name", ROBOTICS)
def test_gymnasium_robotics_is_seeded_and_reports_success(name: str) -> None:
    environment = GymnasiumEnvironment(name, 8)
    first, other = play(environment, 3, 8), play(environment, 4, 8)
    play(environment, 5, 3)  # an unfinished episode
    np.testing.assert_array_equal(play(environment, 3, 8), first)
    assert not np.array_equal(first, other)
    environment.close()


@pytest.mark.parametrize("removed", [True, False])
def test_the_kitchen_is_solved_when_all_of_its_tasks_are_completed(removed: bool) -> None:
    settings = {"tasks_to_complete": ["microwave", "kettle"], "remove_task_when_completed": removed}
    environment = GymnasiumEnvironment("FrankaKitchen-v1", settings=settings)
    kitchen: Any = environment._environment.unwrapped
    entries = {"kettle": slice(23, 30), "microwave": slice(22, 23)}
    for _ in range(2):  # a new episode starts with all subtasks open
        environment.reset(seed=0)
        solved = [environment.step(np.zeros(9))[4]["success"]]
        for task, places in entries.items():
            kitchen.data.qpos[places] = kitchen.goal[task]
            solved.append(environment.step(np.zeros(9))[4]["success"])
        assert solved == [False, False, True]
    environment.close()


def test_observations_are_copies_that_the_environment_cannot_change(
    register: Callable[[Space[Any], Space[Any]], str],
) -> None:
    environment = GymnasiumEnvironment(register(VECTOR, VECTOR))
    rows = [environment.reset(seed=0)[0]]
    rows += [environment.step(np.zeros(2, dtype=np.float32))[0] for _ in range(3)]
    assert np.stack(rows)[:, 0].tolist() == [0.0, 1.0, 2.0, 3.0]


def test_discrete_actions_need_not_start_at_zero(register: Callable[[Space[Any], Space[Any]], str]) -> None:
    environment = GymnasiumEnvironment(register(VECTOR, Discrete(3, start=-1)))
    environment.reset(seed=0)
    for row in np.eye(3, dtype=np.float32):
        environment.step(row)
    inner = environment._environment.unwrapped
    assert isinstance(inner, Spaces)
    assert inner.executed == [-1, 0, 1]


@pytest.mark.parametrize(
    ("observations", "actions", "message"),
    [
        (Sequence(VECTOR), VECTOR, r"observations are Sequence\(.*, neither numbers that make one"),
        (Sequence(Box(0, 255, (4, 4, 3), np.uint8)), VECTOR, r"observations are .*nor an image"),
        (VECTOR, MultiDiscrete([2, 3]), r"actions are MultiDiscrete.*, neither a vector nor discrete"),
        (VECTOR, Box(-1.0, 1.0, (2, 2), np.float32), r"actions are Box.*, neither a vector nor discrete"),
        (VECTOR, Box(-np.inf, np.inf, (2,), np.float32), r"actions are Box.*, not bounded"),
        (
            VECTOR,
            Box(0, 3, (2,), np.int64),
            r"actions are Box.*int64\), whole numbers, but policies give fractions",
        ),
    ],
)
def test_unsupported_spaces_are_refused(
    register: Callable[[Space[Any], Space[Any]], str],
    observations: Space[Any],
    actions: Space[Any],
    message: str,
) -> None:
    with pytest.raises(InputError, match=rf"'tests/Spaces-v0': {message}"):
        GymnasiumEnvironment(register(observations, actions))


def test_an_environment_may_be_a_class_of_the_users_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    lines = [
        "from gymnasium.envs.classic_control import CartPoleEnv",
        "class Short(CartPoleEnv):",
        "    pass",
        "other = 1",
    ]
    (tmp_path / "my_cart.py").write_text("\n".join(lines))
    environment = GymnasiumEnvironment("my_cart:Short", 3)
    environment.reset(seed=0)
    ends = [environment.step(environment.action_space.sample())[3] for _ in range(3)]
    assert ends == [False, False, True]
    with pytest.raises(InputError, match="'my_cart:Short' has no time limit"):
        GymnasiumEnvironment("my_cart:Short")
    with pytest.raises(InputError, match=r"^Gymnasium environment 'my_cart:other': "):
        GymnasiumEnvironment("my_cart:other")


@pytest.mark.parametrize("name", ["NoSuch-v0", "CartPole-v99", "not an id", "no_such_module:CartPole-v1"])
def test_an_unknown_gymnasium_environment_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(InputError, match=f"^Gymnasium environment '{name}': ") as caught:
        GymnasiumEnvironment(name)
    assert "\n" not in str(caught.value)
