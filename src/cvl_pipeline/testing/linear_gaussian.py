"""Linear-Gaussian worlds with a quadratic reward, whose Q is a quadratic form with a closed expression."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import solve_discrete_lyapunov

from cvl_pipeline.episodes.container import Rewards, Transitions

Floats = NDArray[np.float64]

CONTRACTION = 0.9
"""Spectral radius of the closed loop, which makes the state distribution stationary."""


@dataclass(frozen=True)
class LinearGaussian:
    """``s' = F s + G a + w`` with ``w ~ N(0, noise^2 I)`` and behaviour ``a = K s + N(0, spread^2 I)``.

    The reward on arrival is ``r(s') = s'^T M s' + m^T s'``.

    Attributes:
        drift: (O, O), F.
        push: (O, A), G.
        gain: (A, O), K.
        noise: standard deviation of each component of w.
        spread: standard deviation of each component of the behaviour's noise.
        quadratic: (O, O) symmetric, M.
        linear: (O,), m.
        discount: gamma.
    """

    drift: Floats
    push: Floats
    gain: Floats
    noise: float
    spread: float
    quadratic: Floats
    linear: Floats
    discount: float

    @property
    def size(self) -> int:
        """Number of dimensions of the state, O."""
        return int(self.push.shape[0])

    @property
    def closed_loop(self) -> Floats:
        """F + G K, the dynamics under the behaviour's mean."""
        return self.drift + self.push @ self.gain

    @property
    def shocks(self) -> Floats:
        """Covariance of s' given s under the behaviour, (O, O)."""
        return self.noise**2 * np.eye(self.size) + self.spread**2 * self.push @ self.push.T

    def covariance(self) -> Floats:
        """Covariance of the stationary distribution of states, whose mean is zero, (O, O)."""
        return np.asarray(solve_discrete_lyapunov(self.closed_loop, self.shocks), dtype=np.float64)

    def q(self, states: Floats, actions: Floats) -> Floats:
        """Exact Q of the behaviour, (..., O) and (..., A) -> (...).

        ``V(s) = s^T P s + p^T s + c`` solves ``V(s) = E[r(s') + gamma V(s')]`` under the behaviour: with
        ``W = M + gamma P`` the value after a step, ``P = C^T W C`` for the closed loop C,
        ``p = C^T (m + gamma p)`` and ``c = tr(W shocks) + gamma c``.
        """
        loop, gamma = self.closed_loop, self.discount
        after = solve_discrete_lyapunov(np.sqrt(gamma) * loop.T, self.quadratic)  # W = M + gamma C^T W C
        slope = np.linalg.solve(np.eye(self.size) - gamma * loop.T, self.linear)  # m + gamma p
        constant = np.trace(after @ self.shocks) / (1.0 - gamma)
        mean = states @ self.drift.T + actions @ self.push.T
        quadratic = np.einsum("...i,ij,...j->...", mean, after, mean)
        result: Floats = quadratic + mean @ slope + self.noise**2 * np.trace(after) + gamma * constant
        return result

    def log_episodes(self, episodes: int, steps: int, seed: int) -> tuple[Transitions, Rewards]:
        """Simulate episodes in parallel from the stationary distribution, truncated after ``steps``."""
        generator = np.random.default_rng(seed)
        root = np.linalg.cholesky(self.covariance() + 1e-12 * np.eye(self.size))
        states = np.empty((episodes, steps + 1, self.size))
        actions = np.empty((episodes, steps, len(self.gain)))
        states[:, 0] = generator.standard_normal((episodes, self.size)) @ root.T
        for t in range(steps):
            actions[:, t] = self.act(states[:, t], generator)
            mean = states[:, t] @ self.drift.T + actions[:, t] @ self.push.T
            states[:, t + 1] = mean + self.noise * generator.standard_normal(mean.shape)
        arrived = states[:, 1:].reshape(-1, self.size)
        labels = np.einsum("ni,ij,nj->n", arrived, self.quadratic, arrived) + arrived @ self.linear
        taken = torch.from_numpy(actions.reshape(-1, actions.shape[-1])).float()
        transitions = Transitions(
            observations=torch.from_numpy(states.reshape(-1, self.size)).float(),
            actions=taken,
            episode_starts=torch.arange(episodes + 1) * steps,
            terminated=torch.zeros(episodes, dtype=torch.bool),
            truncated=torch.ones(episodes, dtype=torch.bool),
            action_low=taken.amin(0),
            action_high=taken.amax(0),
        )
        rewards = torch.from_numpy(labels).float()
        return transitions, Rewards(rewards=rewards, successes=torch.zeros(len(rewards), dtype=torch.bool))

    def act(self, states: Floats, generator: np.random.Generator) -> Floats:
        """Actions of the behaviour, (..., O) -> (..., A)."""
        mean: Floats = states @ self.gain.T
        return mean + self.spread * generator.standard_normal(mean.shape)


def linear_gaussian(*, size: int, actions: int, discount: float, seed: int) -> LinearGaussian:
    """Draw a world: a random rotation, scaled, is the closed loop, so that all directions mix equally fast.

    The reward punishes the distance from the origin in a random half of the directions and pays along one
    direction. The scale of the noises makes an action worth about as much as the noise of a step.

    Args:
        size: dimensions of the state, O.
        actions: dimensions of the action, A.
        discount: gamma.
        seed: of all draws.
    """
    generator = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(generator.standard_normal((size, size)))
    push = generator.standard_normal((size, actions)) / np.sqrt(actions)
    gain = 0.3 * generator.standard_normal((actions, size)) / np.sqrt(size)
    directions, _ = np.linalg.qr(generator.standard_normal((size, size)))
    half = directions[:, : max(1, size // 2)]
    slope = generator.standard_normal(size) / np.sqrt(size)
    return LinearGaussian(
        drift=CONTRACTION * rotation - push @ gain,
        push=push,
        gain=gain,
        noise=0.3,
        spread=0.5,
        quadratic=-half @ half.T / size,
        linear=slope,
        discount=discount,
    )
