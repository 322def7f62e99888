"""Batches read ahead of their steps, from a log that does not fit the GPU.

The log stays in its memory-mapped file. A thread reads the rows of the next blocks of batches into pinned memory and
copies them to the GPU on a stream of its own, so a step finds its batch there.

The thread allocates memory at any time. So a CUDA graph must be captured with ``capture_error_mode="thread_local"``.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cvl_pipeline.training.batches import columns, mapped, unstacked
from cvl_pipeline.training.processes import any_of

SHARE = 0.5
"""Largest share of a GPU's free memory that a log may take. Networks and activations need the rest."""
AHEAD = 2
"""Blocks that are read before their steps. They make up for pages that are still on the disk, and for a thread that
had to wait for its core."""
BLOCK_BYTES = 2**25
"""Most bytes of a block with more than one batch. The GPU holds up to five blocks, and pinned memory up to three."""
THREAD = "prefetch"
"""Beginning of the thread's name."""


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


def batches_in_block(most: int, batch: Any) -> int:
    """Number of batches like the given one in a block: the most, or half of it as often as BLOCK_BYTES needs."""
    size = sum(column.nbytes for column in columns(batch))
    while most > 1 and most * size > BLOCK_BYTES:
        most //= 2
    return most


class _Block(NamedTuple):
    first: int  # step
    rows: Any
    copied: Any  # event after the copy to a GPU; None on the CPU


class Prefetch:
    """Blocks of batches, read in order by a thread.

    Attributes:
        waited: seconds that steps have waited for their block.
    """

    def __init__(
        self, read: Callable[[int], Iterator[tuple[int, Any]]], device: torch.device, ahead: int = AHEAD
    ) -> None:
        """Start nothing yet.

        Args:
            read: yields the block that has a step, and those after it, without end. A block is its first step and
                its rows on the CPU: a tuple of batches, or one batch whose tensors stack those of all its batches.
                The thread calls it.
            device: where the blocks go.
            ahead: blocks that are read at most before they are asked for.
        """
        self._read, self._device, self._ahead = read, device, ahead
        on_gpu = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if on_gpu else None  # type: ignore[no-untyped-call]
        self._thread: ThreadPoolExecutor | None = None
        self._results: deque[Future[_Block]] = deque()
        self._next = -1  # first step of the next result
        self.waited = 0.0

    def block(self, step: int) -> tuple[int, list[Any]]:
        """Return the block that has a step, as its first step and its batches on the device.

        Any step may be asked for, but only the block after the last one is ready. An error of the thread is raised
        here.
        """
        if self._thread is None or step != self._next:
            self.close()
            self._thread = ThreadPoolExecutor(1, THREAD)
            self._blocks = self._read(step)
        while len(self._results) <= self._ahead:
            self._results.append(self._thread.submit(self._prepare, self._blocks))
        start = time.perf_counter()
        try:
            first, rows, copied = self._results.popleft().result()
        except BaseException:
            self.close()
            raise
        self.waited += time.perf_counter() - start
        if copied is not None:  # GPU only
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(copied)
            for column in columns(rows):
                column.record_stream(stream)  # its memory is not reused before the steps are done
        batches = list(rows) if isinstance(rows, tuple) else unstacked(rows)
        self._next = first + len(batches)
        return first, batches

    def close(self) -> None:
        """End the thread after the block that it is reading; the next ``block`` starts another one."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
        self._thread = None
        self._results.clear()

    def _prepare(self, blocks: Iterator[tuple[int, Any]]) -> _Block:
        """Read a block and begin its copy."""
        first, rows = next(blocks)
        if self._stream is None:
            return _Block(first, rows, None)
        with torch.cuda.stream(self._stream):
            return _Block(first, mapped(rows, self._sent), self._stream.record_event())

    def _sent(self, column: Tensor) -> Tensor:
        # torch reuses pinned memory only after the copy from it.
        return column.contiguous().pin_memory().to(self._device, non_blocking=True)
