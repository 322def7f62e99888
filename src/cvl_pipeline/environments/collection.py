"""Collection of episodes of a disturbed controller in simulators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, cast

import numpy as np
import torch

from cvl_pipeline.environments.base import Array, Environment, parts_of
from cvl_pipeline.environments.fragments import cut, third_of_a_solution
from cvl_pipeline.environments.rollouts import RolloutTask, run_episodes, stack_episodes
from cvl_pipeline.episodes.container import Rewards, Transitions
from cvl_pipeline.episodes.parts import Layout

Controller = Callable[[Array], Array]
"""Maps an observation (O,), or a dictionary of parts, to an action (A,)."""

CLEAN_EPISODES = 10
"""Undisturbed episodes that measure how many steps a solution takes; at least one per task."""


class Player(Protocol):
    """A controller that can also pursue goals other than the episode's."""

    def __call__(self, observation: Array) -> Array:
        """Return an action (A,) for an observation (O,)."""

    def other_goal(self, observation: Array, generator: np.random.Generator) -> Controller:
        """Return a controller with a random goal, for the scene of ``observation``, (O,)."""


@dataclass(frozen=True)
class Disturbances:
    """Ranges of the disturbances added to the controller; every episode samples its own amount.

    Two amounts are sampled, from the episode's seed only:

    * the standard deviation of Gaussian noise on every action, uniform in [``noise_min``, ``noise_max``], in units
      of half the environment's action range;
    * the share of steps in random bursts, uniform in [``random_min``, ``random_max``]. A burst repeats one
      action, uniform within the bounds, for ``random_hold`` steps and so leaves the controller's path.

    With wide ranges, some episodes are then nearly expert and some nearly random, as in an offline log from many
    operators. Behaviour cloning cannot separate them. With equal limits, all episodes are equally bad.
    """

    noise_max: float
    random_max: float
    random_hold: int  # steps
    random_min: float = 0.0
    noise_min: float = 0.0


NONE = Disturbances(0.0, 0.0, 1)
"""No disturbances."""


@dataclass(frozen=True)
class Fragments:
    """Only windows of the episodes are kept.

    Attributes:
        window: steps of a window; None: a third of the steps in which the undisturbed controller solves the task,
            the median of a few episodes.
    """

    window: int | None = None


class MixedQualityPolicy:
    """A controller with disturbances, whose amount each episode samples for itself."""

    def __init__(
        self,
        make_controller: Callable[[], Controller],
        disturbances: Disturbances,
        low: Array,
        high: Array,
        *,
        experts: frozenset[int] = frozenset(),
        goal_steps: int | None = None,
    ) -> None:
        """Build the controller, which raises InputError for an unknown name.

        Args:
            make_controller: creates the controller.
            disturbances: ranges of the disturbances.
            low: smallest action, (A,).
            high: largest action, (A,).
            experts: seeds of episodes without disturbances.
            goal_steps: steps after which a Player pursues another goal; None: it pursues the episode's.
        """
        self._controller = make_controller()
        self._disturbances = disturbances
        self._experts = experts
        self._goal_steps = goal_steps
        # Double precision, like the disturbances: single precision would round every action.
        self._bounds = (low.astype(np.float64), high.astype(np.float64))
        self._episodes: list[_Disturbance] = []
        self._goals: list[_Goals] = []

    def start(self, seeds: Sequence[int]) -> None:
        """Sample the disturbances of a batch of episodes."""
        # Not default_rng(seed): Meta-World samples the goal from that stream.
        self._episodes = [
            _Disturbance(
                np.random.default_rng([seed, 1]),
                NONE if seed in self._experts else self._disturbances,
                *self._bounds,
            )
            for seed in seeds
        ]
        if self._goal_steps is not None:
            player = cast("Player", self._controller)
            self._goals = [
                _Goals(player, np.random.default_rng([seed, 3]), self._goal_steps) for seed in seeds
            ]

    def act(self, observations: list[Array], running: list[int]) -> list[Array]:
        """Return the controller's actions with disturbances."""
        # Copies: Meta-World's policies for doors write to the observation, which is in the log already.
        return [
            self._episodes[i].apply((self._goals[i] if self._goals else self._controller)(observation.copy()))
            for observation, i in zip(observations, running, strict=True)
        ]


