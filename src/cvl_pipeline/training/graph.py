"""Gradient steps on a GPU as a CUDA graph.

A step of a small network is a hundred kernels of a few microseconds each, and the processor needs longer to start
them than the GPU to run them. A graph starts all of them at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cvl_pipeline.training.batches import columns, mapped, stacked
from cvl_pipeline.training.vector import Adam

if TYPE_CHECKING:
    from cvl_pipeline.training.module import OfflineModule

WARM_UP = 3
"""Steps before the capture, in which libraries choose their kernels. Their effect is undone."""


class StepGraph:
    """Replays a gradient step of a module: batch, loss, gradient, learning rate, optimiser and metrics.

    The batch comes from a block of batches on the GPU. The graph itself counts on to the next one.
    """

    def __init__(
        self, module: OfflineModule, optimizer: Adam, first: int, longest: int, capture: bool = True
    ) -> None:
        """Capture the step; parameters, buffers and the optimiser stay as they are.

        Args:
            module: on the device that trains.
            optimizer: of the module.
            first: number of the first step. All batches must have the shapes of its batch.
            longest: largest number of steps of one ``run``.
            capture: whether to make a graph; otherwise, ``run`` takes the same steps without one.

        Raises:
            TypeError: batches are not made of tensors.
            RuntimeError: a graph cannot do what the step does, such as wait for a result.
        """
        self._module, self._optimizer = module, optimizer
        self._block = stacked(module.block(first)[0])
        self._loaded: Sequence[Any] | None = None
        self._place, self._turn = torch.zeros(2, 1, dtype=torch.int64, device=module.device)
        self._rates, self._losses = torch.zeros(2, longest, device=module.device)
        self._sums: dict[str, Tensor] = {}
        self._graph: torch.cuda.CUDAGraph | None = None
        if capture:
            state = [*module.state_dict().values(), *optimizer.changing, self._place]
            self._graph = captured(self._step, state, module.device)

    def run(self, first: int, count: int, add: Callable[[str, Tensor], None]) -> Tensor:
        """Take ``count`` steps from step ``first`` and return their losses, (count,).

        Args:
            first: number of the first step.
            count: number of steps.
            add: receives the sum of each metric over the steps.
        """
        module = self._module
        rates = [module.learning_rate(step) for step in range(first, first + count)]
        self._rates[:count].copy_(torch.tensor(rates))
        self._turn.zero_()
        for total in self._sums.values():
            total.zero_()
        for step in range(first, first + count):
            self._load(step)
            if self._graph is None:
                self._step()
            else:
                self._graph.replay()
        for name, total in self._sums.items():
            add(name, total.clone())
        losses: Tensor = self._losses[:count].clone()
        return losses

    def _load(self, step: int) -> None:
        """Put the block of batches that has the one of a step where the graph reads it."""
        block, place = self._module.block(step)
        if block is not self._loaded:
            self._loaded = block  # first, so that the one before needs no memory any more
            _copy(stacked(block), self._block)
            self._place.fill_(place)

    def _step(self) -> None:
        module = self._module
        batch = mapped(self._block, lambda column: column.index_select(0, self._place).squeeze(0))
        loss, metrics = module.gradient_step(module.prepared(batch))
        self._optimizer.update(self._rates.index_select(0, self._turn).squeeze(0))
        self._losses.index_copy_(0, self._turn, loss.detach().reshape(1).float())
        for name, value in metrics.items():
            if name not in self._sums:
                self._sums[name] = torch.zeros_like(value.detach())
            self._sums[name] += value.detach()
        self._place += 1
        self._turn += 1


def captured(step: Callable[[], None], state: Sequence[Tensor], device: torch.device) -> torch.cuda.CUDAGraph:
    """Capture a step as a graph, after a few that only warm up.

    Args:
        step: works on tensors that keep their place.
        state: tensors that a step changes, which stay as they are.
        device: the GPU.

    Raises:
        RuntimeError: a graph cannot do what the step does.
    """
    before = [value.clone() for value in state]

    def restore() -> None:
        for value, old in zip(state, before, strict=True):
            value.copy_(old)

    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    try:
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                step()
                restore()  # now, because a block may have a single batch
        torch.cuda.current_stream(device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # The outer context also leaves the stream of a capture that fails. Threads that read batches ahead may go on.
        outer = torch.cuda.stream(torch.cuda.current_stream(device))
        with outer, torch.cuda.graph(graph, capture_error_mode="thread_local"):
            step()
        return graph
    finally:
        restore()


def _copy(source: Any, target: Any) -> None:
    """Copy the tensors of a batch into those of another."""
    for new, old in zip(columns(source), columns(target), strict=True):
        old.copy_(new)
