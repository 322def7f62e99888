"""Collection of episodes of mixed quality in simulators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import numpy as np

from cvl_pipeline.environments.base import Array, Environment
from cvl_pipeline.environments.rollouts import RolloutTask, run_episodes, stack_episodes
from cvl_pipeline.episodes.container import Rewards, Transitions

Controller = Callable[[Array], Array]
"""Maps an observation (O,) to an action (A,)."""


@dataclass(frozen=True)
class Disturbances:
    """Ranges of the disturbances added to the controller; every episode samples its own amount.

    Two amounts are sampled, from the episode's seed only:

    * the standard deviation of Gaussian noise on every action, uniform in [0, ``noise_max``], in units of
      half the environment's action range;
    * the share of steps in random bursts, uniform in [``random_min``, ``random_max``]. A burst repeats one
      action, uniform within the bounds, for ``random_hold`` steps and so leaves the controller's path.

    Some episodes are then nearly expert and some nearly random, as in an offline log from many operators.
    Behaviour cloning cannot separate them.
    """

    noise_max: float
    random_max: float
    random_hold: int  # steps
    random_min: float = 0.0


class MixedQualityPolicy:
    """A controller with disturbances, whose amount each episode samples for itself."""

    def __init__(
        self, make_controller: Callable[[], Controller], disturbances: Disturbances, low: Array, high: Array
    ) -> None:
        """Build the controller, which raises InputError for an unknown name; bounds are (A,)."""
        self._controller = make_controller()
        self._disturbances = disturbances
        # Double precision, like the disturbances: single precision would round every action.
        self._bounds = (low.astype(np.float64), high.astype(np.float64))
        self._episodes: list[_Disturbance] = []

    def start(self, seeds: Sequence[int]) -> None:
        """Sample the disturbances of a batch of episodes."""
        # Not default_rng(seed): Meta-World samples the goal from that stream.
        self._episodes = [
            _Disturbance(np.random.default_rng([seed, 1]), self._disturbances, *self._bounds)
            for seed in seeds
        ]

    def act(self, observations: list[Array], running: list[int]) -> list[Array]:
        """Return the controller's actions with disturbances."""
        # Copies: Meta-World's policies for doors write to the observation, which is in the log already.
        return [
            self._episodes[i].apply(self._controller(observation.copy()))
            for observation, i in zip(observations, running, strict=True)
        ]


class _Disturbance:
    """The noise and the random bursts of one episode."""

    def __init__(
        self, generator: np.random.Generator, disturbances: Disturbances, low: Array, high: Array
    ) -> None:
        self._generator = generator
        self._low, self._high = low, high
        self._noise = generator.uniform(0.0, disturbances.noise_max) * (0.5 * (high - low))
        share = generator.uniform(disturbances.random_min, disturbances.random_max)
        random_hold = disturbances.random_hold
        # A burst follows (1 - p) / p undisturbed steps on average, so the random share of all steps is
        # hold / (hold + (1 - p) / p). The next line solves this for p.
        self._burst_chance = share / (share + random_hold * (1.0 - share)) if share < 1.0 else 1.0
        self._hold = random_hold
        self._burst_left = 0
        self._burst_action: Array = np.zeros(0)

    def apply(self, action: Array) -> Array:
        if self._burst_left == 0 and self._generator.random() < self._burst_chance:
            self._burst_left = self._hold
            self._burst_action = self._generator.uniform(self._low, self._high)
        noise = self._noise * self._generator.standard_normal(action.shape)
        if self._burst_left > 0:
            self._burst_left -= 1
            return self._burst_action
        return action + noise


def collect(
    make_environment: Callable[[], Environment],
    make_controller: Callable[[], Controller],
    disturbances: Disturbances,
    *,
    episodes: int,
    seed: int,
    workers: int | None,
    name: str,
    tasks: int = 1,
) -> tuple[Transitions, Rewards]:
    """Collect episodes of mixed quality in a simulator.

    The same seed gives the same bytes for any number of ``workers``.

    Args:
        make_environment: creates the environment; must be importable, so that other processes can call it.
        make_controller: creates the controller; must be importable too. Its actions are disturbed.
        disturbances: ranges of the disturbances.
        episodes: number of episodes.
        seed: determines goals, starts and disturbances.
        workers: number of processes; None: one per core.
        name: label of the progress bar.
        tasks: number of tasks among which the episodes are divided.

    Returns:
        The episodes and their labels.
    """
    with closing(make_environment()) as environment:  # raises errors before any process starts
        bounds = environment.action_space.low, environment.action_space.high
        recorded = run_episodes(
            RolloutTask(
                make_environment=make_environment,
                make_policy=partial(MixedQualityPolicy, make_controller, disturbances, *bounds),
            ),
            episode_seeds(seed, "collection", episodes, tasks),
            workers=workers,
            description=f"Collecting {name}",
        )
        return stack_episodes(recorded, environment)


def episode_seeds(seed: int, purpose: str, count: int, tasks: int = 1) -> list[int]:
    """Seeds of single episodes, disjoint for ``collection`` and ``evaluation``.

    Evaluation seeds are odd and collection seeds even, so evaluation never uses a seed of collection, for any
    seed of the run. Several tasks take turns (see ``task_of_seed``), so their numbers of episodes differ by
    at most one.
    """
    parity = {"collection": 0, "evaluation": 1}[purpose]
    draws = np.random.default_rng([seed, parity]).integers(0, 2**30 // tasks, size=count)
    return [int(2 * (draw * tasks + index % tasks) + parity) for index, draw in enumerate(draws)]


def task_of_seed(seed: int, tasks: int) -> int:
    """Index of an episode's task among ``tasks`` tasks, from the episode's seed alone."""
    return seed // 2 % tasks
