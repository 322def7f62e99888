from __future__ import annotations

import hashlib
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from cvl_pipeline.environments.base import Array
from cvl_pipeline.environments.collection import (
    Controller,
    Disturbances,
    Fragments,
    MixedQualityPolicy,
    _Disturbance,
    _experts,
    collect,
    episode_seeds,
    task_of_seed,
)
from cvl_pipeline.environments.metaworld import MetaWorldEnvironment, MetaWorldExpert
from cvl_pipeline.episodes.container import Rewards, Transitions
from cvl_pipeline.episodes.preparation import split_episodes
from cvl_pipeline.episodes.validation import validate_rewards, validate_transitions
from cvl_pipeline.errors import InputError
from cvl_pipeline.testing.builders import make_transitions
from tests.environments.toys import Walk
from tests.sources.rows import assert_equal

BOUNDS = -np.ones(4), np.ones(4)


def _disturbance(seed: int, noise_max: float, random_max: float, hold: int) -> _Disturbance:
    return _Disturbance(np.random.default_rng(seed), Disturbances(noise_max, random_max, hold), *BOUNDS)


def _policy(task: str, noise_max: float, random_max: float, hold: int) -> MixedQualityPolicy:
    return MixedQualityPolicy(
        partial(MetaWorldExpert, task), Disturbances(noise_max, random_max, hold), *BOUNDS
    )


def _random_steps(seed: int, random_max: float, hold: int, steps: int) -> np.ndarray:
    """Whether each step is random, for a noise-free policy that always returns 5."""
    disturbance = _disturbance(seed, 0.0, random_max, hold)
    five = np.full(4, 5.0)
    return np.array([disturbance.apply(five)[0] != 5.0 for _ in range(steps)])


@pytest.mark.parametrize(("random_max", "hold"), [(1.0, 5), (0.4, 1)])
def test_the_share_of_random_steps_of_an_episode_is_uniform_up_to_its_limit(
    random_max: float, hold: int
) -> None:
    shares = np.array([_random_steps(seed, random_max, hold, 1000).mean() for seed in range(150)])
    # Uniform in [0, random_max], up to the resolution of 1000 steps.
    assert stats.kstest(shares / random_max, stats.uniform().cdf).pvalue > 1e-3
    assert shares.mean() == pytest.approx(random_max / 2, abs=4 * random_max / np.sqrt(12 * 150))


def test_a_random_burst_holds_one_action_within_the_bounds() -> None:
    disturbance = _disturbance(3, 0.0, 0.5, 7)
    actions = np.stack([disturbance.apply(np.full(4, 5.0)) for _ in range(4000)])
    random = actions[:, 0] != 5.0
    starts = np.flatnonzero(random & ~np.append(False, random[:-1]))
    assert len(starts) > 20
    for start in starts[:-1]:
        burst = actions[start : start + 7]
        assert (burst == burst[0]).all()
        assert np.abs(burst).max() <= 1.0
    assert np.abs(actions[random]).max() > 0.9
    values = np.unique(actions[random], axis=0)
    assert stats.kstest(values.ravel(), stats.uniform(-1.0, 2.0).cdf).pvalue > 1e-3


def test_the_noise_of_an_episode_is_gaussian_with_a_uniform_spread() -> None:
    spreads = []
    for seed in range(150):
        disturbance = _disturbance(seed, 0.3, 0.0, 5)
        noise = np.stack([disturbance.apply(np.zeros(4)) for _ in range(200)]).ravel()
        spreads.append(noise.std())
        assert abs(noise.mean()) < 5 * noise.std() / np.sqrt(800)
    assert stats.kstest(np.array(spreads) / 0.3, stats.uniform().cdf).pvalue > 1e-3


def test_without_disturbance_the_policy_is_the_script() -> None:
    environment, expert = MetaWorldEnvironment("reach-v3", 5), MetaWorldExpert("reach-v3")
    policy = _policy("reach-v3", 0.0, 0.0, 5)
    policy.start([1, 2])
    observations = [environment.reset(seed=seed)[0] for seed in (1, 2)]
    for action, observation in zip(policy.act(observations, [0, 1]), observations, strict=True):
        np.testing.assert_array_equal(action, expert(observation))


