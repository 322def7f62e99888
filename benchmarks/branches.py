"""Values of actions in a simulator: bring it to a logged state, try an action, and follow the behaviour from there."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import gymnasium
import mujoco
import numpy as np
from numpy.typing import NDArray

from cvl_pipeline.environments.base import Array, Environment
from cvl_pipeline.environments.collection import _Disturbance, episode_seeds
from cvl_pipeline.environments.rollouts import _executed
from cvl_pipeline.episodes.container import Transitions
from cvl_pipeline.sources.simulated import SimulatedSource

After = Literal["once", "held"]
"""What follows an action of a random burst: the controller at once, or the rest of the burst, as in the log."""
REST = 0.05
"""Share of the discounted future that a rollout may leave out."""

STATE = int(mujoco.mjtState.mjSTATE_INTEGRATION)


def horizon(discount: float) -> int:
    """Length of a rollout, in steps: it leaves out at most REST of the discounted future."""
    return math.ceil(math.log(REST) / math.log(discount))


class Snapshot:
    """The whole state of a simulation, to return to as often as needed.

    It holds everything in MuJoCo's data that a step depends on (positions, velocities, mocap, warm start). Of the
    environment and all its wrappers, it holds the attributes that are values: numbers, arrays, containers and random
    generators. Models, spaces and renderers are left alone. So it is valid until the next ``reset``, which may move
    bodies of the model.
    """

    def __init__(self, environment: Environment) -> None:
        """Copy the state."""
        self._data: list[tuple[Any, Any, NDArray[np.float64]]] = []  # model, data, copy
        self._arrays: list[tuple[NDArray[Any], NDArray[Any]]] = []  # array, copy
        self._generators: list[tuple[np.random.Generator, Any]] = []
        self._attributes: list[tuple[Any, str, Any]] = []  # object, name, value
        for layer in _layers(environment):
            for name, value in vars(layer).items():
                self._keep(layer, name, value)

    def _keep(self, layer: Any, name: str, value: Any) -> None:
        if isinstance(value, mujoco.MjData):
            saved = np.empty(mujoco.mj_stateSize(layer.model, STATE))
            mujoco.mj_getState(layer.model, value, saved, STATE)
            self._data.append((layer.model, value, saved))
        elif isinstance(value, np.random.Generator):
            self._generators.append((value, copy.deepcopy(value.bit_generator.state)))
        elif isinstance(value, np.ndarray):
            # Written in place, because some arrays are views of MuJoCo's data.
            self._attributes.append((layer, name, value))
            if value.flags.writeable:
                self._arrays.append((value, value.copy()))
        elif value is None or isinstance(value, (bool, int, float, str, np.generic)):
            self._attributes.append((layer, name, value))
        elif isinstance(value, (list, tuple, dict)):
            self._attributes.append((layer, name, copy.deepcopy(value)))

    def restore(self) -> None:
        """Return to the state."""
        for layer, name, value in self._attributes:
            setattr(layer, name, copy.deepcopy(value) if isinstance(value, (list, tuple, dict)) else value)
        for array, saved in self._arrays:
            array[...] = saved
        for generator, state in self._generators:
            generator.bit_generator.state = state
        for model, data, saved in self._data:
            mujoco.mj_setState(model, data, saved, STATE)


def _layers(environment: Any) -> Iterator[Any]:
    """The environment and all environments inside it."""
    waiting, seen = [environment], set()
    while waiting:
        layer = waiting.pop()
        if id(layer) not in seen:
            seen.add(id(layer))
            yield layer
            waiting += [value for value in vars(layer).values() if isinstance(value, gymnasium.Env)]


@dataclass(frozen=True)
class Branches:
    """Actions at one logged state, and the returns of the behaviour that follows each.

    Attributes:
        episode: id of the logged episode.
        step: of the episode, at whose start the actions are taken.
        observation: (O,), as logged.
        actions: (C, A).
        bursts: (C,) bool, the action belongs to a random burst.
        returns: (C, M), discounted, of M rollouts; the m-th rollouts of all actions share their random numbers.
    """

    episode: int
    step: int
    observation: Array
    actions: Array
    bursts: NDArray[np.bool_]
    returns: NDArray[np.float64]


class Brancher:
    """Recreates logged states of a collection and tries actions there."""

    def __init__(self, source: SimulatedSource, transitions: Transitions, seed: int) -> None:
        """Build the simulation.

        Args:
            source: where the episodes were collected.
            transitions: all episodes of the collection, in their order.
            seed: of the collection.
        """
        make_environment = source.make_environment()
        assert make_environment is not None
        self._environment = make_environment()
        self._controller = source.make_controller()()
        self._disturbances = source.disturbances()
        self._transitions = transitions
        self._seeds = episode_seeds(seed, "collection", transitions.episodes)

    def close(self) -> None:
        """Free the simulation."""
        self._environment.close()  # type: ignore[no-untyped-call, unused-ignore]

    def bring_to(self, episode: int, step: int) -> Array:
        """Replay an episode up to a step and return the observation, (O,).

        Raises:
            RuntimeError: the replay leads elsewhere, so the log is not of this collection or this simulator.
        """
        first = int(self._transitions.episode_starts[episode])
        observation, _ = self._environment.reset(seed=self._seeds[episode])
        for action in self._transitions.actions[first : first + step].numpy():
            observation = self._environment.step(action)[0]
        if not np.array_equal(observation.astype(np.float32), self._logged(episode, step)):
            raise RuntimeError(f"the replay of episode {episode} does not reach its logged step {step}")
        return observation

    def _logged(self, episode: int, step: int) -> Array:
        """Logged observation, (O,)."""
        row = int(self._transitions.episode_starts[episode]) + episode + step
        return np.asarray(self._transitions.observations[row].numpy())

    def branch(
        self, episode: int, step: int, *, choices: int, rollouts: int, discount: float, after: After
    ) -> Branches:
        """Try actions at a logged state.

        Half of the actions are the behaviour's: drawn at this state with the amounts of disturbance that the episode
        has. The other half are actions logged anywhere. An action is followed by the behaviour with the same amounts,
        because the state belongs to that episode. Time limits are ignored.

        Args:
            episode: id of the episode.
            step: of the episode.
            choices: number of actions, C.
            rollouts: number of rollouts per action, M.
            discount: gamma, which determines the length of a rollout (see ``horizon``). Returns are divided by the
                share of the future that it holds, as the library divides logged ones.
            after: ``once``: the action is taken once. ``held``: an action of a burst is repeated for the rest of the
                burst, a random number of steps. The log holds it too, so critics learn its values.
        """
        observation = self.bring_to(episode, step)
        snapshot = Snapshot(self._environment)
        generator = np.random.default_rng([self._seeds[episode], step, 3])
        own = [self._behaviour_action(observation, episode, generator) for _ in range(choices // 2)]
        others = [self._logged_action(generator) for _ in range(choices - choices // 2)]
        actions, bursts = zip(*own, *others, strict=True)
        returns = np.empty((choices, rollouts))
        for c, (action, burst) in enumerate(zip(actions, bursts, strict=True)):
            for m in range(rollouts):
                snapshot.restore()
                disturbance = self._disturbance(
                    episode, np.random.default_rng([self._seeds[episode], step, 4, m])
                )
                left = int(disturbance._generator.integers(disturbance._hold))
                if after == "held" and burst:
                    disturbance._burst_left, disturbance._burst_action = left, action
                returns[c, m] = self._rollout(action, disturbance, discount)
        return Branches(
            episode, step, self._logged(episode, step), np.stack(actions), np.array(bursts), returns
        )

    def _disturbance(self, episode: int, generator: np.random.Generator) -> _Disturbance:
        """Disturbance with an episode's amounts and another generator, outside a burst."""
        space = self._environment.action_space
        bounds = space.low.astype(np.float64), space.high.astype(np.float64)
        disturbance = _Disturbance(
            np.random.default_rng([self._seeds[episode], 1]), self._disturbances, *bounds
        )
        disturbance._generator = generator
        return disturbance

    def _behaviour_action(
        self, observation: Array, episode: int, generator: np.random.Generator
    ) -> tuple[Array, bool]:
        """Action that the behaviour takes at a state, and whether it belongs to a burst.

        The share of bursts is that of all steps of the episode's behaviour.
        """
        disturbance = self._disturbance(episode, generator)
        chance, hold = disturbance._burst_chance, disturbance._hold
        burst = bool(generator.random() < chance * hold / (1.0 - chance + chance * hold))
        disturbance._burst_chance = float(burst)
        return _executed(disturbance.apply(self._controller(observation.copy())), self._environment), burst

    def _logged_action(self, generator: np.random.Generator) -> tuple[Array, bool]:
        """Action of any logged step, and whether it belongs to a burst."""
        index = int(generator.integers(len(self._transitions)))
        episode = int(np.searchsorted(self._transitions.episode_starts.numpy(), index, side="right")) - 1
        action = self._transitions.actions[index].numpy()
        disturbance = self._disturbance(episode, np.random.default_rng([self._seeds[episode], 1]))
        disturbance._generator.uniform(size=2)  # the amounts
        none: Array = np.zeros(len(action))
        for _ in range(index - int(self._transitions.episode_starts[episode])):
            disturbance.apply(none)
        before = disturbance._burst_left
        disturbance.apply(none)
        return action, before > 0 or disturbance._burst_left > 0 or disturbance._hold == 1

    def _rollout(self, action: Array, disturbance: _Disturbance, discount: float) -> float:
        """Discounted return of an action and of the behaviour after it, from the current state."""
        total, weight, length = 0.0, 1.0, horizon(discount)
        for _ in range(length):
            observation, reward, terminated, _, _ = self._environment.step(action)
            total += weight * float(reward)
            weight *= discount
            if terminated:
                return total
            action = _executed(disturbance.apply(self._controller(observation.copy())), self._environment)
        return total / (1.0 - discount**length)
