from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from cvl_pipeline.api import evaluate, train_method
from cvl_pipeline.environments.base import Array
from cvl_pipeline.environments.goals import GoalEnvironment
from cvl_pipeline.environments.metaworld import GOAL, MetaWorldGoals
from cvl_pipeline.environments.parameters import EvaluationParameters
from cvl_pipeline.environments.pointmaze import PointMazeGoals
from cvl_pipeline.episodes.container import Rewards
from cvl_pipeline.episodes.data import EpisodeData
from cvl_pipeline.errors import InputError
from cvl_pipeline.sources.base import SOURCES
from cvl_pipeline.sources.environment import EvaluationEnvironment, environment_for, has_environment
from cvl_pipeline.testing.builders import make_transitions
from tests.environments.toys import Walk


class Walks(Walk):
    """A walk whose goal is one step to the right of its start, or to the left of it, in turns of the seeds."""

    def reset(self, *, seed: int) -> tuple[Array, dict[str, Any]]:
        observation, _ = super().reset(seed=seed)
        return observation, {"goal": observation + np.array([(-1.0) ** (seed // 2), 0.0])}


class Images(Walk):
    def reset(self, *, seed: int) -> tuple[Array, dict[str, Any]]:
        return np.zeros((4, 5, 3), np.uint8), {"goal": np.ones((4, 5, 3))}


def test_the_goal_of_the_episode_stands_beside_every_observation() -> None:
    environment = GoalEnvironment(partial(Walks, 3))
    assert environment.observation_space.shape == (4,)
    observation, info = environment.reset(seed=2)
    np.testing.assert_allclose(observation, [0.2, 0.0, -0.8, 0.0])
    assert info["goal"].tolist() == observation[2:].tolist()
    for _ in range(3):
        observation, _, _, truncated, _ = environment.step(np.array([0.1]))
        np.testing.assert_allclose(observation[2:], [-0.8, 0.0])
    assert truncated


def test_goals_of_images_are_more_channels() -> None:
    pairs, _ = GoalEnvironment(Images).reset(seed=0)
    assert pairs.shape == (4, 5, 6)
    assert pairs.dtype == np.uint8
    assert pairs[..., :3].max() == 0
    assert pairs[..., 3:].min() == 1


@pytest.mark.parametrize(
    ("info", "fault"),
    [
        ({}, r"info\['goal'\] of the environment's reset is missing; give an observation, of shape \(2,\)"),
        ({"goal": [1.0]}, r"reset has shape \(1,\); give an observation, of shape \(2,\)"),
    ],
)
def test_an_environment_that_does_not_say_its_goal_is_refused(info: dict[str, Any], fault: str) -> None:
    class Other(Walk):
        def reset(self, *, seed: int) -> tuple[Array, dict[str, Any]]:
            return super().reset(seed=seed)[0], info

    with pytest.raises(InputError, match=fault):
        GoalEnvironment(Other).reset(seed=0)


def test_the_maze_shows_a_point_that_rests_at_the_goal() -> None:
    environment = PointMazeGoals("PointMaze_UMaze-v3")
    observation, info = environment.reset(seed=1)
    assert info["goal"].shape == observation.shape
    target = observation[2:4]
    assert info["goal"].tolist() == [*target, *target, *target, 0.0, 0.0]


def test_meta_world_shows_the_state_in_which_the_script_solves_the_same_episode() -> None:
    environment = MetaWorldGoals("reach-v3", 200)
    observation, info = environment.reset(seed=3)
    assert np.array_equal(info["goal"][GOAL], observation[GOAL])
    assert np.linalg.norm(info["goal"][:3] - observation[GOAL]) < 0.06
    assert np.linalg.norm(observation[:3] - observation[GOAL]) > 0.06
    assert np.array_equal(environment.reset(seed=3)[0], observation)


def test_one_policy_is_evaluated_over_goals_and_the_table_names_them() -> None:
    log = make_transitions([20] * 30, [False] * 30, observation_size=2, action_size=1)
    for start in range(0, 630, 21):  # the action is the displacement
        log.observations[start : start + 21, 1] = 0.0
    steps = log.actions.reshape(30, 20)
    places = torch.cat([torch.zeros(30, 1), steps.cumsum(1)], 1)
    log.observations[:, 0] = places.flatten()
    data = EpisodeData.prepare(log, Rewards(log.arrivals()[:, 0], log.arrivals()[:, 0] > 3.0))
    training = {"steps": 200, "batch_size": 128, "validation_interval": 100, "accelerator": "cpu"}
    policy, _ = train_method(
        data, "crl", hidden=(32, 32), representation_size=8, bc_weight=0.1, training=training, discount=0.8
    )
    place = EvaluationEnvironment(
        partial(GoalEnvironment, partial(Walks, 5)), "walks", ("right", "left"), goals=True
    )
    place.check(log)
    table = evaluate(policy, place, episodes=6)
    assert table["task"].tolist() == ["right", "left"] * 3
    # The return is the sum of the places.
    returns = table.groupby("task")["return"].mean()
    assert returns["right"] > returns["left"] + 1.0


@pytest.mark.parametrize(
    ("dataset", "goals"),
    [
        ({"source": "metaworld", "task": "reach-v3"}, ()),
        ({"source": "pointmaze", "task": "PointMaze_UMaze-v3"}, ()),
        ({"source": "ogbench", "task": "cube-single-play-v0"}, ("task1", "task2", "task3", "task4", "task5")),
    ],
)
def test_sources_with_goals(dataset: dict[str, Any], goals: tuple[str, ...]) -> None:
    if dataset["source"] == "ogbench":
        pytest.importorskip("ogbench")
    parameters: Any = SOURCES.validate(dataset)
    place = environment_for(parameters, EvaluationParameters(goals=True))
    assert (place.goals, place.tasks, place.name) == (True, goals, f"goals of {dataset['task']}")
    assert has_environment(parameters, EvaluationParameters(goals=True))


@pytest.mark.parametrize(
    ("dataset", "environment", "fault"),
    [
        ({"source": "metaworld", "task": "MT10"}, None, "no goals are known for dataset 'MT10'"),
        (
            {"source": "gymnasium", "task": "CartPole-v1"},
            None,
            "no goals are known for dataset 'CartPole-v1'",
        ),
        ({"source": "metaworld"}, "CartPole-v1", "only the dataset's own environment has known goals"),
    ],
)
def test_goals_that_nobody_knows_are_refused(
    dataset: dict[str, Any], environment: str | None, fault: str
) -> None:
    with pytest.raises(InputError, match=fault):
        environment_for(
            SOURCES.validate(dataset),  # type: ignore[arg-type]
            EvaluationParameters(goals=True, environment=environment),
        )