def test_disturbances_belong_to_the_episode_and_not_to_its_place_among_those_running() -> None:
    environment = MetaWorldEnvironment("reach-v3", 5)
    observation, _ = environment.reset(seed=1)
    both, second = (_policy("reach-v3", 0.3, 1.0, 3) for _ in range(2))
    both.start([4, 6])
    second.start([6])
    for _ in range(10):
        together = both.act([observation, observation], [0, 1])[1]
        np.testing.assert_array_equal(together, second.act([observation], [0])[0])
    # The first has ended, which does not affect the second.
    for _ in range(10):
        np.testing.assert_array_equal(both.act([observation], [1])[0], second.act([observation], [0])[0])


def test_bounds_in_single_precision_do_not_round_the_actions() -> None:
    observation, _ = MetaWorldEnvironment("reach-v3", 5).reset(seed=1)
    actions = []
    for kind in (np.float32, np.float64):
        policy = MixedQualityPolicy(
            partial(MetaWorldExpert, "reach-v3"), Disturbances(0.3, 0.5, 3), *(b.astype(kind) for b in BOUNDS)
        )
        policy.start([3])
        actions.append(np.stack([policy.act([observation], [0])[0] for _ in range(20)]))
    np.testing.assert_array_equal(actions[0], actions[1])


def test_disturbances_share_no_random_numbers_with_the_goal() -> None:
    """The position of an object must be independent of the disturbances."""
    task, hold = "door-open-v3", 1
    environment = MetaWorldEnvironment(task, 5)
    expert = MetaWorldExpert(task)
    space = environment._environment._random_reset_space
    assert space is not None
    policy = _policy(task, 0.0, 1.0, hold)
    places, actions = [], []
    for seed in episode_seeds(0, "collection", 120):
        observation, _ = environment.reset(seed=seed)
        policy.start([seed])
        (action,) = policy.act([observation], [0])
        if np.array_equal(action, expert(observation)):
            continue  # no burst at the first step
        place = environment._environment._last_rand_vec
        assert place is not None
        places.append(place)
        actions.append(action)
    assert len(actions) > 30
    moving = (space.high - space.low) > 0.0
    together = np.hstack([np.stack(places)[:, moving], np.stack(actions)])
    count = int(moving.sum())
    correlation = np.corrcoef(together.T)[:count, count:]
    assert np.abs(correlation).max() < 0.45  # independent samples stay below 0.35


@pytest.mark.parametrize("seed", [0, 1, 12345, 2**31])
def test_seeds_of_collection_and_evaluation_never_meet(seed: int) -> None:
    collection = {s for run in (seed, seed + 1) for s in episode_seeds(run, "collection", 2000)}
    evaluation = {s for run in (seed, seed + 1) for s in episode_seeds(run, "evaluation", 2000)}
    assert not collection & evaluation
    # Check the construction, because random samples from so many numbers rarely coincide anyway.
    assert {s % 2 for s in collection} == {0}
    assert {s % 2 for s in evaluation} == {1}
    assert len(collection) > 3990
    assert all(0 <= s < 2**31 for s in collection | evaluation)


def test_seeds_are_repeatable_and_longer_lists_begin_with_the_shorter_ones() -> None:
    assert episode_seeds(3, "collection", 5) == episode_seeds(3, "collection", 9)[:5]
    assert episode_seeds(3, "collection", 5) != episode_seeds(4, "collection", 5)


def test_the_seeds_of_a_single_task_do_not_depend_on_tasks() -> None:
    """Collections keep the bytes of earlier versions."""
    assert episode_seeds(0, "collection", 3) == [1826701614, 1367864806, 1097657232]
    assert episode_seeds(0, "evaluation", 3) == [1121323795, 1910699505, 2132340199]


