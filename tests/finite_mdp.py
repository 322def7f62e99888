"""A finite MDP with a known behaviour policy, whose p_gamma and Q come from one linear solve."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cvl_pipeline.networks.critic import ContrastiveCritic, CriticShape
from cvl_pipeline.trajectories.container import Rewards, Transitions

Floats = NDArray[np.float64]
SIDE = 3


@dataclass(frozen=True)
class FiniteMDP:
    """``step[s, a, s']``, ``policy[s, a]``, ``reward[s']`` on arrival; arriving at a terminal state ends."""

    step: Floats
    policy: Floats
    reward: Floats
    terminal: NDArray[np.bool_]
    discount: float

    @property
    def states(self) -> int:
        return int(self.step.shape[0])

    @property
    def actions(self) -> int:
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
        """Episodes with one-hot observations and actions, cut off after ``steps`` steps."""
        generator = np.random.default_rng(seed)
        states, actions, lengths, terminated, rewards = [], [], [], [], []
        cumulative_policy, cumulative_step = self.policy.cumsum(-1), self.step.cumsum(-1)
        starts = np.flatnonzero(~self.terminal)
        for _ in range(episodes):
            state = int(generator.choice(starts))
            states.append(state)
            draws = generator.random((steps, 2))
            for length in range(1, steps + 1):
                first, second = draws[length - 1]
                action = min(int(np.searchsorted(cumulative_policy[state], first)), self.actions - 1)
                state = min(int(np.searchsorted(cumulative_step[state, action], second)), self.states - 1)
                actions.append(action)
                states.append(state)
                rewards.append(self.reward[state])
                if self.terminal[state]:
                    break
            lengths.append(length)
            terminated.append(bool(self.terminal[state]))
        ends = torch.tensor(terminated)
        transitions = Transitions(
            observations=torch.eye(self.states)[torch.tensor(states)],
            actions=torch.eye(self.actions)[torch.tensor(actions)],
            episode_starts=torch.tensor([0, *np.cumsum(lengths).tolist()], dtype=torch.int64),
            terminated=ends,
            truncated=~ends,
            action_low=torch.zeros(self.actions),
            action_high=torch.ones(self.actions),
        )
        labels = torch.tensor(rewards, dtype=torch.float32)
        return transitions, Rewards(rewards=labels, successes=labels > 0.9)


def grid_world(*, discount: float = 0.9, terminal: bool = False) -> FiniteMDP:
    """A 3 x 3 grid, four moves that slip to a random state one time in ten, a policy that favours some.

    With ``terminal``, the centre ends the episode.
    """
    size = SIDE * SIDE
    step = np.zeros((size, 4, size))
    for state in range(size):
        row, column = divmod(state, SIDE)
        for action, (down, right) in enumerate([(-1, 0), (1, 0), (0, -1), (0, 1)]):
            target_row = min(max(row + down, 0), SIDE - 1)
            target_column = min(max(column + right, 0), SIDE - 1)
            step[state, action, target_row * SIDE + target_column] += 0.9
            step[state, action] += 0.1 / size
    generator = np.random.default_rng(7)
    ends = np.zeros(size, dtype=bool)
    ends[4] = terminal
    return FiniteMDP(
        step=step,
        policy=generator.dirichlet(np.full(4, 2.0), size=size),
        reward=generator.random(size),
        terminal=ends,
        discount=discount,
    )


def sampler_marginal(mdp: FiniteMDP, transitions: Transitions) -> Floats:
    """The law of the sampler's future states on this very log, (S + 1,), summed anchor by anchor."""
    marginal = np.zeros(mdp.states + 1)
    rows = transitions.observations.argmax(1).numpy()
    starts = transitions.episode_starts.numpy()
    for e in range(transitions.episodes):
        states = rows[starts[e] + e : starts[e + 1] + e + 1]
        for t in range(len(states) - 1):
            left = len(states) - 1 - t
            law = (1.0 - mdp.discount) * mdp.discount ** np.arange(left)
            if bool(transitions.terminated[e]):
                marginal[mdp.states] += 1.0 - law.sum()
            else:
                law /= law.sum()
            np.add.at(marginal, states[t + 1 :], law)
    result: Floats = marginal / len(transitions)
    return result


class ExactCritic(ContrastiveCritic):
    """The critic that contrastive learning would end at: ``phi . psi / T = log p_gamma / p`` by table."""

    def __init__(self, log_ratio: Floats, temperature: float, discount: float) -> None:
        """Look up ``log_ratio[s, a, z]``; the last z is the absorbing state."""
        states, actions, outcomes = log_ratio.shape
        super().__init__(CriticShape(states, actions, (), outcomes, "raw", temperature, False, discount))
        self.table = torch.from_numpy(log_ratio).float()

    def phi(self, observations: Tensor, actions: Tensor) -> Tensor:
        return self.temperature * self.table[observations.argmax(-1), actions.argmax(-1)]

    def psi(self, futures: Tensor, absorbed: Tensor) -> Tensor:
        outcomes = self.table.shape[2]
        index = futures.argmax(-1).masked_fill(absorbed, outcomes - 1)
        return torch.eye(outcomes)[index]
