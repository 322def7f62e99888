"""A policy that moves to goal observations, as the critic holds them reachable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from cvl_pipeline.episodes.container import Normalisation, Transitions
from cvl_pipeline.episodes.parts import beside, shape_beside
from cvl_pipeline.errors import InputError
from cvl_pipeline.networks.actor import Actor, ActorShape, Policy, make_actor
from cvl_pipeline.networks.arrays import as_rows, pieces
from cvl_pipeline.networks.critic import ContrastiveCritic

PAIRS = 1024
"""Pairs of a state and a goal that are computed at once; limits the memory."""
MOST_GOALS = 4096
"""Most goals of a policy, which compares each with all others: a matrix of 64 MiB."""


def closeness(critic: ContrastiveCritic, observations: Tensor, actions: Tensor, psi: Tensor) -> Tensor:
    """``f(s, a, g) = log p_gamma(g | s, a) / p(g)``, in nats, (...); the leading axes are broadcast.

    Args:
        critic: trained.
        observations: s, (..., O).
        actions: a, (..., A).
        psi: of the goals, (..., D).
    """
    phi = critic.phi(observations, actions)
    with torch.autocast(phi.device.type, enabled=False):
        left, right = critic.factors(phi, psi)
        f: Tensor = (left * right).sum(-1)
        return f


def psi_of_goals(critic: ContrastiveCritic, goals: Tensor) -> Tensor:
    """Psi of observations that are goals, (G, O) -> (G, D). The absorbing state has none, so it is no goal."""
    return critic.psi(goals, torch.zeros(len(goals), dtype=torch.bool, device=goals.device))


def make_goal_actor(
    transitions: Transitions,
    normalisation: Normalisation,
    hidden: tuple[int, ...],
    encoder: dict[str, object],
) -> Actor:
    """Build pi(a | s, g): an actor whose observation is a state and a goal, side by side.

    Vectors (O,) become (2 O,), and images (H, W, C) become (H, W, 2 C), each half with the log's statistics. If
    observations have parts, every part does.

    Args:
        transitions: the episodes, which define the shapes of observations and actions.
        normalisation: statistics of the observations.
        hidden: sizes of the hidden layers.
        encoder: plain parameters of the encoder of both.
    """
    layout = transitions.parts
    places = [layout.statistics_of(name) for name in layout.names] if layout else [slice(None)]
    mean, std = (
        torch.cat([values[place] for place in places for _ in range(2)])
        for values in (normalisation.observation_mean, normalisation.observation_std)
    )
    first = transitions.observations[:1]
    _, parts = shape_beside(tuple(first.shape[1:]), layout)
    pairs = replace(transitions, observations=beside(first, first, layout), parts=parts)
    statistics = replace(normalisation, observation_mean=mean, observation_std=std)
    return make_actor(pairs, statistics, hidden, encoder)


class GoalPolicy(Policy):
    """Acts by pi(a | s, g), with one of its goals g.

    In every state, each goal g proposes the mode of pi(. | s, g). The policy takes the proposal after which the goals
    are most likely to be reached, all of them together: the one with the largest ``sum_g' exp f(s, a, g')``. The goal
    with the largest f(s, a, g) alone would be the nearest one, at the edge of the goals, where the smallest error
    leaves them again. The choice is made again in every state, so the policy has no memory. With one goal, there is
    no choice.

    Attributes:
        goals: (G, O), observations as in the log.
    """

    goals: Tensor
    _psi: Tensor

    def __init__(self, actor: Actor, critic: ContrastiveCritic, goals: Tensor) -> None:
        """Combine the parts.

        Args:
            actor: of ``make_goal_actor``.
            critic: frozen, judges how likely goals are reached.
            goals: (G, O), or images, (G, H, W, C) uint8; at least one.
        """
        super().__init__()
        self.actor = actor
        self.critic = critic
        self.shape = replace(
            actor.shape,
            observation_shape=tuple(critic.shape.observation_shape),
            parts=critic.shape.parts,
        )
        self.discrete = actor.discrete
        self.register_buffer("goals", goals)
        with torch.no_grad():
            self.register_buffer("_psi", psi_of_goals(critic, goals), persistent=False)

    def toward(self, goals: ArrayLike | Mapping[str, ArrayLike]) -> GoalPolicy:
        """Return the policy that moves to goals of your own, with the same networks.

        It acts, is evaluated and is saved like this one.

        Args:
            goals: one observation of the log's kind, (O,), or several that are equally good, (G, O); images (H, W, C)
                or (G, H, W, C); or such arrays by name of the part.

        Raises:
            InputError: the goals have another shape, or are not finite numbers, or there are none or too many.
        """
        shape = tuple(self.shape.observation_shape)
        rows = as_rows(goals, shape, "goals", "policy", self.shape.parts)
        rows = rows.unsqueeze(0) if rows.ndim == len(shape) else rows
        if not 1 <= len(rows) <= MOST_GOALS:
            raise InputError(f"there are {len(rows)} goals; give at least 1 and at most {MOST_GOALS}")
        return GoalPolicy(self.actor, self.critic, rows.to(self.goals.device)).eval()

    @torch.no_grad()
    def forward(self, observations: Tensor) -> Tensor:
        """Actions, (B, O) -> (B, A)."""
        parts = pieces(observations, max(1, PAIRS // len(self.goals)))
        return torch.cat([self._act(part) for part in parts])

    def _act(self, observations: Tensor) -> Tensor:
        rows = observations.shape[0], len(self.goals)
        states = observations.unsqueeze(1)  # (B, 1, O)
        states_of_pairs, goals = (
            part.expand(*rows, *observations.shape[1:]) for part in (states, self.goals)
        )
        pairs = beside(states_of_pairs, goals, self.shape.parts)
        actions: Tensor = self.actor(pairs)  # (B, G, A)
        f = self.critic.logits(self.critic.phi(states, actions), self._psi)  # (B, G, G)
        best = f.logsumexp(-1).argmax(1)
        return actions[torch.arange(actions.shape[0], device=actions.device), best]


class ObservedGoal(nn.Module):
    """Any policy in a ``GoalEnvironment``, whose observations are a state and the goal of the episode, side by side.

    A GoalPolicy pursues that goal instead of its own ones. Other policies do not see it. Observations of several parts
    are packed, or a dictionary for a module of your own.
    """

    def __init__(self, policy: nn.Module) -> None:
        """Act with ``policy``, observations (B, O) to actions (B, A)."""
        super().__init__()
        self.policy = policy
        shape = getattr(policy, "shape", None)
        if isinstance(shape, ActorShape):
            self.discrete = bool(getattr(policy, "discrete", False))
            observation_shape, parts = shape_beside(tuple(shape.observation_shape), shape.parts)
            self.shape = replace(shape, observation_shape=observation_shape, parts=parts)

    def forward(self, observations: Tensor | Mapping[str, Tensor]) -> Tensor:
        """Actions, (B, 2 O) -> (B, A)."""
        actions: Tensor
        if isinstance(self.policy, GoalPolicy):
            actions = self.policy.actor(observations)
        else:
            actions = self.policy(self._states(observations))
        return actions

    def _states(self, pairs: Tensor | Mapping[str, Tensor]) -> Tensor | dict[str, Tensor]:
        if isinstance(pairs, Mapping):
            return {name: values.chunk(2, dim=-1)[0] for name, values in pairs.items()}
        layout = getattr(getattr(self.policy, "shape", None), "parts", None)
        return pairs.chunk(2, dim=-1)[0] if layout is None else layout.first_of(pairs)
