"""Networks regressed on lambda-returns beside a readout, and the mean of both."""

from __future__ import annotations

import dataclasses
import logging
import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import ClassVar, Self

import torch
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

CALIBRATING = 32_768
"""Maximum number of transitions whose returns the scale of Q is fitted to."""


@dataclass(frozen=True)
class RegressedReadout(Readout):
    """``Q = (b_0 + b_1 (1 - gamma) Q_readout + b_2 g(s, a)) / (1 - gamma)``, with b_1, b_2 >= 0.

    The networks, whose mean is g, are regressed on lambda-returns, as mean rewards. The ratio of b_1 and b_2 is that of
    fixed shares (``RegressionParameters.readout_share``); see ``regress``.

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
            fitted = torch.stack([run(network, self.sizes, rows) for network in self.networks]).mean(0)
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
    transitions: Transitions,
    labels: Rewards,
    split: Split,
    parameters: RegressionParameters,
    seed: int,
) -> Readout:
    """Fit networks to lambda-returns of the training episodes, and add them to the readout.

    A network of V(s) is regressed on returns, and some of Q(s, a) on the lambda-returns that follow from it, with
    lambda = c / gamma as in the readout. Those of Q see the same batches and differ in their initial weights. Their
    mean counts: what a single one makes of actions that are rare in the log is chance. Returns themselves would credit
    an action with whatever its episode did later: in a log of many operators, an action gives its operator away. If the
    log consists of windows too short for returns, V is regressed in further rounds on the lambda-returns that follow
    from itself, and then Q on those that follow from Q of the next logged pair, as in SARSA, and from V at a window's
    end. All windows share the networks, so values pass from one to another.

    Both estimates count by fixed shares (``parameters.readout_share``): a mean is hard to beat with weights that are
    fitted to data (Bates and Granger 1969). Here the critic knows what followed the actions that it was trained on, so
    it looks better there than it is, and the returns of the few other episodes are mostly chance (docs/truth.md). Only
    a constant and the scale of the sum fit returns, too. Nothing is read of the validation episodes, which measure Q.
    In a log of windows, the readout's share is multiplied by the share of the future that the log has.

    Args:
        critic: the trained critic.
        readout: over the future states of all training episodes.
        transitions: all episodes.
        labels: rewards of all transitions.
        split: defines the training episodes.
        parameters: of the regression.
        seed: of the initial weights, the batches and the transitions that the scale is fitted to.

    Returns:
        The readout with the networks; unchanged if all returns that they would be fitted to are equal.
    """
    index = transitions.transition_index(split.train)
    # A critic that is conditioned on the horizon may look further ahead than the values.
    short = min(readout.discount, critic.shape.discount)
    log = LoggedReturns.of(transitions, labels.rewards, readout.discount, short, index)
    if log.deviation < 1e-12:
        return readout
    fit = ValueFit(critic, log, index, parameters, seed)
    fit.fit()
    share = fit.readout_share
    mixture = torch.tensor([(1.0 - share) * log.mean, share, (1.0 - share) * log.deviation])
    mean = RegressedReadout(
        temperature=readout.temperature, horizons=readout.horizons, discount=readout.discount,
        self_normalised=readout.self_normalised, base=readout,
        networks=fit.action_value.vectors(), sizes=fit.action_value.sizes, mixture=mixture,
    )  # fmt: skip
    generator = Generator().manual_seed(stream_seed(seed, "regression", 0))
    rows = index[torch.randperm(len(index), generator=generator)[:CALIBRATING]]
    values = (1.0 - log.discount) * QFunction(critic, mean).of_transitions(transitions, rows)[0]
    constant, scale = calibration(values.double(), log.returns[rows].double(), log.shares[rows].double())
    return dataclasses.replace(mean, mixture=scale * mixture + torch.tensor([constant, 0.0, 0.0]))


def calibration(values: Tensor, returns: Tensor, weights: Tensor) -> tuple[float, float]:
    """Constant and slope of the line ``returns = constant + slope values`` with the least squared error.

    Args:
        values: (N,) float64.
        returns: (N,) float64.
        weights: (N,) float64 of the squared errors, non-negative.

    Returns:
        Both; the slope is 1 if it would not be positive, because values that fall with the returns by chance still
        order actions.
    """
    weights = weights / weights.sum()
    centre, mean = weights @ values, weights @ returns
    variance = float(weights @ (values - centre).square())
    slope = float(weights @ ((values - centre) * (returns - mean))) / variance if variance else 0.0
    slope = slope if slope > 0.0 else 1.0
    return float(mean - slope * centre), slope
