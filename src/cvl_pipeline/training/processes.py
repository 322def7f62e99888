"""What the processes of one training do together.

Every process draws the same numbers and takes its own share of each batch, so that training by several
processes is the training of one process on the whole batch: the batch size, the loss and its gradients are
those of all of them together. Without a process group, each of these functions is the identity.
"""

from __future__ import annotations

import ctypes
import signal
import sys
from typing import Any

import torch
from torch import Tensor, distributed

TERMINATED = 143
"""Exit status of a process that SIGTERM ended, as shells and SLURM have it."""


def world_size() -> int:
    """Number of processes."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def own_share(values: Tensor) -> Tensor:
    """This process's rows of a batch that all have, (B, ...) -> (B / processes, ...)."""
    return values.chunk(world_size())[rank()]


def gather(values: Tensor) -> Tensor:
    """The rows of all processes, in their order, (B / processes, ...) -> (B, ...); differentiable.

    Where every process goes on to compute the loss of the whole batch, the ``average`` of their gradients is
    the gradient of that loss.
    """
    if world_size() == 1:
        return values
    gathered: Tensor = _Gather.apply(values)  # type: ignore[no-untyped-call]
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        own = values.contiguous()  # and so are the others', which are shaped after it
        parts = [torch.empty_like(own) for _ in range(world_size())]
        distributed.all_gather(parts, own)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        # Each process holds the gradient with respect to all rows, and passes on that of its own; the sum
        # over processes is the whole, which the average has divided by their number.
        return own_share(gradients[0]) * world_size()


def average(values: Tensor) -> Tensor:
    """The mean over processes of a tensor that takes no gradient."""
    if world_size() > 1:
        values = values.clone()
        distributed.all_reduce(values)
        values /= world_size()
    return values


def maximum(values: Tensor) -> Tensor:
    """The largest of each entry over processes, of a tensor that takes no gradient."""
    if world_size() > 1:
        values = values.clone()
        distributed.all_reduce(values, distributed.ReduceOp.MAX)
    return values


def any_of(flag: bool, device: torch.device) -> bool:
    """Whether it is set in any process."""
    if world_size() == 1:
        return flag
    votes = torch.tensor(float(flag), device=device)
    distributed.all_reduce(votes)
    return bool(votes > 0)


def end_with_parent() -> None:
    """Have SIGTERM sent to this process when its parent dies, however it does; Linux alone can.

    Else what kill -9 leaves behind would train beside the run that resumes it, or wait for ever.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # 1: PR_SET_PDEATHSIG
