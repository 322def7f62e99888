from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from cvl_pipeline.environments.metaworld import MetaWorldEnvironment, MetaWorldExpert
from cvl_pipeline.environments.multitask import MultiTaskEnvironment, MultiTaskExpert
from cvl_pipeline.sources.metaworld import MetaWorld


def _source(**settings: Any) -> MetaWorld:
    return MetaWorld(MetaWorld.Parameters(**settings))


@pytest.mark.parametrize(
    ("task", "environment", "expert"),
    [
        ("reach-v3", MetaWorldEnvironment, MetaWorldExpert),
        ("MT10", MultiTaskEnvironment, MultiTaskExpert),
        ("MT50", MultiTaskEnvironment, MultiTaskExpert),
    ],
)
def test_a_task_has_its_environment_and_its_expert(task: str, environment: type, expert: type) -> None:
    source = _source(task=task, episode_steps=10)
    factory: Any = source.make_environment()
    assert (factory.func, factory.args) == (environment, (task, 10))
    controller: Any = source.make_controller()
    assert (controller.func, controller.args) == (expert, (task,))


def test_evaluation_keeps_the_length_of_the_collection() -> None:
    factory: Any = _source(episode_steps=10).make_environment(3)
    assert factory.args == ("door-open-v3", 10)


@pytest.mark.parametrize("steps", [0, 501, None])
def test_episodes_longer_than_the_simulation_allows_are_refused(steps: int | None) -> None:
    with pytest.raises(ValidationError, match="episode_steps"):
        MetaWorld.Parameters(episode_steps=steps)


def test_a_simulation_exists_and_is_slow_to_build() -> None:
    assert _source().may_have_environment
    assert _source().slow_to_build
