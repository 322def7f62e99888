"""Batches read ahead of their steps, from a log that does not fit the GPU.

The log stays in its memory-mapped file. A thread reads the rows of the next batches into pinned memory and copies
them to the GPU on a stream of its own, so a step finds its batch there.

The thread allocates memory at any time. So a CUDA graph must be captured with ``capture_error_mode="thread_local"``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from queue import SimpleQueue
from threading import Thread
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from cvl_pipeline.training.processes import any_of

Rows = TypeVar("Rows", bound=Any)
"""A dataclass of tensors."""

SHARE = 0.5
"""Largest share of a GPU's free memory that a log may take. Networks and activations need the rest."""
AHEAD = 8
"""Batches that are read before their step. They make up for pages that are still on the disk, and for a thread that
had to wait for its core."""
ALIGNMENT = 512
"""Bytes to which tensors on a GPU are aligned, as by torch's own allocator; kernels depend on it."""
THREAD = "prefetch"
"""Name of the thread."""


def fits(device: torch.device, *tensors: Tensor) -> bool:
    """Whether tensors on the CPU may move to a device: every process has the memory on its GPU.

    Args:
        device: of this process's network.
        tensors: to move.
    """
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return not any_of(sum(tensor.nbytes for tensor in tensors) > SHARE * free, device)


class _Batch(NamedTuple):
    rows: Any
    buffer: Tensor  # their memory
    copied: Any  # event after the copy to a GPU; None on the CPU


class Prefetch(Generic[Rows]):
    """Batches by step, read in order by a thread.

    Attributes:
        waited: seconds that steps have waited for their batch.
    """

    def __init__(self, read: Callable[[int], Rows], device: torch.device, ahead: int = AHEAD) -> None:
        """Start nothing yet.

        Args:
            read: returns the rows of a step's batch, on the CPU. The thread calls it.
            device: where the batches go.
            ahead: batches that are read at most before they are asked for.
        """
        self._read, self._device, self._ahead = read, device, ahead
        on_gpu = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if on_gpu else None  # type: ignore[no-untyped-call]
        self._thread: Thread | None = None
        self._requests: SimpleQueue[int | None] = SimpleQueue()
        self._results: SimpleQueue[_Batch | BaseException] = SimpleQueue()
        self._next = self._end = 0  # steps of the next result, and after the last request
        self.waited = 0.0

    def batch(self, step: int) -> Rows:
        """Return the rows of a step's batch on the device; an error of the thread is raised here.

        Any step may be asked for, but only the one after the last is ready.
        """
        if self._thread is None:
            self._thread = Thread(target=self._work, name=THREAD, daemon=True)
            self._thread.start()
        if step != self._next:
            for _ in range(self._next, self._end):
                self._results.get()
            self._next = self._end = step
        while self._end < step + self._ahead:
            self._requests.put(self._end)
            self._end += 1
        start = time.perf_counter()
        result = self._results.get()
        self.waited += time.perf_counter() - start
        self._next += 1
        if isinstance(result, BaseException):
            raise result
        if result.copied is not None:  # GPU only
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(result.copied)
            result.buffer.record_stream(stream)  # its memory is not reused before the step is done
        rows: Rows = result.rows
        return rows

    def close(self) -> None:
        """End the thread after the batch that it is reading; the next ``batch`` starts another one."""
        if self._thread is None:
            return
        thread, self._thread = self._thread, None
        self._requests.put(None)
        thread.join()
        self._requests, self._results = SimpleQueue(), SimpleQueue()
        self._next = self._end = 0

    def _work(self) -> None:
        for step in iter(self._requests.get, None):
            if self._thread is None:  # closed, before the remaining requests
                break
            try:
                self._results.put(self._prepare(step))
            except BaseException as error:
                self._results.put(error)

    def _prepare(self, step: int) -> _Batch:
        """Read a batch and begin its copy."""
        rows = self._read(step)
        names, tensors = list(vars(rows)), [tensor.contiguous() for tensor in vars(rows).values()]
        on_gpu = self._stream is not None
        with torch.cuda.stream(self._stream):  # does nothing without a GPU
            # torch reuses pinned memory only after the copy from it.
            buffer = packed(tensors, pinned=on_gpu).to(self._device, non_blocking=True)
            copied = self._stream.record_event() if self._stream is not None else None
        return _Batch(replace(rows, **dict(zip(names, views(buffer, tensors), strict=True))), buffer, copied)


def packed(tensors: Sequence[Tensor], pinned: bool = False) -> Tensor:
    """Copy contiguous tensors into one, (bytes,) uint8, so that one copy moves them all to a GPU."""
    size = sum(_padded(tensor) for tensor in tensors)
    buffer = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
    for tensor, view in zip(tensors, views(buffer, tensors), strict=True):
        view.copy_(tensor)
    return buffer


def views(buffer: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The parts of a packed tensor, with the types and shapes of the tensors in it."""
    typed = {tensor.dtype: buffer.view(tensor.dtype) for tensor in tensors}
    start, parts = 0, []
    for tensor in tensors:
        place = start // tensor.element_size()
        parts.append(typed[tensor.dtype].as_strided(tensor.shape, tensor.stride(), place))
        start += _padded(tensor)
    return parts


def _padded(tensor: Tensor) -> int:
    """Bytes that a tensor takes in a packed one."""
    return -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
