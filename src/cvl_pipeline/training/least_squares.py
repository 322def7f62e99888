"""Least squares: networks fitted to targets by Adam, for the small regressions beside the trained models."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from cvl_pipeline.training.threads import dense_operations, threads_for
from cvl_pipeline.training.vector import Adam, ParameterVector

Batch = tuple[Tensor, Tensor, Tensor]
"""Inputs (B, ...), targets (B,) and non-negative weights (B,) of the squared errors."""


@torch.enable_grad()
def fit_least_squares(
    network: nn.Module,
    batches: Iterable[Batch],
    *,
    batch_size: int,
    learning_rate: float,
    cosine_steps: int | None = None,
    weight_decay: float = 0.0,
) -> None:
    """Fit a network to targets in place, with one step of Adam per batch on the weighted mean of squared errors.

    Args:
        network: (B, ...) to (B, J), J estimates of the same target, whose losses are added; all parameters that
            require a gradient are trained.
        batches: one per gradient step.
        batch_size: B, by which threads are chosen.
        learning_rate: of Adam.
        cosine_steps: number of steps over which the learning rate falls to zero along half a cosine; None: constant.
        weight_decay: decoupled, see ``Adam``.

    Raises:
        FloatingPointError: the network diverged.
    """
    vector = ParameterVector(network, [p for p in network.parameters() if p.requires_grad])
    optimizer = Adam(vector.values, learning_rate, decay=weight_decay)
    try:
        with threads_for(dense_operations(network, batch_size)):
            for step, (inputs, targets, weights) in enumerate(batches):
                errors = (network(inputs) - targets.unsqueeze(-1)).square().sum(-1)
                vector.differentiate((weights * errors).sum() / weights.sum())
                if cosine_steps is not None:
                    falling = 0.5 * (1.0 + math.cos(math.pi * step / cosine_steps))
                    optimizer.param_groups[0]["lr"] = learning_rate * falling
                optimizer.step()
    finally:
        vector.release()
    if not all(parameter.isfinite().all() for parameter in network.parameters()):
        raise FloatingPointError(
            f"least squares became nan: lower the learning rate ({learning_rate:g}) or the weight decay "
            f"({weight_decay:g}) of the regression"
        )
