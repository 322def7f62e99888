"""Batches read ahead of their steps, from a log that does not fit the GPU.

The log stays in its memory-mapped file. A thread reads the rows of the next batches into pinned memory and copies
them to the GPU on a stream of its own, so a step finds its batch there.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import accumulate
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from cvl_pipeline.training.processes import any_of

Rows = TypeVar("Rows", bound=Any)
"""A dataclass of tensors."""

SHARE = 0.5
"""Largest share of a GPU's free memory that a log may take. Networks and activations need the rest."""
AHEAD = 8
"""Batches that are read before their step. One is enough if reading always takes less time than a step; more make
up for pages that are still on the disk, and for a thread that had to wait for its core."""
ALIGNMENT = 512
"""Bytes to which tensors on a GPU are aligned, as by torch's own allocator; kernels choose their way by it."""
THREAD = "prefetch"
"""Name of the thread."""


def fits(device: torch.device, *tensors: Tensor) -> bool:
    """Whether tensors on the CPU may move to a device: in every process, a GPU has the memory.

    Args:
        device: of this process's network.
        tensors: to move.
    """
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return not any_of(sum(tensor.nbytes for tensor in tensors) > SHARE * free, device)


class Prefetch(Generic[Rows]):
    """Batches by step, read in order by a thread.

    Attributes:
        waited: seconds that steps have waited for their batch.
    """

    def __init__(self, read: Callable[[int], Rows], device: torch.device, ahead: int = AHEAD) -> None:
        """Start nothing yet.

        Args:
            read: returns the rows of a step's batch, on the CPU. Only the thread calls it.
            device: where the batches go.
            ahead: batches that are read or being read at a time.
        """
        self._read, self._device, self._ahead = read, device, ahead
        on_gpu = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if on_gpu else None  # type: ignore[no-untyped-call]
        self._thread = ThreadPoolExecutor(1, THREAD)
        self._pending: deque[Future[tuple[Rows, Tensor, Any]]] = deque()
        self._next = 0
        self.waited = 0.0

    def batch(self, step: int) -> Rows:
        """Return the rows of a step's batch on the device; an error of the thread is raised here.

        Any step may be asked for, but only the one after the last is ready.
        """
        if step != self._next:
            self._discard()
        for later in range(step + len(self._pending), step + self._ahead):
            self._pending.append(self._thread.submit(self._prepare, later))
        self._next = step + 1
        start = time.perf_counter()
        rows, buffer, copied = self._pending.popleft().result()
        self.waited += time.perf_counter() - start
        if copied is not None:  # GPU only
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(copied)
            buffer.record_stream(stream)  # so the memory is reused only after this step
        return rows

    def close(self) -> None:
        """End the thread, after the batch that it is reading."""
        self._discard()
        self._thread.shutdown()

    def _discard(self) -> None:
        for future in self._pending:
            future.cancel()
        self._pending.clear()

    def _prepare(self, step: int) -> tuple[Rows, Tensor, Any]:
        """Read a batch and begin its copy; return it, its memory, and what marks the end of the copy."""
        rows = self._read(step)
        tensors = list(vars(rows).values())
        on_gpu = self._stream is not None
        with torch.cuda.stream(self._stream):  # nothing without a GPU
            # torch reuses pinned memory after the copy, which it follows by an event.
            buffer = packed(tensors, pinned=on_gpu).to(self._device, non_blocking=on_gpu)
            copied = self._stream.record_event() if self._stream is not None else None
        return replace(rows, **dict(zip(vars(rows), views(buffer, tensors), strict=True))), buffer, copied


def packed(tensors: Sequence[Tensor], pinned: bool = False) -> Tensor:
    """Copy tensors into one, (bytes,) uint8, so that one copy moves them all."""
    size = sum(_padded(tensor) for tensor in tensors)
    buffer = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
    for tensor, view in zip(tensors, views(buffer, tensors), strict=True):
        view.copy_(tensor)
    return buffer


def views(buffer: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors of a packed one, which have the types and shapes of the given ones."""
    starts = accumulate((_padded(tensor) for tensor in tensors), initial=0)
    return [
        buffer[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        for start, tensor in zip(starts, tensors, strict=False)
    ]


def _padded(tensor: Tensor) -> int:
    return -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
