"""Advantages of logged actions: their Q minus the value of the state under other actions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor

from cvl_pipeline.episodes.container import Transitions
from cvl_pipeline.errors import InputError
from cvl_pipeline.networks.mlp import MLP
from cvl_pipeline.objectives.parameters import (
    STATE_VALUES,
    FittedValueParameters,
    MarginalActionsParameters,
    StateValueParameters,
)
from cvl_pipeline.readout.action_values import ROUNDING, ActionValues
from cvl_pipeline.readout.references import CHUNK
from cvl_pipeline.training.least_squares import Batch, fit_least_squares
from cvl_pipeline.training.seeds import stream_seed
from cvl_pipeline.training.threads import mapped

# Midway between the largest share in a log in which weights of episodes did harm (0.48), and the smallest in one where
# they helped (0.93), see docs/tuning.md.
COMMON = 0.7
QUARTERS = 4
# In the best episodes of logs that hold luck alone, the smallest share of a quarter was at most 0.8; in those of
# experts, it was at least 0.9, see docs/tuning.md.
UNSTEADY = 0.8


class StateValue(ABC):
    """V(s), which is subtracted from Q(s, a)."""

    Parameters: ClassVar[type[StateValueParameters]] = StateValueParameters

    def __init__(self, parameters: Any) -> None:
        """Keep the parameters."""
        self.parameters = parameters

    @abstractmethod
    def values(
        self, q: ActionValues, transitions: Transitions, index: Tensor, logged: Tensor, seed: int
    ) -> Tensor:
        """Return V of the states that transitions start from, (M,).

        Args:
            q: frozen.
            transitions: all episodes; on the CPU if they do not fit the GPU that has ``q``.
            index: (M,) int64, the transitions.
            logged: (M,), Q of their actions.
            seed: of every draw.
        """


class MarginalActions(StateValue):
    """``V(s) = 1/M sum_m Q(s, a_m)`` with a_m logged anywhere in the data.

    Everything about Q that depends on the state alone (the goal, the episode: most of its variance) cancels
    exactly in ``Q(s, a) - V(s)``. No regression of V on states that each occur once can promise that. With
    discrete actions V is the mean over all of them, by their frequency in the data.
    """

    Parameters = MarginalActionsParameters

    def values(
        self, q: ActionValues, transitions: Transitions, index: Tensor, logged: Tensor, seed: int
    ) -> Tensor:
        """Return V, (M,); ``logged`` is not used."""
        device = logged.device
        if transitions.discrete:
            frequency = transitions.actions[index].mean(0).to(device)
            parts = torch.split(index, q.rows_in_chunk(len(frequency)))
            return torch.cat(
                mapped(
                    lambda part: q.of_all_actions(transitions.states(part).to(device)) @ frequency,
                    parts,
                    device=device,
                    wide=transitions.wide,
                )
            )
        generator = Generator(device=index.device).manual_seed(stream_seed(seed, "baseline", 0))
        count = self.parameters.actions
        others = torch.stack(
            [
                index[torch.randint(len(index), (len(index),), generator=generator, device=index.device)]
                for _ in range(count)
            ],
            dim=1,
        )  # (M, actions)
        rows = q.rows_in_chunk(count)

        def mean(states: Tensor, taken: Tensor) -> Tensor:
            pairs = transitions.states(states).to(device), transitions.actions[taken].to(device)
            return q.of_actions(*pairs).mean(1)

        return torch.cat(
            mapped(
                mean,
                torch.split(index, rows),
                torch.split(others, rows),
                device=device,
                wide=transitions.wide,
            )
        )


class FittedValue(StateValue):
    """V(s) by least squares on the Q of the logged actions: its mean under the behaviour policy.

    It is fitted for few steps on purpose: every state of a continuous log occurs once, and a V that memorised
    them would leave no advantage. If all Q are equal up to rounding, V is their mean.
    """

    Parameters = FittedValueParameters

    def values(
        self, q: ActionValues, transitions: Transitions, index: Tensor, logged: Tensor, seed: int
    ) -> Tensor:
        """Fit V and return it, (M,)."""
        parameters, device = self.parameters, logged.device
        if index.device != device:
            raise InputError(
                "state_value 'fitted_value' needs the whole log on the GPU, and it does not fit; choose "
                "'marginal_actions', or train the policy with training.accelerator=cpu"
            )
        mean, std = logged.mean(), logged.std(unbiased=False)
        if std <= ROUNDING * logged.abs().max():
            return mean.expand_as(logged)
        targets = (logged - mean) / std

        @torch.no_grad()
        def features(rows: Tensor) -> Tensor:
            return q.encode(transitions.states(rows))

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(seed, "baseline", 1))
            network = MLP(features(index[:1]).shape[1], parameters.hidden, 1).to(device)
        generator = Generator(device=device).manual_seed(stream_seed(seed, "baseline", 2))
        weights = torch.ones(parameters.batch_size, device=device)

        def batches() -> Iterator[Batch]:
            for _ in range(parameters.steps):
                rows = torch.randint(len(index), (parameters.batch_size,), generator=generator, device=device)
                yield features(index[rows]), targets[rows], weights

        fit_least_squares(
            network, batches(), batch_size=parameters.batch_size, learning_rate=parameters.learning_rate
        )
        with torch.no_grad():
            fitted = torch.cat([network(features(part)).squeeze(-1) for part in torch.split(index, CHUNK)])
        return fitted * std + mean


@torch.no_grad()
def advantages(
    q: ActionValues, transitions: Transitions, index: Tensor, parameters: StateValueParameters, seed: int
) -> Tensor:
    """``A(s, a) = Q(s, a) - V(s)`` of logged actions, in units of its own standard deviation, (M,).

    Args:
        q: frozen.
        transitions: all episodes; on the CPU if they do not fit the GPU that has ``q``.
        index: (M,) int64, the transitions that train.
        parameters: of V.
        seed: of the draws that V makes.
    """
    values, _ = q.of_transitions(transitions, index)
    if not values.isfinite().all():
        raise InputError(
            f"value_readout: Q of {int((~values.isfinite()).sum())} of {len(values)} logged actions is not a finite "
            "number, so no policy can follow from it; read the values out with method exact"
        )
    state_values = STATE_VALUES.create(parameters).values(q, transitions, index, values, seed)
    advantage = values - state_values
    # Where Q is the same for all actions, what is left is rounding, which must not weigh the data.
    smallest = ROUNDING * float(values.abs().max()) + 1e-8
    return advantage / advantage.std(unbiased=False).clamp(min=smallest)


def whole_episodes(values: Tensor, episodes: Tensor) -> tuple[Tensor, Tensor]:
    """How far each step's episode counts as a whole, 0 to 1, and the mean advantage of the episode, (M,) each.

    Means of episodes differ between operators, and by luck. Luck comes and goes, an operator stays: so an episode
    counts by its ``steadiness``. And all count by ``rarity``: where operators of every quality are in the log, single
    actions already tell them apart.

    Args:
        values: (M,), advantages.
        episodes: (M,) int64, ids in ascending order.
    """
    # On the CPU and in double precision: a GPU adds in any order, and the same seed would give other bytes.
    _, ids, counts = torch.unique(episodes.cpu(), return_inverse=True, return_counts=True)
    own = values.double().cpu()
    means = torch.bincount(ids, own) / counts
    shares = rarity(means) * steadiness(own, ids, counts)
    return shares[ids].to(values), means[ids].to(values)


def steadiness(values: Tensor, ids: Tensor, counts: Tensor) -> Tensor:
    """How steadily an episode's actions are better than others, 0 to 1, (E,).

    Of the steps of each quarter of an episode, a share has a positive advantage. The smallest of the four shares
    counts: up to ``UNSTEADY``, the episode has 0, at 1 it has 1, and between them it is linear. An episode of fewer
    than four steps has 0.

    Args:
        values: (M,), advantages.
        ids: (M,) int64, 0 to E - 1, ascending.
        counts: (E,) int64, the steps of each episode.
    """
    places = torch.arange(len(ids)) - (counts.cumsum(0) - counts)[ids]
    quarters = QUARTERS * ids + QUARTERS * places // counts[ids]
    steps, positive = (
        torch.bincount(quarters, weights, minlength=QUARTERS * len(counts))
        for weights in (None, (values > 0).double())
    )
    worst = (positive / steps.clamp(min=1)).reshape(-1, QUARTERS).min(1).values
    steady: Tensor = ((worst - UNSTEADY) / (1.0 - UNSTEADY)).clamp(min=0.0)
    return steady


def rarity(means: Tensor) -> Tensor:
    """Whether the best twentieth of the episodes differs from the others as no other episode does, 0 to 1.

    Args:
        means: (N,), of the episodes' advantages.

    Returns:
        Scalar: 0 if that twentieth has at most ``COMMON`` of the squared deviations from the mean, 1 if it has all,
        and linear between.
    """
    squares = (means - means.mean()).square()
    best = means.topk(max(1, len(means) // 20)).indices
    share = squares[best].sum() / squares.sum().clamp(min=torch.finfo(squares.dtype).tiny)
    return ((share - COMMON) / (1.0 - COMMON)).clamp(min=0.0)
