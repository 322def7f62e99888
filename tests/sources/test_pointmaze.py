from __future__ import annotations

from contextlib import closing
from typing import Any

from cvl_pipeline.environments.gymnasium import GymnasiumEnvironment
from cvl_pipeline.environments.pointmaze import WaypointController
from cvl_pipeline.sources.pointmaze import PointMaze


def _source(**settings: Any) -> PointMaze:
    return PointMaze(PointMaze.Parameters(**settings))


def test_a_maze_has_its_environment_and_a_controller_that_knows_its_map() -> None:
    source = _source(task="PointMaze_UMaze-v3", episode_steps=10)
    factory: Any = source.make_environment(3)
    assert (factory.func, factory.args) == (GymnasiumEnvironment, ("PointMaze_UMaze-v3", 10))
    assert isinstance(source.make_controller()(), WaypointController)
    assert source.may_have_environment
    assert not source.slow_to_build
    assert source.tasks == ()


def test_episodes_may_have_the_length_of_the_environment() -> None:
    factory = _source(task="PointMaze_UMaze-v3", episode_steps=None).make_environment()
    with closing(factory()) as environment:
        assert environment._environment.spec.max_episode_steps == 300  # type: ignore[attr-defined]