@pytest.mark.parametrize("purpose", ["collection", "evaluation"])
@pytest.mark.parametrize("tasks", [1, 10, 50])
def test_seeds_of_several_tasks_give_each_its_turn(purpose: str, tasks: int) -> None:
    seeds = episode_seeds(7, purpose, 120, tasks)
    assert [task_of_seed(seed, tasks) for seed in seeds] == [index % tasks for index in range(120)]
    assert {seed % 2 for seed in seeds} == {purpose == "evaluation"}
    assert len(set(seeds)) == 120
    assert max(seeds) < 2**31
    assert episode_seeds(7, purpose, 30, tasks) == seeds[:30]


def _collect(workers: int, task: str = "reach-v3") -> tuple[Transitions, Rewards]:
    return collect(
        partial(MetaWorldEnvironment, task, 5),
        partial(MetaWorldExpert, task),
        Disturbances(noise_max=0.3, random_max=1.0, random_hold=3),
        episodes=12,
        seed=0,
        workers=workers,
        name=task,
    )


def test_collection_gives_the_same_bytes_in_any_number_of_processes() -> None:
    transitions, rewards = _collect(workers=1)
    validate_transitions(transitions)
    validate_rewards(rewards, transitions)
    assert transitions.lengths.tolist() == [5] * 12
    assert transitions.truncated.all()
    assert not transitions.terminated.any()
    goals = transitions.observations.reshape(12, 6, 39)[:, :, 36:]
    assert torch.equal(goals, goals[:, :1].expand_as(goals))
    assert len(np.unique(goals[:, 0].numpy(), axis=0)) == 12
    assert_equal(_collect(workers=2), (transitions, rewards))


def test_an_unknown_task_is_refused_before_any_process_starts() -> None:
    with pytest.raises(InputError, match=r"did you mean .*reach-v3"):
        _collect(2, task="reech-v3")


@pytest.mark.parametrize("task", ["door-open-v3", "door-close-v3", "reach-v3"])
def test_a_controller_that_writes_to_its_observation_does_not_change_the_log(task: str) -> None:
    # Meta-World's policies for doors move the handle in the array that they are given.
    policy = _policy(task, 0.0, 0.0, 1)
    policy.start([0])
    observation = np.linspace(0.1, 0.6, 39)
    before = observation.copy()
    policy.act([observation], [0])
    np.testing.assert_array_equal(observation, before)


class Ahead:
    """Walks half a step ahead; as another goal, a random step."""

    def __call__(self, observation: Array) -> Array:
        return np.array([0.5])

    def other_goal(self, observation: Array, generator: np.random.Generator) -> Controller:
        goal = generator.uniform(-1.0, 0.0, size=1)
        return lambda observation: goal


CLEAN = Disturbances(0.0, 0.0, 1)


def _walk(
    disturbances: Disturbances = CLEAN, workers: int = 1, **settings: Any
) -> tuple[Transitions, Rewards]:
    make = partial(Walk, 12)
    return collect(make, Ahead, disturbances, episodes=40, seed=0, workers=workers, name="walk", **settings)


def test_mixed_episodes_keep_their_bytes() -> None:
    transitions, rewards = _walk(Disturbances(noise_max=0.3, random_max=1.0, random_hold=3))
    content = hashlib.sha256()
    for part in (transitions.observations, transitions.actions, transitions.episode_starts, rewards.rewards):
        content.update(part.numpy().tobytes())
    assert content.hexdigest()[:16] == "00c1203204fd50a6"


def test_with_equal_limits_all_episodes_are_equally_bad() -> None:
    alike = Disturbances(0.3, 0.55, 10, random_min=0.55, noise_min=0.3)
    disturbances = [_Disturbance(np.random.default_rng(seed), alike, *BOUNDS) for seed in range(60)]
    for disturbance in disturbances:
        np.testing.assert_array_equal(disturbance._noise, 0.3)
    five = np.full(4, 5.0)
    steps = np.array([[abs(d.apply(five)[0]) <= 1.0 for _ in range(1000)] for d in disturbances])
    assert steps.mean() == pytest.approx(0.55, abs=0.01)
    assert steps.mean(axis=1).std() < 0.06


