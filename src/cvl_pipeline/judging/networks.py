"""Small networks of Q and V, several of each, every one fitted to a bootstrap sample of episodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn.utils import parameters_to_vector

from cvl_pipeline.judging.parameters import JudgingParameters
from cvl_pipeline.networks.mlp import MLP
from cvl_pipeline.readout.references import CHUNK
from cvl_pipeline.readout.regression import run
from cvl_pipeline.training.least_squares import Batch, fit_least_squares


@dataclass(frozen=True)
class ValueNetworks:
    """``Q = (mean + std network(inputs)) / (1 - discount)`` of several networks.

    Attributes:
        weights: (M, P), parameters of the networks, in the order of ``networks.mlp``.
        sizes: of the layers, input first.
        mean: of the unit in which the networks answer, a mean reward.
        std: of that unit.
        discount: of the values.
    """

    weights: Tensor
    sizes: tuple[int, ...]
    mean: float
    std: float
    discount: float

    @torch.no_grad()
    def __call__(self, inputs: Tensor) -> Tensor:
        """Values in units of the return, (N, I) -> (M, N)."""
        outputs = torch.stack(
            [
                torch.cat([run(weights, self.sizes, part) for part in torch.split(inputs, CHUNK)])
                for weights in self.weights
            ]
        )
        return (self.mean + self.std * outputs) / (1.0 - self.discount)


def bootstrap_weights(episodes: Tensor, generator: Generator) -> Tensor:
    """How often the episode of each step is drawn if as many are drawn as there are, (N,) -> (N,)."""
    _, place = torch.unique(episodes, return_inverse=True)
    count = int(place.max()) + 1
    drawn = torch.randint(count, (count,), generator=generator)
    return torch.bincount(drawn, minlength=count)[place].float()


def fit(
    network: nn.Module,
    inputs: Tensor,
    targets: Callable[[Tensor], Tensor],
    weights: Tensor,
    steps: int,
    parameters: JudgingParameters,
    generator: Generator,
) -> None:
    """Fit a network in place by least squares.

    Args:
        network: (B, I) to (B, 1).
        inputs: (N, I).
        targets: returns the targets of rows, (B,) int64 -> (B,); called once per step.
        weights: (N,), in proportion to which rows are drawn.
        steps: gradient steps.
        parameters: batch size and learning rate.
        generator: of the draws.
    """

    def batches() -> Iterator[Batch]:
        block = max(1, CHUNK // parameters.batch_size)
        for first in range(0, steps, block):
            count = min(block, steps - first) * parameters.batch_size
            drawn = torch.multinomial(weights, count, replacement=True, generator=generator)
            for rows in torch.split(drawn, parameters.batch_size):
                with torch.no_grad():
                    wanted = targets(rows)
                yield inputs[rows], wanted, torch.ones(len(rows))

    fit_least_squares(
        network, batches(), batch_size=parameters.batch_size, learning_rate=parameters.learning_rate,
        cosine_steps=steps,
    )  # fmt: skip


def fresh(size: int, parameters: JudgingParameters, seed: int) -> MLP:
    """A network of that many inputs and one output, with initial weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MLP(size, parameters.hidden, 1)


def joined(networks: list[MLP], size: int, parameters: JudgingParameters, **unit: Any) -> ValueNetworks:
    """Combine fitted networks of ``size`` inputs."""
    weights = torch.stack([parameters_to_vector(network.parameters()).detach() for network in networks])
    return ValueNetworks(weights, (size, *parameters.hidden, 1), **unit)
