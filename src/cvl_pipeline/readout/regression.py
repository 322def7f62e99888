"""Networks regressed on lambda-returns beside a readout, and the weights of both in Q."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor, nn
from torch.nn import functional
from torch.nn.utils import parameters_to_vector

from cvl_pipeline.episodes.container import Rewards, Split, Transitions
from cvl_pipeline.episodes.preparation import (
    discounted_returns,
    goes_on,
    last_steps,
    logged_shares,
    observed_returns,
)
from cvl_pipeline.networks.critic import ContrastiveCritic
from cvl_pipeline.networks.mlp import MLP
from cvl_pipeline.readout.parameters import RegressionParameters
from cvl_pipeline.readout.q_function import QFunction
from cvl_pipeline.readout.readouts import Readout
from cvl_pipeline.readout.references import CHUNK
from cvl_pipeline.training.least_squares import Batch, fit_least_squares
from cvl_pipeline.training.progress import progress_bar
from cvl_pipeline.training.seeds import stream_seed

logger = logging.getLogger(__name__)

Floats = NDArray[np.float64]

JUDGED_SHARE = 0.2
"""Share of the training episodes on which the weights are fitted."""
JUDGED = 32_768
"""Maximum number of their transitions that are used."""
CUT_SHARE, CUT_ROUNDS, CUT_STEPS = 0.6, 32, 0.25
"""Share of the discounted future that must be in the log, on average, for one round of V to do; the rounds else, and
the share of ``value_steps`` in each. More rounds carry values further, through more windows."""
LATE_SHARE = 0.25
"""Share of the steps that come after the weights are known, on all training episodes."""
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
    discount = readout.discount
    returns = (1.0 - discount) * observed_returns(labels.rewards, transitions, discount)  # as mean rewards
    shares = logged_shares(transitions, discount)
    index = transitions.transition_index(fitted)
    deviation = float(returns[index].std(correction=0)) if len(index) else 0.0
    if deviation < 1e-12:
        return readout
    mean = float((shares[index] @ returns[index]) / shares[index].sum())
    # A critic that is conditioned on the horizon may look further ahead than the values.
    short = min(discount, critic.shape.discount)

    def standard(values: Tensor) -> Tensor:
        return ((values - mean) / deviation).float()

    def network(of_actions: bool, targets: Tensor, weights: Tensor) -> _Regression:
        stream = stream_seed(seed, "regression", 1 + of_actions)
        return _Regression(critic, transitions, index, parameters, of_actions, targets, weights, stream)

    everything = transitions.transition_index(split.train)
    alike = torch.ones(len(transitions))

    def followed(values: Tensor) -> Tensor:
        """Lambda-returns of all training episodes, judged ones included, if those values follow the steps, (N,)."""
        return lambda_returns(labels.rewards, mean + deviation * values, transitions, discount, short)

    def renewed(values: Tensor) -> tuple[Tensor, Tensor]:
        """Targets if those values follow the steps, and their weights."""
        return standard(followed(values)), alike

    def after_states() -> Tensor:
        return value.of_arrivals(everything)

    def after_pairs() -> Tensor:
        pairs = torch.zeros_like(arrived)
        pairs[everything] = action_value.outputs(everything)
        return of_next_pairs(pairs, arrived, transitions)

    logged = float(shares[index].mean())
    cut = parameters.rounds is None and logged < CUT_SHARE
    rounds = CUT_ROUNDS if cut else parameters.rounds or 1
    steps = max(1, round(CUT_STEPS * parameters.value_steps)) if cut else parameters.value_steps
    if cut:
        logger.info(
            "value_readout: the log holds %.0f %% of the discounted future of its steps, so V is fitted in %d rounds, "
            "to targets of its own (value_readout.regression.rounds)",
            100.0 * logged, rounds,
        )  # fmt: skip
    # Steps on all training episodes come last; whole rounds, if there are several.
    late_rounds = round(LATE_SHARE * rounds)
    late_values = late_rounds * steps or round(LATE_SHARE * steps)
    early_values, late = rounds * steps - late_values, round(LATE_SHARE * parameters.steps)
    with progress_bar() as progress:
        task = progress.add_task("Regressing returns", total=early_values + parameters.steps - late)
        value = network(False, standard(returns), shares.float())
        value.train(
            early_values,
            lambda taken: progress.advance(task, taken),
            rounds - late_rounds,
            lambda: renewed(after_states()),
        )
        arrived = after_states()
        following = followed(arrived)
        action_value = network(True, standard(following), alike)
        action_value.train(
            parameters.steps - late,
            lambda taken: progress.advance(task, taken),
            rounds - late_rounds,
            lambda: renewed(after_pairs()),
        )
    rows = transitions.transition_index(judged)
    rows = rows[torch.randperm(len(rows), generator=generator)[:JUDGED]]
    q = QFunction(critic, readout_without(judged))

    def estimated(actions: Tensor) -> Floats:
        """Both estimates of the judged states' actions, (M,) int64 transitions that provide them -> (M, 2)."""
        values = (1.0 - discount) * q.of_transitions(transitions, rows, actions)[0]
        return (
            torch.stack([values, mean + deviation * action_value.outputs(rows, actions)], dim=1)
            .double()
            .numpy()
        )

    taken = estimated(rows)
    others = [
        index[torch.randint(len(index), (len(rows),), generator=generator)] for _ in range(OTHER_ACTIONS)
    ]
    advantages = taken - np.mean([estimated(other) for other in others], axis=0)
    errors = following[rows].numpy() - (mean + deviation * value.outputs(rows).double().numpy())
    constant, readout_weight, network_weight = mixture_weights(
        taken, advantages, errors, returns[rows].numpy(), shares[rows].numpy()
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
    with progress_bar() as progress:
        task = progress.add_task("Regressing returns of all training episodes", total=late_values + late)
        value.learn_from(everything, *(renewed(arrived) if late_rounds else ()))
        value.train(
            late_values,
            lambda taken: progress.advance(task, taken),
            max(1, late_rounds),
            lambda: renewed(after_states()),
        )
        arrived = after_states()
        action_value.learn_from(everything, *renewed(after_pairs() if rounds > 1 else arrived))
        action_value.train(
            late,
            lambda taken: progress.advance(task, taken),
            max(1, late_rounds),
            lambda: renewed(after_pairs()),
        )
    mixture = [constant + network_weight * mean, readout_weight, network_weight * deviation]
    return RegressedReadout(
        temperature=readout.temperature, horizons=readout.horizons, discount=discount,
        self_normalised=readout.self_normalised, base=readout,
        networks=action_value.vectors(), sizes=action_value.sizes,
        mixture=torch.tensor(mixture, dtype=torch.float32),
    )  # fmt: skip


def lambda_returns(
    rewards: Tensor, values: Tensor, transitions: Transitions, discount: float, short: float
) -> Tensor:
    """Lambda-returns as mean rewards, with lambda = c / gamma, (N,) float64 (Sutton 1988).

    ``G_t = (1 - gamma) r_t + gamma ((1 - lambda) V(s_{t+1}) + lambda G_{t+1})``. After a terminated episode nothing
    follows, and at the end of a truncated one V follows.

    Args:
        rewards: (N,).
        values: (N,), V of the state that each transition leads to, as a mean reward.
        transitions: the log.
        discount: gamma.
        short: c, at most gamma.
    """
    weights = torch.where(last_steps(transitions), discount, discount - short) * goes_on(transitions)
    return discounted_returns((1.0 - discount) * rewards + weights * values, transitions, short)


def of_next_pairs(pairs: Tensor, arrivals: Tensor, transitions: Transitions) -> Tensor:
    """Values of the next logged pair, or of the state that an episode's last step leads to, (N,).

    Args:
        pairs: (N,), Q of every logged state and action.
        arrivals: (N,), V of the state that each transition leads to.
        transitions: the log.
    """
    return torch.where(last_steps(transitions), arrivals, pairs.roll(-1))


class _Members(nn.Module):
    """Networks of the same inputs, (B, I) -> (B, J)."""

    def __init__(self, networks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.cat([network(inputs) for network in self.networks], -1)


class _Regression:
    """A network of states, or several of states and actions, on some transitions."""

    def __init__(
        self,
        critic: ContrastiveCritic,
        transitions: Transitions,
        index: Tensor,
        parameters: RegressionParameters,
        of_actions: bool,
        targets: Tensor,
        weights: Tensor,
        seed: int,
    ) -> None:
        self._critic, self._transitions, self._index = critic, transitions, index
        self._targets, self._weights, self._parameters = targets, weights, parameters
        self._of_actions = of_actions
        self.sizes = (self._inputs(index[:1]).shape[-1], *parameters.hidden, 1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = _Members(
                MLP(self.sizes[0], parameters.hidden, 1)
                for _ in range(parameters.members if of_actions else 1)
            )
        self._generator = Generator().manual_seed(seed)

    def vectors(self) -> Tensor:
        """Parameters of every network, (J, P)."""
        networks = self.network.networks
        return torch.stack([parameters_to_vector(network.parameters()).detach() for network in networks])

    @torch.no_grad()
    def _inputs(self, rows: Tensor, actions: Tensor | None = None) -> Tensor:
        states = self._transitions.states(rows)
        if not self._of_actions:
            encoded: Tensor = self._critic.encode_observation(states)
            return encoded.float()
        taken = self._transitions.actions.index_select(0, rows if actions is None else actions)
        return self._critic.inputs(states, taken).float()

    def learn_from(self, index: Tensor, targets: Tensor | None = None, weights: Tensor | None = None) -> None:
        """Go on with other transitions, (M,) int64, and, if they are given, with other targets and weights, (N,)."""
        self._index = index
        self._targets = self._targets if targets is None else targets
        self._weights = self._weights if weights is None else weights

    def train(
        self,
        steps: int,
        progress: Callable[[int], None],
        rounds: int = 1,
        renewed: Callable[[], tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        """Take gradient steps on the weighted squared error.

        Args:
            steps: in all rounds together.
            progress: receives the steps of each block.
            rounds: parts of the training, of equal length.
            renewed: returns targets and weights, (N,) each, for the round that begins.
        """
        batches = self._batches(steps, progress, rounds, renewed)
        fit_least_squares(
            self.network,
            batches,
            batch_size=self._parameters.batch_size,
            learning_rate=self._parameters.learning_rate,
            cosine_steps=steps,
        )

    def _batches(
        self,
        steps: int,
        progress: Callable[[int], None],
        rounds: int,
        renewed: Callable[[], tuple[Tensor, Tensor]] | None,
    ) -> Iterator[Batch]:
        """Batches of that many steps, made in blocks: the inputs of many steps take hardly longer than those of one."""
        size = self._parameters.batch_size
        block = max(1, CHUNK // size)
        ends = [steps * (place + 1) // rounds for place in range(rounds)]
        for begin, end in pairwise([0, *ends]):
            if begin and renewed is not None:
                with torch.no_grad():
                    self._targets, self._weights = renewed()
            for first in range(begin, end, block):
                count = min(block, end - first)
                rows = self._index[
                    torch.randint(len(self._index), (count * size,), generator=self._generator)
                ]
                parts = self._inputs(rows), self._targets[rows], self._weights[rows]
                yield from zip(*(torch.split(part, size) for part in parts), strict=True)
                progress(count)

    def outputs(self, rows: Tensor, actions: Tensor | None = None) -> Tensor:
        """Mean outputs for transitions, (M,) int64 -> (M,); ``actions`` are transitions that provide other actions."""
        parts = (torch.split(rows, CHUNK), torch.split(rows if actions is None else actions, CHUNK))
        return torch.cat([self.network(self._inputs(*part)).mean(-1) for part in zip(*parts, strict=True)])

    def of_arrivals(self, index: Tensor) -> Tensor:
        """Outputs of a network of states for the state that transitions lead to, (N,); zero outside ``index``."""
        result = torch.zeros(len(self._transitions))
        for part in torch.split(index, CHUNK):
            states = self._critic.encode_observation(self._transitions.arrivals(part)).float()
            result[part] = self.network(states).mean(-1)
        return result


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
