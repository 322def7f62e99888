from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch

from cvl_pipeline.environments.collection import Disturbances, collect, episode_seeds
from cvl_pipeline.environments.evaluation import evaluate, rollout_table
from cvl_pipeline.environments.metaworld import (
    BENCHMARKS,
    MetaWorldEnvironment,
    MetaWorldExpert,
    metaworld_tasks,
)
from cvl_pipeline.environments.multitask import (
    MultiTaskEnvironment,
    MultiTaskExpert,
    benchmark_tasks,
)
from cvl_pipeline.episodes.container import Rewards, Transitions
from cvl_pipeline.episodes.preparation import with_tasks
from cvl_pipeline.episodes.validation import validate_rewards, validate_transitions
from cvl_pipeline.networks.actor import ActorShape, GaussianActor
from tests.environments.play import play

MT10 = benchmark_tasks("MT10")
MAKE = partial(MultiTaskEnvironment, "MT10", 4)
SEEDS = episode_seeds(0, "collection", 10, 10)
"""One seed per task."""


@pytest.fixture(scope="module")
def environment() -> MultiTaskEnvironment:
    return MAKE()


@pytest.mark.parametrize(("benchmark", "count"), [("MT10", 10), ("MT50", 50)])
def test_a_benchmark_has_the_tasks_of_metaworld_and_their_policies(benchmark: str, count: int) -> None:
    tasks = benchmark_tasks(benchmark)
    assert len(tasks) == len(set(tasks)) == count
    assert set(tasks) <= set(metaworld_tasks())
    MultiTaskExpert(benchmark)
    assert benchmark in BENCHMARKS


def test_an_episode_is_that_of_a_single_task_and_names_it(environment: MultiTaskEnvironment) -> None:
    assert environment.observation_space.shape == (49,)
    for index, seed in enumerate(SEEDS):
        rows = play(environment, seed, 4)
        assert rows.shape == (5, 52)
        assert rows[-1, -1], "truncated at the given length"
        np.testing.assert_array_equal(rows[:, 39:49], np.tile(np.eye(10)[index], (5, 1)))
        # A new simulation of the task gives the same result, so earlier episodes have no effect.
        single = play(MetaWorldEnvironment(MT10[index], 4), seed, 4)
        np.testing.assert_array_equal(np.delete(rows, slice(39, 49), axis=1), single)


def test_the_seed_alone_determines_the_episode(environment: MultiTaskEnvironment) -> None:
    first = play(environment, SEEDS[3], 4)
    assert not np.array_equal(play(environment, episode_seeds(1, "collection", 4, 10)[3], 4), first)
    environment.reset(seed=SEEDS[5])
    environment.step(np.zeros(4, dtype=np.float32))
    np.testing.assert_array_equal(play(environment, SEEDS[3], 4), first)


def test_a_simulation_is_built_when_its_task_is_first_needed() -> None:
    environment = MAKE()
    assert not environment._built
    for _ in range(2):
        environment.reset(seed=SEEDS[2])
        assert list(environment._built) == [2]
    environment.close()


def test_the_expert_acts_by_the_script_of_the_task_it_sees(environment: MultiTaskEnvironment) -> None:
    expert = MultiTaskExpert("MT10")
    actions = []
    for task, seed in zip(MT10, SEEDS, strict=True):
        observation, _ = environment.reset(seed=seed)
        actions.append(expert(observation))
        np.testing.assert_array_equal(actions[-1], MetaWorldExpert(task)(observation[:39]))
    assert len(np.unique(np.stack(actions), axis=0)) > 5


def _collect(episodes: int) -> tuple[Transitions, Rewards]:
    return collect(
        MAKE, partial(MultiTaskExpert, "MT10"), Disturbances(0.3, 1.0, 3),
        episodes=episodes, seed=0, workers=1, name="MT10", tasks=10,
    )  # fmt: skip


def test_a_collection_is_balanced() -> None:
    transitions, rewards = _collect(episodes=20)
    validate_transitions(transitions)
    validate_rewards(rewards, transitions)
    table = with_tasks(pd.DataFrame(index=range(20)), transitions, MT10)
    assert table["task"].tolist() == [*MT10, *MT10]
    # An episode depends only on its own seed, not on the number of episodes.
    fewer, _ = _collect(episodes=3)
    assert torch.equal(fewer.observations, transitions.select(torch.arange(3)).observations)


def test_an_evaluation_is_balanced_and_its_table_names_the_tasks() -> None:
    torch.manual_seed(0)
    actor = GaussianActor(ActorShape((49,), 4, (8,)))
    transitions, rewards = evaluate(actor, MAKE, episodes=12, seed=3, workers=1, name="test", tasks=10)
    validate_transitions(transitions)
    table = rollout_table(transitions, rewards, 3, MT10)
    assert table["task"].tolist() == [*MT10, *MT10[:2]]
    assert table["episode_seed"].tolist() == episode_seeds(3, "evaluation", 12, 10)
    environment = MAKE()
    for episode in (1, 11):
        observation, _ = environment.reset(seed=int(table["episode_seed"][episode]))
        first = transitions.select(torch.tensor([episode])).observations[0]
        np.testing.assert_array_equal(first, observation.astype(np.float32))


def test_other_goals_belong_to_the_scene_of_the_observed_task(environment: MultiTaskEnvironment) -> None:
    expert = MultiTaskExpert("MT10")
    for task in (0, 7):  # reach and drawer-close
        observation, _ = environment.reset(seed=SEEDS[task])
        ours = expert.other_goal(observation, np.random.default_rng(1))
        single = MetaWorldExpert(MT10[task]).other_goal(observation[:39], np.random.default_rng(1))
        np.testing.assert_array_equal(ours(observation), single(observation[:39]))
