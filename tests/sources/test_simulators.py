from __future__ import annotations

from contextlib import closing
from typing import Any

import numpy as np
import pytest

from cvl_pipeline.environments.parameters import EvaluationParameters
from cvl_pipeline.errors import InputError
from cvl_pipeline.sources.parameters import DatasetParameters
from cvl_pipeline.sources.simulators import (
    SUCCESSORS,
    check_environment,
    environment_name,
    make_controller,
    make_environment,
    shared_tasks,
)
from cvl_pipeline.testing.builders import DATASET

HERE = "tests.sources.test_simulators"


def _dataset(**changes: Any) -> DatasetParameters:
    return DatasetParameters(**(DATASET | changes))


def _evaluation(environment: str | None = None, steps: int | None = None) -> EvaluationParameters:
    return EvaluationParameters(
        environment=environment, episode_steps=steps, episodes=1, confidence=0.9, workers=1
    )


@pytest.mark.parametrize(
    ("changes", "name", "observations", "steps"),
    [
        ({}, "door-open-v3", 39, 10),
        ({"task": "MT10"}, "MT10", 49, 10),
        ({"source": "pointmaze", "task": "PointMaze_UMaze-v3"}, "PointMaze_UMaze-v3", 8, 10),
        ({"source": "gymnasium", "task": "CartPole-v1"}, "CartPole-v1", 4, 10),
        ({"source": "d4rl", "task": "hopper-medium-v2"}, "Hopper-v5", 11, None),
        ({"source": "d4rl", "task": "pen-human-v1"}, "AdroitHandPen-v1", 45, None),
        ({"source": "d4rl", "task": "maze2d-umaze-v1"}, "maze2d-umaze-v1", 4, 300),
        ({"source": "d4rl", "task": "antmaze-umaze-v2"}, "antmaze-umaze-v2", 29, None),
        ({"source": "d4rl", "task": "kitchen-partial-v0"}, "kitchen-partial-v0", 60, None),
    ],
)
def test_every_source_has_its_environment(
    changes: dict[str, Any], name: str, observations: int, steps: int | None
) -> None:
    dataset = _dataset(**changes)
    check_environment(dataset, _evaluation())
    assert environment_name(dataset, _evaluation()) == name
    with closing(make_environment(dataset, _evaluation())()) as environment:
        assert environment.observation_space.shape == (observations,)
        observation, _ = environment.reset(seed=0)
        assert observation.shape == (observations,)
        if steps is not None:
            action = np.zeros(environment.action_space.shape, dtype=np.float32)
            ends = [any(environment.step(action)[2:4]) for _ in range(steps)]
            assert ends[-1]


def test_only_a_benchmark_shares_its_episodes_among_tasks_and_only_at_home() -> None:
    assert shared_tasks(_dataset(task="MT10"))[:2] == ("reach-v3", "push-v3")
    assert len(shared_tasks(_dataset(task="MT50"), _evaluation())) == 50
    assert shared_tasks(_dataset()) == ()
    assert shared_tasks(_dataset(task="MT10"), _evaluation("Pendulum-v1")) == ()
    assert shared_tasks(_dataset(source="files", path="log.csv", task="MT10")) == ()


@pytest.mark.parametrize("family", SUCCESSORS)
def test_successors_exist(family: str) -> None:
    make_environment(_dataset(source="d4rl", task=f"{family}-x"), _evaluation())().close()


def test_a_person_may_shorten_the_episodes_of_a_d4rl_task() -> None:
    dataset = _dataset(source="d4rl", task="maze2d-large-dense-v1")
    with closing(make_environment(dataset, _evaluation(steps=3))()) as environment:
        environment.reset(seed=0)
        ends = [environment.step(np.zeros(2, dtype=np.float32))[3] for _ in range(3)]
    assert ends == [False, False, True]


def test_the_person_may_name_another_environment() -> None:
    dataset = _dataset(source="files", path="log.csv")
    assert environment_name(dataset, _evaluation("Pendulum-v1")) == "Pendulum-v1"
    with closing(make_environment(dataset, _evaluation("Pendulum-v1", 3))()) as environment:
        environment.reset(seed=0)
        ends = [environment.step(np.zeros(1, dtype=np.float32))[3] for _ in range(3)]
    assert ends == [False, False, True]


@pytest.mark.parametrize(
    "changes",
    [
        {"source": "files", "path": "log.csv"},
        {"source": "d4rl", "task": "ant-random-expert-v0"},
        {"source": "d4rl", "task": "bullet-maze2d-umaze-v0"},
    ],
)
def test_without_a_known_environment_the_person_is_told_what_to_do(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"evaluation\.environment .*kedro run --pipelines"):
        check_environment(_dataset(**changes), _evaluation())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "door-opn-v3"}, "unknown Meta-World task 'door-opn-v3': did you mean door-open-v3"),
        ({"task": "MT11"}, "unknown Meta-World task 'MT11': did you mean MT10"),
        ({"source": "pointmaze", "task": "PointMaze_Hug-v3"}, "unknown PointMaze environment"),
        ({"source": "gymnasium", "task": "CartPol-v1"}, "Gymnasium environment 'CartPol-v1'"),
        ({"source": "d4rl", "task": "maze2d-umaz-v1"}, "'maze2d-umaz-v1': did you mean maze2d-umaze-v1"),
    ],
)
def test_an_unknown_environment_is_told_before_anything_runs(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_environment(_dataset(**changes), _evaluation())


def always_right(observation: np.ndarray) -> int:
    """A user's policy for CartPole."""
    return 1


def swings(observation: np.ndarray) -> np.ndarray:
    """A user's policy for Pendulum."""
    return np.array([2.0 * np.sign(observation[2])])


def wrong_action(observation: np.ndarray) -> Any:
    """A policy that returns neither 0 nor 1."""
    return 7


def nan_action(observation: np.ndarray) -> Any:
    return np.array([np.nan])


def test_a_persons_policy_acts_in_its_environments_own_terms() -> None:
    discrete = make_controller(
        _dataset(source="gymnasium", task="CartPole-v1", policy=f"{HERE}:always_right")
    )()
    np.testing.assert_array_equal(discrete(np.zeros(4)), [0.0, 1.0])
    vector = make_controller(_dataset(source="gymnasium", task="Pendulum-v1", policy=f"{HERE}:swings"))()
    np.testing.assert_array_equal(vector(np.array([1.0, 0.0, -0.5])), [-2.0])


@pytest.mark.parametrize(
    ("task", "function", "wanted"),
    [
        ("CartPole-v1", "wrong_action", "one of 0..1"),
        ("Pendulum-v1", "wrong_action", "1 finite numbers"),
        ("Pendulum-v1", "nan_action", "1 finite numbers"),
        ("CartPole-v1", "swings", "one of 0..1"),
    ],
)
def test_a_policy_that_returns_no_action_is_named(task: str, function: str, wanted: str) -> None:
    controller = make_controller(_dataset(source="gymnasium", task=task, policy=f"{HERE}:{function}"))()
    with pytest.raises(InputError, match=rf"dataset\.policy '{HERE}:{function}' returned .*, not {wanted}"):
        controller(np.zeros(3))


def test_a_policy_that_cannot_be_imported_is_told_before_anything_runs() -> None:
    with pytest.raises(InputError, match=r"dataset\.policy 'nowhere:f' cannot be imported"):
        make_controller(_dataset(source="gymnasium", task="CartPole-v1", policy="nowhere:f"))
