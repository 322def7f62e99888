"""How far the actions of a policy, and the states that it would visit, are from the log."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor, nn

from cvl_pipeline.episodes.container import Transitions
from cvl_pipeline.judging.parameters import JudgingParameters
from cvl_pipeline.judging.samples import Sample, act
from cvl_pipeline.networks.critic import ContrastiveCritic
from cvl_pipeline.training.seeds import stream_seed

QUERIES = 256
"""States whose neighbours are searched at once."""
BEYOND = 0.95
"""Quantile of the logged actions' distances beyond which a distance counts as outside."""


@dataclass(frozen=True)
class Neighbours:
    """Nearest training states of any state.

    Attributes:
        features: (N, F), of training states.
        actions: (N, A), standardised, taken in them.
        count: how many neighbours.
    """

    features: Tensor
    actions: Tensor
    count: int

    def of(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Distances and places of the nearest training states, nearest first, (B, F) -> (B, K) each."""
        count = min(self.count, len(self.features))
        blocks = [
            torch.cdist(part, self.features).topk(count, largest=False)
            for part in torch.split(features, QUERIES)
        ]
        distances, places = (torch.cat(parts) for parts in zip(*blocks, strict=True))
        return distances, places

    def nearest_actions(self, places: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Distance to the nearest of the neighbours' actions, and its place, (B, K) and (B, A) -> (B,) each."""
        distances = (self.actions[places] - actions.unsqueeze(1)).norm(dim=-1)
        nearest, chosen = distances.min(1)
        return nearest, places.gather(1, chosen.unsqueeze(1)).squeeze(1)


def rank_of(distances: Tensor, logged: Tensor) -> tuple[float, float]:
    """How distances compare with logged ones.

    Returns:
        The probability that a distance is larger than a logged one, where equal ones count half: 0.5 if they are
        alike, 1 if all are larger. And the share of distances beyond the quantile BEYOND of the logged ones.
    """
    ordered = np.sort(logged.numpy())
    values = distances.numpy()
    below, up_to = (np.searchsorted(ordered, values, side=side) for side in ("left", "right"))
    limit = np.quantile(ordered, BEYOND)
    return float((below + up_to).mean() / 2.0 / len(ordered)), float((values > limit).mean())


@torch.no_grad()
def coverage(
    policy: nn.Module,
    critic: ContrastiveCritic,
    transitions: Transitions,
    training: Sample,
    held_out: Sample,
    actions: Tensor,
    parameters: JudgingParameters,
    seed: int,
) -> dict[str, float | None]:
    """Compare the policy's distances from the training episodes with those of held-out logged actions.

    The distance of an action is that to the nearest of the actions taken in the nearest training states. States that a
    policy would visit follow from a model without parameters: in the nearest training states, the logged step with the
    most similar action tells how the state changes. They are compared with the states to which the logged actions of
    the same held-out episodes lead in the same model. Images and observations of several parts have no such model.

    Args:
        policy: observations (B, O) to actions (B, A).
        critic: whose encoder measures distances; for vectors, in standard deviations.
        transitions: the log.
        training: episodes that the policy learned from.
        held_out: episodes that it did not.
        actions: (N, A), of the policy in the held-out states.
        parameters: how many neighbours, states and rollouts.
        seed: of the choice of states.

    Returns:
        ``action_rank``, ``action_outside``, ``visited_rank`` and ``visited_outside`` (see ``rank_of``).
    """
    standard = critic.standardise_action
    near = Neighbours(training.encoded.states(), standard(training.encoded.actions), parameters.neighbours)
    generator = Generator().manual_seed(stream_seed(seed, "judging", 2000))
    rows = torch.randperm(len(held_out), generator=generator)[: parameters.compared_states]
    _, places = near.of(held_out.encoded.states(rows))
    own, logged = (
        near.nearest_actions(places, standard(taken[rows]))[0]
        for taken in (actions, held_out.encoded.actions)
    )
    action_rank, action_outside = rank_of(own, logged)
    numbers: dict[str, float | None] = {
        "action_rank": action_rank, "action_outside": action_outside, "visited_rank": None,
        "visited_outside": None,
    }  # fmt: skip
    if not transitions.wide:
        chosen = torch.randperm(held_out.encoded.episodes, generator=generator)[: parameters.rollouts]
        model = _Model(near, critic, transitions, training)
        visited, replayed = (
            model.distances(held_out, chosen, parameters.rollout_steps, moved) for moved in (policy, None)
        )
        numbers["visited_rank"], numbers["visited_outside"] = rank_of(visited, replayed)
    return numbers


@dataclass(frozen=True)
class _Model:
    """The change of a state that the log has for the most similar action in the most similar states."""

    near: Neighbours
    critic: ContrastiveCritic
    transitions: Transitions
    training: Sample

    def distances(self, held_out: Sample, episodes: Tensor, steps: int, policy: nn.Module | None) -> Tensor:
        """Distance of each state to the nearest training state, of all rollouts, (V,).

        Args:
            held_out: the episodes.
            episodes: (M,) int64, the episodes from whose first states rollouts start, by their place.
            steps: most of them; a rollout is no longer than its episode.
            policy: that acts; None: the logged actions of the episode, one after another.
        """
        starts, lengths = held_out.encoded.episode_starts[episodes], held_out.encoded.lengths[episodes]
        states = self.transitions.states(held_out.index[starts])
        found = []
        for step in range(min(steps, int(lengths.max()))):
            alive = lengths > step
            states, starts, lengths = states[alive], starts[alive], lengths[alive]
            if policy is None:
                actions = held_out.encoded.actions[starts + step]
            else:
                actions = act(policy, states, self.transitions)
            _, places = self.near.of(self.critic.encode_observation(states).float())
            _, nearest = self.near.nearest_actions(places, self.critic.standardise_action(actions))
            rows = self.training.index[nearest]
            states = states + self.transitions.arrivals(rows) - self.transitions.states(rows)
            distances, _ = self.near.of(self.critic.encode_observation(states).float())
            found.append(distances[:, 0])
        return torch.cat(found)
