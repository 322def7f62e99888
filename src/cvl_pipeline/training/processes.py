"""Communication between the processes of one training.

Every process samples the same numbers and takes its own share of each batch, so several processes train as
one process would on the whole batch: batch size, loss and gradients are those of all processes together.
Without a process group, each of these functions is the identity.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed


def world_size() -> int:
    """Number of processes."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def own_share(values: Tensor) -> Tensor:
    """This process's rows of a batch that all processes have, (B, ...) -> (B / processes, ...)."""
    return values if world_size() == 1 else values.chunk(world_size())[rank()]


def gather(values: Tensor) -> Tensor:
    """Join the rows of all processes, in their order, (B / processes, ...) -> (B, ...); differentiable.

    If every process then computes the loss of the whole batch, the ``average`` of their gradients is the
    gradient of that loss.
    """
    if world_size() == 1:
        return values
    gathered: Tensor = _Gather.apply(values)  # type: ignore[no-untyped-call]
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        own = values.contiguous()  # and so are the parts, which copy its layout
        parts = [torch.empty_like(own) for _ in range(world_size())]
        distributed.all_gather(parts, own)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        # Each process has the gradient with respect to all rows and returns that of its own. The sum over
        # processes is the whole gradient; the factor cancels the division in ``average``.
        return own_share(gradients[0]) * world_size()


def average(values: Tensor) -> Tensor:
    """Mean over processes of a tensor without gradient."""
    if world_size() > 1:
        values = values.clone()
        distributed.all_reduce(values)
        values /= world_size()
    return values


def maximum(values: Tensor) -> Tensor:
    """Maximum of each entry over processes, of a tensor without gradient."""
    if world_size() > 1:
        values = values.clone()
        distributed.all_reduce(values, distributed.ReduceOp.MAX)
    return values


def any_of(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set in any process."""
    if world_size() == 1:
        return flag
    return bool(maximum(torch.tensor(float(flag), device=device)))
