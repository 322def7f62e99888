from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from cvl_pipeline.environments.collection import Disturbances, collect
from cvl_pipeline.environments.gymnasium import GymnasiumEnvironment
from cvl_pipeline.environments.pointmaze import WaypointController, check_pointmaze_task, pointmaze_tasks
from cvl_pipeline.episodes.container import Rewards, Transitions
from cvl_pipeline.errors import InputError

MAZES = ["PointMaze_UMaze-v3", "PointMaze_Medium-v3", "PointMaze_LargeDense-v3"]


def _collect(
    task: str, disturbances: Disturbances, episodes: int, steps: int | None = None
) -> tuple[Transitions, Rewards]:
    return collect(
        partial(GymnasiumEnvironment, task, steps), partial(WaypointController, task), disturbances,
        episodes=episodes, seed=0, workers=1, name=task,
    )  # fmt: skip


@pytest.mark.parametrize("task", MAZES)
def test_the_controller_reaches_every_goal(task: str) -> None:
    transitions, rewards = _collect(task, Disturbances(0.0, 0.0, 1), episodes=5)
    starts = transitions.episode_starts[:-1].numpy()
    assert np.logical_or.reduceat(rewards.successes.numpy(), starts).all()
    # The point stays at the goal until the episode ends.
    ends = transitions.observations[transitions.episode_starts[1:] + np.arange(5)]
    assert ((ends[:, :2] - ends[:, 2:4]).norm(dim=1) < 0.45).all()
    assert not transitions.terminated.any()


def test_the_path_never_leads_through_a_wall_and_always_one_cell_nearer() -> None:
    controller = WaypointController("PointMaze_Medium-v3")
    free = np.argwhere(controller._free)
    for goal in map(tuple, free):
        following = controller._towards((int(goal[0]), int(goal[1])))
        assert len(following) == len(free) - 1  # every other cell can reach it
        for cell in map(tuple, free):
            path = [(int(cell[0]), int(cell[1]))]
            while path[-1] != goal:
                path.append(following[path[-1]])
                assert controller._free[path[-1]]
                assert abs(path[-1][0] - path[-2][0]) + abs(path[-1][1] - path[-2][1]) == 1
                assert len(path) <= len(free)


def test_disturbed_episodes_are_of_mixed_quality() -> None:
    disturbances = Disturbances(0.5, 1.0, 20)
    transitions, rewards = _collect("PointMaze_UMaze-v3", disturbances, episodes=12, steps=60)
    returns = np.add.reduceat(rewards.rewards.numpy(), transitions.episode_starts[:-1].numpy())
    assert returns.std() > 0.2 * returns.mean()
    assert transitions.actions.abs().max() <= 1.0


def test_sparse_and_dense_rewards_are_the_environments_own() -> None:
    assert {"PointMaze_Medium-v3", "PointMaze_MediumDense-v3"} <= set(pointmaze_tasks())
    _, sparse = _collect("PointMaze_UMaze-v3", Disturbances(0.0, 0.0, 1), episodes=2, steps=80)
    transitions, dense = _collect("PointMaze_UMazeDense-v3", Disturbances(0.0, 0.0, 1), episodes=2, steps=80)
    arrivals = transitions.arrivals()
    distance = (arrivals[:, :2] - arrivals[:, 2:4]).norm(dim=1)
    np.testing.assert_allclose(dense.rewards, np.exp(-distance), rtol=1e-5)
    np.testing.assert_array_equal(sparse.rewards.numpy(), (distance <= 0.45).numpy())
    np.testing.assert_array_equal(sparse.successes, dense.successes)


def test_an_unknown_maze_is_refused_with_the_nearest_ones() -> None:
    with pytest.raises(InputError, match="unknown PointMaze environment 'PointMaze_Medum-v3': did you mean"):
        check_pointmaze_task("PointMaze_Medum-v3")


def test_other_goals_are_free_cells_and_the_controller_goes_there() -> None:
    task = "PointMaze_UMaze-v3"
    controller, generator = WaypointController(task), np.random.default_rng(0)
    environment = GymnasiumEnvironment(task, 300)
    observation, _ = environment.reset(seed=0)
    centres = [controller._centre((int(row), int(column))) for row, column in np.argwhere(controller._free)]
    ends = []
    for _ in range(4):
        act = controller.other_goal(observation, generator)
        for _ in range(250):
            before = observation.copy()
            action = act(observation)
            np.testing.assert_array_equal(observation, before)
            observation, *_ = environment.step(action.astype(np.float32))
        nearest = min(centres, key=lambda centre: float(np.linalg.norm(centre - observation[4:6])))
        assert np.linalg.norm(nearest - observation[4:6]) < 0.1
        ends.append(tuple(nearest))
        observation, _ = environment.reset(seed=0)
    assert len(set(ends)) > 2
