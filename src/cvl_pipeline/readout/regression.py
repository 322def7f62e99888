"""Networks regressed on lambda-returns beside a readout, and the weights of both in Q."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor
from torch.nn import functional

from cvl_pipeline.episodes.container import Rewards, Split, Transitions
from cvl_pipeline.networks.critic import ContrastiveCritic
from cvl_pipeline.readout.fitting import ValueFit
from cvl_pipeline.readout.logged_returns import LoggedReturns
from cvl_pipeline.readout.parameters import RegressionParameters
from cvl_pipeline.readout.q_function import QFunction
from cvl_pipeline.readout.readouts import Readout
from cvl_pipeline.training.seeds import stream_seed

logger = logging.getLogger(__name__)

Floats = NDArray[np.float64]

JUDGED_SHARE = 0.2
"""Share of the training episodes on which the weights are fitted."""
JUDGED = 32_768
"""Maximum number of their transitions that are used."""
OTHER_ACTIONS = 4
"""Number of actions, logged anywhere, that an advantage compares a judged one with."""


@dataclass(frozen=True)
class RegressedReadout(Readout):
    """``Q = (b_0 + b_1 (1 - gamma) Q_readout + b_2 g(s, a)) / (1 - gamma)``, with b_1, b_2 >= 0.

    The networks, whose mean is g, are regressed on lambda-returns, as mean rewards. The weights b are those of stacking
    (Wolpert 1992; Breiman 1996): non-negative least squares on returns of episodes that neither the networks nor the
    reference states of the readout come from.

    Attributes:
        base: the readout beside the networks.
        networks: (J, P), the parameters of each, in the order of ``networks.mlp``.
        sizes: of their layers, input first.
        mixture: (3,), b.
    """

    base: Readout
    networks: Tensor
    sizes: tuple[int, ...]
    mixture: Tensor
    needs_inputs: ClassVar[bool] = True

    @property
    def alone(self) -> Readout:
        """The readout without the networks."""
        return self.base

    @property
    def weight(self) -> float:
        """Weight of the readout in Q, b_1."""
        return float(self.mixture[1])

    def expectation(self, phi: Tensor) -> Tensor:
        """Expected reward of the readout without the networks, (B, D) -> (B,)."""
        return self.base.expectation(phi)

    def values(self, phi: Tensor, inputs: Tensor | None = None) -> Tensor:
        """Q; see Readout.

        Raises:
            ValueError: no ``inputs``.
        """
        # A readout without weight need not be computed, which takes nearly all of the time.
        return self._mixed(phi.new_zeros(phi.shape[0]) if self._unused else self.base.values(phi), inputs)

    @cached_property
    def _unused(self) -> bool:
        """Whether the readout has no weight; asked once, because a GPU has to wait for the answer."""
        return bool(self.mixture[1] == 0.0)

    @cached_property
    def _unused_networks(self) -> bool:
        """Whether the networks have no weight; asked once, like ``_unused``."""
        return bool(self.mixture[2] == 0.0)

    def values_and_sample_size(self, phi: Tensor, inputs: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Q, and the effective sample size of the readout without the networks; see Readout.

        Raises:
            ValueError: no ``inputs``.
        """
        values, size = self.base.values_and_sample_size(phi)
        return self._mixed(values, inputs), size

    def _mixed(self, values: Tensor, inputs: Tensor | None) -> Tensor:
        """Mix the readout's values with those of the networks."""
        if inputs is None:
            raise ValueError("a regressed readout needs the inputs that phi was computed from")
        with torch.autocast(inputs.device.type, enabled=False):
            rows = inputs.float()
            fitted = (
                rows.new_zeros(rows.shape[:-1])
                if self._unused_networks
                else torch.stack([run(network, self.sizes, rows) for network in self.networks]).mean(0)
            )
        rewards = (1.0 - self.discount) * values
        mixed = self.mixture[0] + self.mixture[1] * rewards + self.mixture[2] * fitted
        return mixed / (1.0 - self.discount)

    def to(self, device: torch.device | str) -> Self:
        """Move the readout to a device."""
        return dataclasses.replace(super().to(device), base=self.base.to(device))


def run(weights: Tensor, sizes: tuple[int, ...], inputs: Tensor) -> Tensor:
    """Output of the network ``mlp`` with the given parameters, (P,) and (..., I) -> (...)."""
    place = 0

    def take(*shape: int) -> Tensor:
        nonlocal place
        place += math.prod(shape)
        return weights[place - math.prod(shape) : place].reshape(shape)

    values = inputs
    for size_in, size_out in pairwise(sizes):
        values = functional.linear(values, take(size_out, size_in), take(size_out))
        if place < len(weights):
            values = functional.layer_norm(values, (size_out,), take(size_out), take(size_out)).relu()
    return values.squeeze(-1)


