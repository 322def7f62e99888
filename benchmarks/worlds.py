"""Families of worlds whose exact Q is known, for studies and for the final table of docs/truth.md.

Both lists were fixed before the first run. What is chosen or tuned is chosen on ``STUDY`` alone; ``FINAL`` has other
settings and other seeds, and is run to report. Four small worlds were the whole benchmark before (``EARLIER``): all
defaults of the first version were tuned on them, so they are reported beside the final families and count with them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cvl_pipeline.episodes.container import Rewards, Transitions
from cvl_pipeline.testing.finite_mdp import FiniteMDP, chain, garnet, grid_world
from cvl_pipeline.testing.linear_gaussian import LinearGaussian, linear_gaussian

Floats = NDArray[np.float64]

QUERIES, CHOICES = 500, 8
"""States, and actions at each of them, on which continuous worlds are scored."""
CLEAR = 0.1
"""Gap between the best and the second action, in standard deviations of Q, above which a state of a continuous world
is clear. In finite worlds it is the error of counting."""


@dataclass(frozen=True)
class Queries:
    """Pairs of states and actions, and their exact values.

    Attributes:
        observations: (N, O).
        actions: (N, C, A), the actions compared at each state.
        exact: (N, C), Q.
    """

    observations: Tensor
    actions: Tensor
    exact: Floats


def queries(world: FiniteMDP | LinearGaussian) -> Queries:
    """Pairs on which values are compared: all of a finite MDP, a sample of a continuous world's behaviour."""
    if isinstance(world, FiniteMDP):
        alive = ~world.terminal
        count = int(alive.sum())
        actions = torch.eye(world.actions).expand(count, -1, -1)
        return Queries(torch.eye(world.states)[torch.from_numpy(alive)], actions, world.q()[alive])
    generator = np.random.default_rng(0)
    root = np.linalg.cholesky(world.covariance())
    states = generator.standard_normal((QUERIES, world.size)) @ root.T
    repeated = np.repeat(states[:, None], CHOICES, axis=1)
    taken = world.act(repeated, generator)
    return Queries(
        torch.from_numpy(states).float(), torch.from_numpy(taken).float(), world.q(repeated, taken)
    )


@dataclass(frozen=True)
class Family:
    """Worlds drawn by one recipe; a seed draws a world and its log.

    Attributes:
        name: of the family.
        make: draws a world.
        settings: of ``make``, apart from the seed.
        transitions: approximate size of a log, in steps.
        steps: length of an episode that does not terminate.
        fixed: the world is the same for every seed, and only the log differs.
    """

    name: str
    make: Callable[..., FiniteMDP | LinearGaussian]
    settings: dict[str, Any] = field(default_factory=dict)
    transitions: int = 100_000
    steps: int = 100
    fixed: bool = False

    def world(self, seed: int) -> FiniteMDP | LinearGaussian:
        """Draw the world of a seed."""
        return self.make(**self.settings) if self.fixed else self.make(**self.settings, seed=seed)

    def log(self, seed: int, transitions: int | None = None) -> tuple[Transitions, Rewards]:
        """Simulate the log of a seed; ``transitions`` replaces its size."""
        world, size = self.world(seed), transitions or self.transitions
        sample = world.log_episodes(min(200, max(2, size // self.steps)), self.steps, seed + 1)[0]
        length = len(sample) / sample.episodes  # shorter than ``steps`` if episodes terminate
        return world.log_episodes(max(2, round(size / length)), self.steps, seed)


def _garnet(name: str, *, log: int = 100_000, steps: int = 100, **settings: Any) -> Family:
    return Family(name, garnet, settings, log, steps)


def _linear(name: str, size: int, actions: int, discount: float, log: int = 100_000) -> Family:
    return Family(name, linear_gaussian, {"size": size, "actions": actions, "discount": discount}, log)


# fmt: off
STUDY = {family.name: family for family in (
    _garnet("sparse", states=30, actions=3, branching=4, discount=0.9, rewards="sparse"),
    _garnet("signed, terminal", states=40, actions=3, branching=3, discount=0.9, rewards="signed", terminal=3,
            log=10_000),
    _garnet("deterministic, skewed", states=40, actions=4, branching=1, discount=0.95, rewards="dense", skewed=True),
    _garnet("far-sighted", states=50, actions=2, branching=3, discount=0.98, rewards="signed", steps=250, log=300_000),
    _garnet("500 states", states=500, actions=3, branching=2, discount=0.85, rewards="dense", log=300_000),
    _garnet("short log", states=30, actions=2, branching=3, discount=0.85, rewards="signed", log=2_000),
    Family("grid 6 x 6", grid_world, {"side": 6, "goal": True}, 100_000, 60, fixed=True),
    Family("chain of 20, terminal", chain, {"states": 20, "terminal": True}, 50_000, 100, fixed=True),
    _linear("linear, 6", 6, 2, 0.9),
    _linear("linear, 24", 24, 6, 0.95),
)}
"""Families to study and tune on, with seeds 0, 1, 2, ..."""

EARLIER = {family.name: family for family in (
    Family("grid", grid_world, {"side": 5, "goal": True}, 200_000, 100, fixed=True),
    Family("chain", chain, {"states": 12}, 200_000, 100, fixed=True),
    Family("grid with terminal states", grid_world, {"side": 5, "goal": True, "terminal": True}, 200_000, 100,
           fixed=True),
    Family("grid with timeouts", grid_world, {"side": 5, "goal": True}, 200_000, 20, fixed=True),
)}
"""The benchmark before; the first version's defaults were tuned on it."""

FINAL = {family.name: family for family in (
    _garnet("30 states, sparse", states=30, actions=3, branching=5, discount=0.9, rewards="sparse"),
    _garnet("50 states, signed, skewed", states=50, actions=4, branching=4, discount=0.92, rewards="signed",
            skewed=True),
    _garnet("40 states, terminal, log of 10^4", states=40, actions=3, branching=4, discount=0.9, rewards="sparse",
            terminal=3, log=10_000),
    _garnet("30 states, log of 10^3", states=30, actions=2, branching=2, discount=0.8, rewards="dense", log=1_000),
    _garnet("60 states, deterministic", states=60, actions=4, branching=1, discount=0.9, rewards="signed"),
    _garnet("100 states, branching 8", states=100, actions=3, branching=8, discount=0.85, rewards="signed"),
    _garnet("200 states, terminal, skewed", states=200, actions=3, branching=3, discount=0.9, rewards="dense",
            terminal=10, skewed=True),
    _garnet("40 states, discount 0.99", states=40, actions=3, branching=3, discount=0.99, rewards="dense",
            steps=500, log=1_000_000),
    _garnet("1000 states", states=1000, actions=3, branching=3, discount=0.9, rewards="signed", log=300_000),
    _linear("linear, 4", 4, 2, 0.9),
    _linear("linear, 16", 16, 4, 0.9),
    _linear("linear, 64", 64, 8, 0.9),
)} | EARLIER
"""Families of the final table, with seeds 1000, 1001, 1002, ..."""
# fmt: on

FIRST_SEED = {"study": 0, "final": 1000}
