"""Finite MDPs with a known behaviour policy, whose p_gamma and Q are solutions of linear systems."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cvl_pipeline.episodes.container import Rewards, Transitions
from cvl_pipeline.networks.critic import ContrastiveCritic, CriticShape

Floats = NDArray[np.float64]

SLIP, DISCOUNT, SEED = 0.1, 0.9, 7
"""Share of steps that go astray, gamma, and the seed of the policy and of random rewards, in both MDPs."""


@dataclass(frozen=True)
class FiniteMDP:
    """A finite MDP; arrival at a terminal state ends the episode.

    Attributes:
        step: (S, A, S), probabilities of s' given s and a.
        policy: (S, A), probabilities of a given s.
        reward: (S,), reward on arrival at s'.
        terminal: (S,), whether s' is terminal.
        discount: gamma.
    """

    step: Floats
    policy: Floats
    reward: Floats
    terminal: NDArray[np.bool_]
    discount: float

    @property
    def states(self) -> int:
        """Number of states, S."""
        return int(self.step.shape[0])

    @property
    def actions(self) -> int:
        """Number of actions, A."""
        return int(self.step.shape[1])

    def p_gamma(self) -> Floats:
        """``p_gamma(s' | s, a)``, (S, A, S + 1); the last outcome is the absorbing state."""
        size = self.states
        step = np.zeros((size + 1, self.actions, size + 1))
        step[:size, :, :size] = self.step
        step[:size][self.terminal] = np.eye(size + 1)[size]
        step[size, :, size] = 1.0
        policy = np.vstack([self.policy, np.full(self.actions, 1.0 / self.actions)])
        chain = np.einsum("sa,sat->st", policy, step)
        visits = np.linalg.inv(np.eye(size + 1) - self.discount * chain)
        occupancy: Floats = (1.0 - self.discount) * step[:size] @ visits
        return occupancy

    def q(self) -> Floats:
        """Exact ``Q(s, a)`` of the behaviour policy, (S, A), by solving Bellman's equation for V."""
        goes_on = np.where(self.terminal, 0.0, 1.0)
        step = np.einsum("sa,sat->st", self.policy, self.step)
        matrix = np.eye(self.states) - self.discount * step * goes_on
        value = np.linalg.solve(matrix, step @ self.reward)
        q: Floats = self.step @ (self.reward + self.discount * goes_on * value)
        return q

    def log_episodes(self, episodes: int, steps: int, seed: int) -> tuple[Transitions, Rewards]:
        """Simulate episodes in parallel, with one-hot observations and actions, truncated after ``steps``."""
        generator = np.random.default_rng(seed)
        cumulative_policy, cumulative_step = self.policy.cumsum(-1), self.step.cumsum(-1)
        states = np.empty((episodes, steps + 1), dtype=np.int64)
        actions = np.empty((episodes, steps), dtype=np.int64)
        states[:, 0] = generator.choice(np.flatnonzero(~self.terminal), size=episodes)
        for t in range(steps):
            state, draws = states[:, t], generator.random((2, episodes, 1))
            actions[:, t] = (draws[0] > cumulative_policy[state]).sum(-1).clip(max=self.actions - 1)
            laws = cumulative_step[state, actions[:, t]]
            states[:, t + 1] = (draws[1] > laws).sum(-1).clip(max=self.states - 1)
        arrived = self.terminal[states[:, 1:]]
        terminated = arrived.any(1)
        lengths = np.where(terminated, arrived.argmax(1) + 1, steps)
        column = np.arange(steps + 1)
        labels = torch.from_numpy(self.reward[states[:, 1:]][column[:-1] < lengths[:, None]]).float()
        transitions = Transitions(
            observations=torch.eye(self.states)[torch.from_numpy(states[column <= lengths[:, None]])],
            actions=torch.eye(self.actions)[torch.from_numpy(actions[column[:-1] < lengths[:, None]])],
            episode_starts=torch.from_numpy(np.concatenate([[0], lengths.cumsum()])),
            terminated=torch.from_numpy(terminated),
            truncated=torch.from_numpy(~terminated),
            action_low=torch.zeros(self.actions),
            action_high=torch.ones(self.actions),
        )
        return transitions, Rewards(rewards=labels, successes=labels > 0.9)


def grid_world(*, side: int = 3, terminal: bool = False, goal: bool = False) -> FiniteMDP:
    """A square grid, four moves that slip to a random state, and a policy that favours some actions.

    Rewards are random, or, with ``goal``, fall off exponentially with the distance from the last corner. With
    ``terminal``, entering the centre ends the episode.
    """
    size = side * side
    step = np.zeros((size, 4, size))
    for state in range(size):
        row, column = divmod(state, side)
        for action, (down, right) in enumerate([(-1, 0), (1, 0), (0, -1), (0, 1)]):
            target_row = min(max(row + down, 0), side - 1)
            target_column = min(max(column + right, 0), side - 1)
            step[state, action, target_row * side + target_column] += 1.0 - SLIP
            step[state, action] += SLIP / size
    generator = np.random.default_rng(SEED)
    ends = np.zeros(size, dtype=bool)
    ends[side // 2 * side + side // 2] = terminal
    rows, columns = np.divmod(np.arange(size), side)
    closeness = np.exp(-(2 * (side - 1) - rows - columns) / 2.0)
    # With a terminal state, every step has a positive reward, so ending early costs, as for a falling robot.
    rewards = 1.0 + 0.3 * closeness if terminal else closeness
    return FiniteMDP(
        step=step,
        policy=generator.dirichlet(np.full(4, 2.0), size=size),
        reward=rewards if goal else generator.random(size),
        terminal=ends,
        discount=DISCOUNT,
    )


def chain(*, states: int = 12, terminal: bool = False) -> FiniteMDP:
    """A row of states; steps left or right may fail or reverse, and the reward grows to the right.

    With ``terminal``, arrival at the left end ends the episode.
    """
    step = np.zeros((states, 2, states))
    for state in range(states):
        left, right = max(state - 1, 0), min(state + 1, states - 1)
        for action, (target, other) in enumerate([(left, right), (right, left)]):
            step[state, action, target] += 1.0 - 2.0 * SLIP
            step[state, action, other] += SLIP
            step[state, action, state] += SLIP
    generator = np.random.default_rng(SEED)
    ends = np.zeros(states, dtype=bool)
    ends[0] = terminal
    return FiniteMDP(
        step=step,
        policy=generator.dirichlet(np.full(2, 3.0), size=states),
        reward=np.linspace(0.0, 1.0, states) ** 2,
        terminal=ends,
        discount=DISCOUNT,
    )


def garnet(
    *,
    states: int,
    actions: int,
    branching: int,
    discount: float,
    rewards: str,
    terminal: int = 0,
    skewed: bool = False,
    seed: int,
) -> FiniteMDP:
    """A random MDP after the recipe GARNET of Archibald, McKinnon and Thomas (1995).

    Every pair of a state and an action leads to ``branching`` different states, drawn uniformly. Their
    probabilities are the lengths of the parts into which ``branching - 1`` uniform points cut the interval (0, 1).

    Args:
        states: number of states, S.
        actions: number of actions, A.
        branching: number of states that an action may lead to, at most S.
        discount: gamma.
        rewards: ``sparse``, 1 in a fifteenth of the states (at least two) and 0 elsewhere; ``signed``, standard
            normal; ``dense``, uniform in (0, 1).
        terminal: number of terminal states. They keep their rewards.
        skewed: the policy takes one action of each state with probability 0.8 and all with 0.2, instead of
            probabilities from a Dirichlet distribution whose parameters are all 10, which is near uniform.
        seed: of all draws.

    Raises:
        ValueError: unknown ``rewards``.
    """
    generator = np.random.default_rng(seed)
    step = np.zeros((states, actions, states))
    for state in range(states):
        for action in range(actions):
            successors = generator.choice(states, size=branching, replace=False)
            cuts = np.sort(generator.random(branching - 1))
            step[state, action, successors] = np.diff(cuts, prepend=0.0, append=1.0)
    if rewards == "sparse":
        reward = np.zeros(states)
        reward[generator.choice(states, size=max(2, states // 15), replace=False)] = 1.0
    elif rewards == "signed":
        reward = generator.standard_normal(states)
    elif rewards == "dense":
        reward = generator.random(states)
    else:
        raise ValueError(f"rewards is '{rewards}'; use sparse, signed or dense")
    ends = np.zeros(states, dtype=bool)
    ends[generator.choice(states, size=terminal, replace=False)] = True
    if skewed:
        preferred = generator.integers(actions, size=states)
        policy = 0.2 / actions + 0.8 * np.eye(actions)[preferred]
    else:
        policy = generator.dirichlet(np.full(actions, 10.0), size=states)
    return FiniteMDP(step=step, policy=policy, reward=reward, terminal=ends, discount=discount)


class ExactCritic(ContrastiveCritic):
    """The optimum of contrastive learning, ``phi . psi / T = log p_gamma / p``, as a table."""

    def __init__(self, log_ratio: Floats, temperature: float, discount: float) -> None:
        """Store ``log_ratio[s, a, z]``, (S, A, S + 1); the last z is the absorbing state."""
        states, actions, outcomes = log_ratio.shape
        super().__init__(
            CriticShape((states,), actions, (), outcomes, "raw", temperature, False, discount, False)
        )
        self.table = torch.from_numpy(log_ratio).float()

    def phi(self, observations: Tensor, actions: Tensor, offsets: Tensor | None = None) -> Tensor:
        """Row of the table times the temperature, (..., S) and (..., A) -> (..., S + 1)."""
        return self.temperature * self.table[observations.argmax(-1), actions.argmax(-1)]

    def psi(self, futures: Tensor, absorbed: Tensor) -> Tensor:
        """One-hot outcome, (..., S) and (...) bool -> (..., S + 1)."""
        outcomes = self.table.shape[2]
        index = futures.argmax(-1).masked_fill(absorbed, outcomes - 1)
        return torch.eye(outcomes)[index]