@torch.no_grad()
def regress(
    critic: ContrastiveCritic,
    readout: Readout,
    readout_without: Callable[[Tensor], Readout],
    transitions: Transitions,
    labels: Rewards,
    split: Split,
    parameters: RegressionParameters,
    seed: int,
) -> Readout:
    """Fit networks to lambda-returns of the training episodes, and weigh them against the readout.

    A network of V(s) is regressed on returns, and some of Q(s, a) on the lambda-returns that follow from it, with
    lambda = c / gamma as in the readout. Those of Q see the same batches and differ in their initial weights. Their
    mean counts: what a single one makes of actions that are rare in the log is chance. Returns themselves would credit
    an action with whatever its episode did later: in a log of many operators, an action gives its operator away. If the
    log consists of windows too short for returns, V is regressed in further rounds on the lambda-returns that follow
    from itself, and then Q on those that follow from Q of the next logged pair, as in SARSA, and from V at a window's
    end. All windows share the networks, so values pass from one to another.

    The weights are found on episodes that neither networks nor readout know, after three quarters of the steps. In the
    rest, the networks learn from those episodes too. How much the one counts beside the other is what their advantages
    say about the temporal-difference errors ``G - V(s)`` there: a policy needs the order of actions in a state, and the
    variance of returns is nearly all between states. The scale of the sum, and a constant, fit the returns.

    Args:
        critic: the trained critic.
        readout: over the future states of all training episodes.
        readout_without: makes the readout whose reference states avoid some episodes, (M,) int64 ids.
        transitions: all episodes.
        labels: rewards of all transitions.
        split: defines the training episodes.
        parameters: of the regression.
        seed: of the judged episodes, the initial weights and the batches.

    Returns:
        The readout with the networks; unchanged if there is a single training episode, if all returns that they
        would be fitted to are equal, or if neither estimate predicts the returns of the judged episodes.
    """
    generator = Generator().manual_seed(stream_seed(seed, "regression", 0))
    order = split.train[torch.randperm(len(split.train), generator=generator)]
    count = max(1, round(JUDGED_SHARE * len(order)))
    judged, fitted = (part.sort().values for part in (order[:count], order[count:]))
    # A critic that is conditioned on the horizon may look further ahead than the values.
    short = min(readout.discount, critic.shape.discount)
    index = transitions.transition_index(fitted)
    log = LoggedReturns.of(transitions, labels.rewards, readout.discount, short, index)
    if log.deviation < 1e-12:
        return readout
    fit = ValueFit(critic, log, index, split, parameters, seed)
    fit.early()
    rows = transitions.transition_index(judged)
    rows = rows[torch.randperm(len(rows), generator=generator)[:JUDGED]]
    q = QFunction(critic, readout_without(judged))

    def estimated(actions: Tensor) -> Floats:
        """Both estimates of the judged states' actions, (M,) int64 transitions that provide them -> (M, 2)."""
        values = (1.0 - log.discount) * q.of_transitions(transitions, rows, actions)[0]
        return torch.stack([values, fit.q_of(rows, actions)], dim=1).double().numpy()

    taken = estimated(rows)
    others = [
        index[torch.randint(len(index), (len(rows),), generator=generator)] for _ in range(OTHER_ACTIONS)
    ]
    advantages = taken - np.mean([estimated(other) for other in others], axis=0)
    constant, readout_weight, network_weight = mixture_weights(
        taken, advantages, fit.errors(rows), log.returns[rows].numpy(), log.shares[rows].numpy()
    )
    if readout_weight == network_weight == 0.0:  # a constant would order no actions
        logger.info(
            "value_readout: nothing predicts the judged returns; Q is the readout, without regression"
        )
        return readout
    logger.info(
        "value_readout: Q is %.2f times the readout and %.2f times the regression on returns%s",
        readout_weight, network_weight,
        ""
        if readout_weight
        else ", without any share of the critic's values (value_readout.regression=null uses those alone)",
    )  # fmt: skip
    if network_weight:
        fit.late()
    mixture = [constant + network_weight * log.mean, readout_weight, network_weight * log.deviation]
    return RegressedReadout(
        temperature=readout.temperature, horizons=readout.horizons, discount=readout.discount,
        self_normalised=readout.self_normalised, base=readout,
        networks=fit.action_value.vectors(), sizes=fit.action_value.sizes,
        mixture=torch.tensor(mixture, dtype=torch.float32),
    )  # fmt: skip


def mixture_weights(
    values: Floats, advantages: Floats, errors: Floats, returns: Floats, weights: Floats
) -> tuple[float, ...]:
    """Constant and non-negative weights of a sum of estimates of Q that is meant to order actions.

    The ratio of the weights has the least squared difference from the temporal-difference errors, their scale and the
    constant from the returns. If no advantage predicts the errors, returns decide all.

    Args:
        values: (N, J), estimates of Q.
        advantages: (N, J), the same minus those of other actions in the same states.
        errors: (N,), what followed minus what V(s) expected.
        returns: (N,).
        weights: (N,) of the returns, non-negative.

    Returns:
        J + 1 numbers, the constant first.
    """
    ratio = np.array(stacking_weights(advantages, errors, np.ones(len(errors)))[1:])
    if ratio.any():
        constant, scale = stacking_weights((values @ ratio)[:, None], returns, weights)
        if scale > 0.0:
            return (constant, *(scale * float(part) for part in ratio))
    return stacking_weights(values, returns, weights)


def stacking_weights(estimates: Floats, returns: Floats, weights: Floats) -> tuple[float, ...]:
    """Constant and non-negative weights of a sum of estimates with the least squared error.

    Args:
        estimates: (N, J).
        returns: (N,).
        weights: (N,) of the squared errors, non-negative.

    Returns:
        J + 1 numbers, the constant first.
    """
    from scipy.optimize import nnls  # imported when needed: it takes half a second

    total = weights.sum()
    centre, mean = weights @ estimates / total, weights @ returns / total
    root = np.sqrt(weights)
    found, _ = nnls((estimates - centre) * root[:, None], (returns - mean) * root)
    return (float(mean - centre @ found), *(float(weight) for weight in found))
