"""Networks of V(s) and Q(s, a), regressed on returns of a log."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import pairwise

import torch
from torch import Generator, Tensor, nn
from torch.nn.utils import parameters_to_vector

from cvl_pipeline.episodes.container import Transitions, block_rows
from cvl_pipeline.networks.critic import ContrastiveCritic
from cvl_pipeline.networks.mlp import MLP
from cvl_pipeline.readout.logged_returns import LoggedReturns, of_next_pairs
from cvl_pipeline.readout.parameters import RegressionParameters
from cvl_pipeline.readout.references import CHUNK
from cvl_pipeline.training.least_squares import Batch, fit_least_squares
from cvl_pipeline.training.progress import progress_bar
from cvl_pipeline.training.seeds import stream_seed

logger = logging.getLogger(__name__)

CUT_SHARE, CUT_ROUNDS, CUT_STEPS = 0.6, 32, 0.25
"""Share of the discounted future that must be in the log, on average, for one round of V to do; the rounds else, and
the share of ``value_steps`` in each. More rounds carry values further, through more windows. The readout sees nothing
beyond a window, so it counts less."""


class ValueFit:
    """V and Q by regression on the training episodes.

    Attributes:
        action_value: the networks of Q.
        readout_share: share of the readout beside them.
    """

    def __init__(
        self,
        critic: ContrastiveCritic,
        log: LoggedReturns,
        index: Tensor,
        parameters: RegressionParameters,
        seed: int,
    ) -> None:
        """Choose the rounds by how much of the future the log has.

        Args:
            critic: whose inputs the networks have.
            log: returns and their scale.
            index: the transitions of the training episodes, (M,) int64.
            parameters: of the regression.
            seed: of initial weights and batches.
        """
        self._critic, self._log, self._index = critic, log, index
        self._parameters, self._seed = parameters, seed
        logged = float(log.shares[index].mean())
        self.readout_share = parameters.readout_share * (logged if logged < CUT_SHARE else 1.0)
        cut = parameters.rounds is None and logged < CUT_SHARE
        self._rounds = CUT_ROUNDS if cut else parameters.rounds or 1
        if cut:
            logger.info(
                "value_readout: the log holds %.0f %% of the discounted future of its steps, so V is fitted in %d "
                "rounds, to targets of its own, and the readout has %.2f of Q (value_readout.regression: rounds, "
                "readout_share)",
                100.0 * logged, self._rounds, self.readout_share,
            )  # fmt: skip
        steps = max(1, round(CUT_STEPS * parameters.value_steps)) if cut else parameters.value_steps
        self._value_steps = self._rounds * steps

    def fit(self) -> None:
        """Fit V to returns, then Q to what follows from it."""
        log, rounds, steps = self._log, self._rounds, self._parameters.steps
        drawn = (self._value_steps + steps) * self._parameters.batch_size
        self._states = _States(self._critic, log.transitions)
        if log.transitions.wide and len(self._index) <= drawn:
            self._states.encode(self._index)
        with progress_bar() as progress:
            task = progress.add_task("Regressing returns", total=self._value_steps + steps)
            advance = partial(progress.advance, task)
            self._value = self._network(False, log.standard(log.returns), log.shares.float())
            self._value.train(self._value_steps, advance, rounds, self._after_states)
            self._arrived = self._arrivals()
            self.action_value = self._network(True, *self._renewed(self._arrived))
            self.action_value.train(steps, advance, rounds, self._after_pairs)

    def _network(self, of_actions: bool, targets: Tensor, weights: Tensor) -> _Networks:
        stream = stream_seed(self._seed, "regression", 1 + of_actions)
        return _Networks(
            self._states, self._index, self._parameters, of_actions, targets, weights, stream
        )  # fmt: skip

    def _arrivals(self) -> Tensor:
        """V of the state that each transition leads to, (N,)."""
        return self._value.of_arrivals(self._index)

    def _renewed(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Targets if those values follow the steps, and their weights."""
        return self._log.standard(self._log.followed(values)), torch.ones_like(values)

    def _after_states(self) -> tuple[Tensor, Tensor]:
        """Targets of V in the next round."""
        return self._renewed(self._arrivals())

    def _after_pairs(self) -> tuple[Tensor, Tensor]:
        """Targets of Q in the next round."""
        pairs = torch.zeros_like(self._arrived)
        pairs[self._index] = self.action_value.outputs(self._index)
        return self._renewed(of_next_pairs(pairs, self._arrived, self._log.transitions))


class _Members(nn.Module):
    """Networks of the same inputs, (B, I) -> (B, J)."""

    def __init__(self, networks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.cat([network(inputs) for network in self.networks], -1)


class _States:
    """The states and pairs of a log as the critic's frozen encoder gives them."""

    def __init__(self, critic: ContrastiveCritic, transitions: Transitions) -> None:
        self._critic, self.transitions = critic, transitions
        self._features: Tensor | None = None

    @torch.no_grad()
    def encode(self, index: Tensor) -> None:
        """Keep the features of all states of the given transitions: images take longer to encode than to fit."""
        log = self.transitions
        rows = log.rows(index)
        rows = torch.unique(torch.cat([rows, rows + 1]))
        size = self._of(rows[:1]).shape[1]
        features = torch.zeros(len(log.observations), size)
        with progress_bar() as progress:
            task = progress.add_task("Encoding the log", total=len(rows))
            for part in torch.split(rows, block_rows(log.observations)):
                features[part] = self._of(part)
                progress.advance(task, len(part))
        self._features = features

    def of(self, index: Tensor) -> Tensor:
        """Features of the states at which transitions start, (M,) -> (M, F)."""
        return self._of(self.transitions.rows(index))

    def arrivals(self, index: Tensor) -> Tensor:
        """Features of the states to which transitions lead, (M,) -> (M, F)."""
        return self._of(self.transitions.rows(index) + 1)

    def pairs(self, index: Tensor) -> Tensor:
        """What networks of states and actions receive, (M,) -> (M, I)."""
        return self._critic.inputs_of(self.of(index), self.transitions.actions.index_select(0, index)).float()

    def _of(self, rows: Tensor) -> Tensor:
        if self._features is not None:
            return self._features[rows]
        encoded: Tensor = self._critic.encode_observation(self.transitions.observations.index_select(0, rows))
        return encoded.float()


class _Networks:
    """A network of states, or several of states and actions, and the transitions that they learn from."""

    def __init__(
        self,
        states: _States,
        index: Tensor,
        parameters: RegressionParameters,
        of_actions: bool,
        targets: Tensor,
        weights: Tensor,
        seed: int,
    ) -> None:
        self._states, self._index = states, index
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
    def _inputs(self, rows: Tensor) -> Tensor:
        return self._states.pairs(rows) if self._of_actions else self._states.of(rows)

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
            weight_decay=self._parameters.weight_decay,
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

    def outputs(self, rows: Tensor) -> Tensor:
        """Mean outputs for transitions, (M,) int64 -> (M,)."""
        return torch.cat([self.network(self._inputs(part)).mean(-1) for part in torch.split(rows, CHUNK)])

    def of_arrivals(self, index: Tensor) -> Tensor:
        """Outputs of a network of states for the state that transitions lead to, (N,); zero outside ``index``."""
        result = torch.zeros(len(self._states.transitions))
        for part in torch.split(index, CHUNK):
            result[part] = self.network(self._states.arrivals(part)).mean(-1)
        return result
