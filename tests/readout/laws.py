"""Counts of the pairs in a log of a finite MDP, without the sampler or the readouts."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cvl_pipeline.episodes.container import Transitions
from cvl_pipeline.testing.builders import slices
from cvl_pipeline.testing.finite_mdp import ExactCritic, FiniteMDP

Floats = NDArray[np.float64]
NEVER = -60.0
"""Log ratio of an outcome that is not in the log; finite, but its exponential is zero."""


def log_law(mdp: FiniteMDP, transitions: Transitions) -> Floats:
    """Share of every (s, a, outcome) in all pairs of the log, (S, A, S + 1).

    A pair of a transition and the state k steps later counts ``gamma^(k-1)``. In a terminated episode, all
    states after the end count for the absorbing state, which is the last outcome.
    """
    law = np.zeros((mdp.states, mdp.actions, mdp.states + 1))
    for episode in slices(transitions):
        states = episode["observations"].argmax(1).numpy()
        actions = episode["actions"].argmax(1).numpy()
        for t, action in enumerate(actions):
            left = len(actions) - t
            here = law[states[t], action]
            np.add.at(here, states[t + 1 :], (1.0 - mdp.discount) * mdp.discount ** np.arange(left))
            if episode["terminated"]:
                here[mdp.states] += mdp.discount**left
    shares: Floats = law / law.sum()
    return shares


def expected_values(mdp: FiniteMDP, law: Floats) -> Floats:
    """Q(s, a) for given shares of pairs, (S, A); NaN if the log does not contain the action."""
    reward = np.append(mdp.reward, 0.0)
    with np.errstate(invalid="ignore"):
        values: Floats = law @ reward / law.sum(-1) / (1.0 - mdp.discount)
    return values


def critic_of(law: Floats, discount: float, temperature: float = 0.5) -> ExactCritic:
    """Optimal critic for a log with the given shares of pairs."""
    independent = law.sum(-1, keepdims=True) * law.sum((0, 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(law > 0.0, np.log(law) - np.log(independent), NEVER)
    return ExactCritic(ratio, temperature, discount)


def all_pairs(mdp: FiniteMDP) -> tuple[Tensor, Tensor]:
    """All pairs of a state and an action, (S * A, S) and (S * A, A)."""
    states, actions = np.indices((mdp.states, mdp.actions)).reshape(2, -1)
    return torch.eye(mdp.states)[states], torch.eye(mdp.actions)[actions]
