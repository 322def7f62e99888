"""Number of torch's threads, by the work of a gradient step.

A second thread makes a step of a small network a little faster, if its core is idle. If it is not, the threads wait
for each other in every one of hundreds of operations, and the step takes longer than on one thread. So small steps
take one thread, and leave the other cores to rollouts, another seed or another user.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

R = TypeVar("R")
MOST_PARTS = 16
"""Largest number of parts that are computed at once; each needs memory of its own."""

OPERATIONS_PER_THREAD = 5e8
"""Floating-point operations of a gradient step for each thread: about 13 ms of work on one core.

The critic with hidden layers (256, 256) has 0.3e9 at batch 256, and gains a fifth from a second idle core. It has
1.5e9 at batch 1024, and gains half."""


def threads_are_chosen() -> bool:
    """Whether there is a choice: torch has several threads, and OMP_NUM_THREADS does not say how many to use."""
    return "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > 1


@contextmanager
def threads_for(operations: float) -> Iterator[None]:
    """Let torch use as many threads in this context as the work of a step is worth, at most as many as it has.

    The number depends on the work and on the number of torch's threads alone, so the same command on the same machine
    rounds the same, also after a resumption. OMP_NUM_THREADS, which training by several processes and studies set for
    their processes, is kept as it is.

    Args:
        operations: floating-point operations of one step.
    """
    if not threads_are_chosen():
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, min(before, int(operations / OPERATIONS_PER_THREAD))))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def mapped(
    function: Callable[..., R], *parts: Sequence[Tensor], device: torch.device, wide: bool = False
) -> list[R]:
    """Map a function without gradients over parts of the data, on as many threads as torch has.

    Each thread computes whole parts, with one thread of torch's own: they never wait for each other, and results do
    not depend on their number. On a GPU, one part follows another.

    Args:
        function: of one part of every sequence.
        parts: sequences of equal length.
        device: where the function computes.
        wide: whether rows are images. Then one part follows another, because each needs gigabytes.
    """

    @torch.no_grad()  # each thread has its own setting
    def alone(*part: Tensor) -> R:
        return function(*part)

    count = min(torch.get_num_threads(), len(parts[0]), 1 if wide else MOST_PARTS)
    if count < 2 or device.type != "cpu":
        return [alone(*part) for part in zip(*parts, strict=True)]
    try:
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(alone, *parts))
    finally:
        torch.set_num_threads(torch.get_num_threads())  # of threads that start later


def dense_operations(network: nn.Module, rows: int) -> int:
    """Floating-point operations of a gradient step of dense layers: two per weight and row forward, four backward."""
    return 6 * rows * sum(parameter.numel() for parameter in network.parameters())
