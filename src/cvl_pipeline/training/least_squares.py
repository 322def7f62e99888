"""Least squares: a network fitted to targets by Adam, for the small regressions beside the trained models."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

Batch = tuple[Tensor, Tensor, Tensor]
"""Inputs (B, ...), targets (B,) and non-negative weights (B,) of the squared errors."""


@torch.enable_grad()
def fit_least_squares(
    network: nn.Module,
    batches: Iterable[Batch],
    *,
    learning_rate: float,
    cosine_steps: int | None = None,
) -> None:
    """Fit a network to targets in place, with one step of Adam per batch on the weighted mean of squared errors.

    Args:
        network: (B, ...) to (B, 1); all parameters that require a gradient are trained.
        batches: one per gradient step.
        learning_rate: of Adam.
        cosine_steps: number of steps over which the learning rate falls to zero along half a cosine; None: constant.
    """
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    # One vector: the optimiser's work for a dozen small tensors takes longer than its arithmetic.
    vector = torch.cat([parameter.detach().flatten() for parameter in trained])
    sizes = [parameter.numel() for parameter in trained]
    for parameter, part in zip(trained, torch.split(vector, sizes), strict=True):
        parameter.data = part.view_as(parameter)
    optimizer = torch.optim.Adam([vector], lr=learning_rate, fused=True)
    for step, (inputs, targets, weights) in enumerate(batches):
        errors = (network(inputs).squeeze(-1) - targets).square()
        loss = (weights * errors).sum() / weights.sum()
        gradients = torch.autograd.grad(loss, trained)
        vector.grad = torch.cat([gradient.flatten() for gradient in gradients])
        if cosine_steps is not None:
            falling = 0.5 * (1.0 + math.cos(math.pi * step / cosine_steps))
            optimizer.param_groups[0]["lr"] = learning_rate * falling
        optimizer.step()
