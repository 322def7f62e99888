"""Multilayer perceptrons and input standardisation."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


def mlp(inputs: int, hidden: Sequence[int], outputs: int) -> nn.Sequential:
    """Linear layers with LayerNorm and ReLU between them; the last layer has neither.

    Args:
        inputs: size of the last axis of the input.
        hidden: sizes of the hidden layers.
        outputs: size of the last axis of the output.
    """
    layers: list[nn.Module] = []
    sizes = [inputs, *hidden]
    for size_in, size_out in pairwise(sizes):
        layers += [nn.Linear(size_in, size_out), nn.LayerNorm(size_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], outputs))


class Standardise(nn.Module):
    """``(x - mean) / std`` per dimension with fixed statistics, stored with the module's weights."""

    mean: Tensor
    std: Tensor

    def __init__(self, size: int) -> None:
        """Start as the identity; ``fit`` or ``load_state_dict`` sets the statistics."""
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))

    def fit(self, mean: Tensor, std: Tensor) -> None:
        """Set the statistics, each of shape (size,)."""
        self.mean.copy_(mean)
        self.std.copy_(std)

    def forward(self, values: Tensor) -> Tensor:
        """Standardise the last axis."""
        return (values - self.mean) / self.std