@pytest.mark.parametrize(("share", "episodes", "tasks", "count"), [
    (0.025, 400, 1, 10), (0.025, 12, 1, 1), (0.025, 400, 10, 10), (0.025, 100, 10, 10), (0.025, 7, 10, 7),
    (0.025, 25, 10, 10), (0.0, 400, 1, 0),
])  # fmt: skip
def test_a_few_episodes_have_no_disturbances(share: float, episodes: int, tasks: int, count: int) -> None:
    drawn = []
    for run in range(5):
        seeds = episode_seeds(run, "collection", episodes, tasks)
        experts = _experts(seeds, share, run, tasks)
        assert len(experts) == count
        assert experts <= set(seeds)
        if count >= tasks > 1:
            assert {task_of_seed(seed, tasks) for seed in experts} == set(range(tasks))
        drawn.append(frozenset(seeds.index(seed) for seed in experts))
    if count == 10 and tasks == 1:
        assert len(set(drawn)) == 5


def test_experts_are_held_out_no_more_often_than_other_episodes() -> None:
    data = make_transitions([1] * 400, [False] * 400)
    held_out = 0
    for seed in range(100):
        seeds = episode_seeds(seed, "collection", 400)
        experts = _experts(seeds, 0.025, seed, 1)
        held_out += len(experts & {seeds[row] for row in split_episodes(data, 0.1, seed).validation})
    assert 70 <= held_out <= 130  # of 1000, a tenth of which is held out; the standard deviation is 9


def test_experts_act_like_the_controller_and_the_others_at_random() -> None:
    random = Disturbances(0.0, 1.0, 2, random_min=1.0)
    transitions, _ = _walk(random, experts=0.1)
    ends = transitions.episode_starts[1:-1].numpy()
    expert = [bool((actions == 0.5).all()) for actions in np.split(transitions.actions.numpy(), ends)]
    assert sum(expert) == 4
    assert (transitions.actions == 0.5).sum() == transitions.lengths[torch.tensor(expert)].sum()


def test_the_controller_pursues_another_goal_every_so_many_steps() -> None:
    transitions, _ = _walk(goal_steps=4)
    assert transitions.lengths.tolist() == [12] * 40  # nobody walks ahead
    goals = transitions.actions.reshape(40, 3, 4)
    assert torch.equal(goals, goals[:, :, :1].expand_as(goals))
    assert len(np.unique(goals[:, :, 0].numpy())) == 120


def test_goals_do_not_change_the_disturbances() -> None:
    disturbances = Disturbances(0.0, 1.0, 2)
    plain, _ = _walk(disturbances)
    played, _ = _walk(disturbances, goal_steps=12)
    random = plain.actions.reshape(-1) != 0.5
    starts = plain.episode_starts[:-1]
    both = [int(start) for start in starts if random[start]]  # a burst at the first step
    assert len(both) > 5
    first = dict(zip(starts.tolist(), played.episode_starts[:-1].tolist(), strict=True))
    assert [plain.actions[start].item() for start in both] == [
        played.actions[first[start]].item() for start in both
    ]


def test_fragments_are_windows_of_the_whole_episodes_and_the_rest_is_counted() -> None:
    whole, labels = _walk()
    parts, rewards = _walk(fragments=Fragments(1))
    assert parts.lengths.max() == 1
    assert parts.episodes > 40
    assert len(parts) + int(rewards.dropped_steps) == len(whole)
    assert float(rewards.rewards.sum() + rewards.dropped_reward) == pytest.approx(float(labels.rewards.sum()))
    assert int(rewards.successes.sum() + rewards.dropped_successes) == int(labels.successes.sum())
    default, _ = _walk(fragments=Fragments())
    assert default.lengths.max() == 1  # half a step at a time, from 0 to beyond 2: four or five steps