class _OfParts:
    """A controller that gets packed observations as a dictionary of arrays, or one part of them."""

    def __init__(self, make: Callable[[], Controller], layout: Layout, part: str | None) -> None:
        self._controller, self._layout, self._part = make(), layout, part

    def __call__(self, observation: Array) -> Array:
        return self._controller(self._seen(observation))

    def other_goal(self, observation: Array, generator: np.random.Generator) -> Controller:
        controller = cast("Player", self._controller).other_goal(self._seen(observation), generator)
        return lambda observation: controller(self._seen(observation))

    def _seen(self, observation: Array) -> Any:
        parts = {
            name: part.numpy() for name, part in self._layout.unpack(torch.from_numpy(observation)).items()
        }
        return parts if self._part is None else parts[self._part].astype(np.float64)


class _Goals:
    """The goals that a player pursues in one episode, one after another."""

    def __init__(self, player: Player, generator: np.random.Generator, goal_steps: int) -> None:
        self._player, self._generator, self._goal_steps = player, generator, goal_steps
        self._steps = 0
        self._controller: Controller = player

    def __call__(self, observation: Array) -> Array:
        if self._steps % self._goal_steps == 0:
            self._controller = self._player.other_goal(observation, self._generator)
        self._steps += 1
        return self._controller(observation)


class _Disturbance:
    """The noise and the random bursts of one episode."""

    def __init__(
        self, generator: np.random.Generator, disturbances: Disturbances, low: Array, high: Array
    ) -> None:
        self._generator = generator
        self._low, self._high = low, high
        self._noise = generator.uniform(disturbances.noise_min, disturbances.noise_max) * (0.5 * (high - low))
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
    experts: float = 0.0,
    goal_steps: int | None = None,
    fragments: Fragments | None = None,
    part: str | None = None,
) -> tuple[Transitions, Rewards]:
    """Collect episodes of a disturbed controller in a simulator.

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
        experts: share of episodes without disturbances; unless it is 0, at least one per task.
        goal_steps: steps after which the controller, a Player, pursues another goal than the episode's; None: never.
        fragments: windows of the episodes to keep; None: whole episodes.
        part: of the observations, which is all that the controller gets; None: everything, as a dictionary of arrays.
            For observations of several parts.

    Returns:
        The episodes and their labels. Steps outside of windows are counted as dropped.

    Raises:
        InputError: the default window, where the undisturbed controller never solves the task.
    """
    seeds = episode_seeds(seed, "collection", episodes, tasks)
    with closing(make_environment()) as environment:  # raises errors before any process starts
        bounds = environment.action_space.low, environment.action_space.high
        layout = parts_of(environment)
        if layout is not None:
            make_controller = partial(_OfParts, make_controller, layout, part)
        run = partial(run_episodes, workers=workers, description=f"Collecting {name}")
        window = fragments.window if fragments else None
        if fragments and window is None:
            clean = RolloutTask(make_environment, partial(MixedQualityPolicy, make_controller, NONE, *bounds))
            window = third_of_a_solution(run(clean, seeds[: max(CLEAN_EPISODES, tasks)]), name)
        policy = partial(
            MixedQualityPolicy, make_controller, disturbances, *bounds,
            experts=_experts(seeds, experts, seed, tasks), goal_steps=goal_steps,
        )  # fmt: skip
        recorded = run(RolloutTask(make_environment, policy), seeds)
        if window is None:
            return stack_episodes(recorded, environment)
        windows, dropped = cut(recorded, seeds, window, name)
        transitions, rewards = stack_episodes(windows, environment)
        return transitions, replace(rewards, **dropped)


def _experts(seeds: Sequence[int], share: float, seed: int, tasks: int) -> frozenset[int]:
    """Return the seeds of the episodes without disturbances: random rounds of the tasks, which take turns."""
    if share == 0.0:
        return frozenset()
    # Not [seed, 2]: split_episodes permutes the episodes with that stream, and would hold out all of them.
    rounds = np.random.default_rng([seed, 4]).permutation(-(-len(seeds) // tasks)).tolist()
    # In the last round, some tasks may have no turn.
    rounds.sort(key=lambda turn: (turn + 1) * tasks > len(seeds))
    indices = [
        turn * tasks + task for turn in rounds for task in range(tasks) if turn * tasks + task < len(seeds)
    ]
    return frozenset(seeds[index] for index in indices[: max(tasks, round(share * len(seeds)))])


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
