"""Collecting episodes of mixed quality with the scripted policies of Meta-World."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from functools import partial

import numpy as np

from cvl_pipeline.rollouts.environments import Array, MetaWorldEnvironment, MetaWorldExpert
from cvl_pipeline.rollouts.episodes import RolloutTask, run_episodes, stack_episodes
from cvl_pipeline.trajectories.container import Rewards, Transitions


class MixedQualityPolicy:
    """The scripted policy of a task, disturbed by an amount that each episode draws for itself.

    From the episode's seed, and nothing else, come

    * the standard deviation of Gaussian noise on every action, uniform in [0, ``noise_max``];
    * the share of steps spent in random bursts, uniform in [0, ``random_max``]: a burst holds one
      action, uniform in [-1, 1], for ``random_hold`` steps and so leads away from the script's path.

    Some episodes are then nearly expert and some nearly random, which is what an offline log of many
    hands looks like and what cloning it cannot sort out.
    """

    def __init__(self, task: str, noise_max: float, random_max: float, random_hold: int) -> None:
        """Set the range of disturbances; raises InputError on an unknown task."""
        self._expert = MetaWorldExpert(task)
        self._noise_max = noise_max
        self._random_max = random_max
        self._random_hold = random_hold
        self._episodes: list[_Disturbance] = []

    def start(self, seeds: Sequence[int]) -> None:
        """Draw the disturbances of a batch of episodes."""
        self._episodes = [
            # Not default_rng(seed): that is the stream Meta-World draws the goal from.
            _Disturbance(
                np.random.default_rng([seed, 1]), self._noise_max, self._random_max, self._random_hold
            )
            for seed in seeds
        ]

    def act(self, observations: list[Array], running: list[int]) -> list[Array]:
        """The script's actions, disturbed."""
        return [
            self._episodes[i].apply(self._expert(observation))
            for observation, i in zip(observations, running, strict=True)
        ]


class _Disturbance:
    """The noise and the random bursts of one episode."""

    def __init__(
        self, generator: np.random.Generator, noise_max: float, random_max: float, random_hold: int
    ) -> None:
        self._generator = generator
        self._noise = generator.uniform(0.0, noise_max)
        share = generator.uniform(0.0, random_max)
        # A burst follows on average (1 - p) / p undisturbed steps, so that hold / (hold + (1 - p) / p)
        # of all steps are random: solved for p.
        self._burst_chance = share / (share + random_hold * (1.0 - share)) if share < 1.0 else 1.0
        self._hold = random_hold
        self._burst_left = 0
        self._burst_action: Array = np.zeros(0)

    def apply(self, action: Array) -> Array:
        if self._burst_left == 0 and self._generator.random() < self._burst_chance:
            self._burst_left = self._hold
            self._burst_action = self._generator.uniform(-1.0, 1.0, action.shape)
        noise = self._noise * self._generator.standard_normal(action.shape)
        if self._burst_left > 0:
            self._burst_left -= 1
            return self._burst_action
        return action + noise


def collect_metaworld(
    task: str,
    *,
    episodes: int,
    episode_steps: int,
    noise_max: float,
    random_max: float,
    random_hold: int,
    seed: int,
    workers: int | None,
) -> tuple[Transitions, Rewards]:
    """Collect episodes of a Meta-World task in the real simulator at mixed quality.

    The same seed gives the same bytes whatever ``workers`` is.

    Args:
        task: a Meta-World task, such as ``door-open-v3``.
        episodes: how many.
        episode_steps: steps after which each is truncated.
        noise_max: see MixedQualityPolicy.
        random_max: see MixedQualityPolicy.
        random_hold: see MixedQualityPolicy, in steps.
        seed: determines goals, object positions and disturbances.
        workers: processes; None takes as many as there are cores.

    Returns:
        The episodes and their labels.

    Raises:
        InputError: unknown task.
    """
    make_environment = partial(MetaWorldEnvironment, task, episode_steps)
    with closing(make_environment()) as environment:  # raises before any process starts
        recorded = run_episodes(
            RolloutTask(
                make_environment=make_environment,
                make_policy=partial(MixedQualityPolicy, task, noise_max, random_max, random_hold),
            ),
            episode_seeds(seed, "collection", episodes),
            workers=workers,
            description=f"Collecting {task}",
        )
        return stack_episodes(recorded, environment)


def episode_seeds(seed: int, purpose: str, count: int) -> list[int]:
    """Seeds of single episodes, in disjoint ranges for ``collection`` and ``evaluation``.

    Evaluation seeds are odd and collection seeds even, so no goal that collection drew is evaluated on,
    whatever the run's seed.
    """
    parity = {"collection": 0, "evaluation": 1}[purpose]
    draws = np.random.default_rng([seed, parity]).integers(0, 2**30, size=count)
    return [int(2 * draw + parity) for draw in draws]
