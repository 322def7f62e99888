"""Callbacks around the gradient steps: progress, throughput, best weights, checkpoints."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cvl_pipeline.errors import InputError
from cvl_pipeline.io.storage import shown, write_atomically
from cvl_pipeline.training.loggers import naming, run_ids
from cvl_pipeline.training.module import OfflineModule
from cvl_pipeline.training.processes import any_of, rank, world_size
from cvl_pipeline.training.progress import progress_bar
from cvl_pipeline.training.threads import dense_operations, threads_are_chosen, threads_for

Watcher = Callable[[Mapping[str, float]], None]
"""Function that receives rows of the history."""


class Progress(Callback):
    """Progress bar of the gradient steps."""

    def __init__(self, description: str, steps: int) -> None:
        """Create the bar."""
        self._description = description
        self._steps = steps
        self._bar = progress_bar()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the bar in one process."""
        self._task = self._bar.add_task(self._description, total=self._steps, completed=trainer.global_step)
        if trainer.is_global_zero:
            self._bar.start()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Move the bar."""
        self._bar.update(self._task, completed=trainer.global_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the bar; its last state stays visible."""
        self._bar.stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop the bar; its last state stays visible."""
        self._bar.stop()


class Threads(Callback):
    """Let torch use as many threads as a gradient step on the CPU is worth (see ``threads``)."""

    def __init__(self) -> None:
        """Change nothing yet."""
        self._limit = ExitStack()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the operations of a step and set the number of threads."""
        assert isinstance(pl_module, OfflineModule)
        if pl_module.device.type == "cpu" and world_size() == 1 and threads_are_chosen():
            size = pl_module.training_parameters.batch_size
            counted = pl_module.graphable  # other steps may have effects
            operations = operations_of_a_step(pl_module) if counted else dense_operations(pl_module, size)
            self._limit.enter_context(threads_for(operations))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the number of threads."""
        self._limit.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restore the number of threads."""
        self._limit.close()


class Throughput(Checkpoint):
    """Write metrics.csv and log measurements and speed, once per validation interval.

    Adds to the module's row: ``throughput/steps_per_second`` and ``throughput/samples_per_second`` of the
    interval without its measurement, and ``throughput/model_flops_utilisation``: operations of the matrix
    products of a step, times steps per second, over the rate of one large product on the same device.

    A checkpoint callback only by name: those run after the module has closed its row.
    """

    def __init__(self, folder: Path) -> None:
        """Set the folder of metrics.csv."""
        self._path = folder / "metrics.csv"
        self._rows: list[dict[str, float]] = []
        self._seconds = 0.0
        self._steps = 0
        self._written = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the operations of a step and measure the machine."""
        assert isinstance(pl_module, OfflineModule)
        missing = pl_module.rows[len(self._rows) :]  # from a run that started without logs, such as a fleet
        self._rows += missing
        if trainer.is_global_zero:
            for row in missing:
                self._log(trainer, row)
        self._operations = operations_of_a_step(pl_module) * world_size()
        narrow = pl_module.training_parameters.precision == "bfloat16"
        rate = product_rate(pl_module.device, torch.bfloat16 if narrow else torch.float32)
        self._machine = rate * world_size()

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Start the clock."""
        self._start, self._first = time.perf_counter(), trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Add the elapsed time; the module has just waited for the losses of the chunk."""
        self._seconds += time.perf_counter() - self._start
        self._steps += trainer.global_step - self._first

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write and log a row if an interval has ended."""
        assert isinstance(pl_module, OfflineModule)
        if len(pl_module.rows) == len(self._rows):
            return
        speed = self._steps / self._seconds
        row = {
            **pl_module.rows[-1],
            "throughput/steps_per_second": speed,
            "throughput/samples_per_second": speed * pl_module.training_parameters.batch_size,
            "throughput/model_flops_utilisation": self._operations * speed / self._machine,
        }
        self._rows.append(row)
        self._seconds, self._steps = 0.0, 0
        if trainer.is_global_zero:
            self._write(trainer, row)

    def _write(self, trainer: Trainer, row: dict[str, float]) -> None:
        # Otherwise the folder would be created again, apart from the checkpoints and logs that were moved.
        if self._written and not self._path.exists():
            raise InputError(
                f"{shown(self._path)} was moved or deleted during training; move its folder back, and run the same "
                "command again"
            )
        table = pd.DataFrame(self._rows)
        write_atomically(self._path, lambda partial: table.to_csv(partial, index=False))
        self._written = True
        self._log(trainer, row)

    @staticmethod
    def _log(trainer: Trainer, row: dict[str, float]) -> None:
        for logger in trainer.loggers:
            with naming(logger):
                logger.log_metrics(row, step=int(row["step"]))

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Store the runs of the loggers, so that resumed training goes on in them."""
        checkpoint["runs"] = run_ids(trainer.loggers)

    def state_dict(self) -> dict[str, Any]:
        """The rows, which a resumed run writes again, and the measurements of the next row so far."""
        return {"rows": self._rows, "seconds": self._seconds, "steps": self._steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state."""
        self._rows = state_dict["rows"]
        self._seconds, self._steps = state_dict["seconds"], state_dict["steps"]


def operations_of_a_step(module: OfflineModule) -> float:
    """Floating-point operations of the matrix products and convolutions of one gradient step.

    Weights and buffers stay as they are, also if ``training_loss`` updates a moving average.
    """
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with FlopCounterMode(display=False) as counter, torch.enable_grad():
        loss, _ = module.training_loss(module.prepared(module.batch(0)))
        loss.backward()  # type: ignore[no-untyped-call]
    module.zero_grad(set_to_none=True)
    module.load_state_dict(before)
    return float(counter.get_total_flops())


def product_rate(device: torch.device, dtype: torch.dtype, size: int = 1024) -> float:
    """Floating-point operations per second of a square matrix product; best of four, under current load."""
    left, right = torch.rand(2, size, size, device=device).to(dtype)

    def seconds() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    times = []
    for _ in range(4):
        start = seconds()
        left @ right
        times.append(seconds() - start)
    return 2.0 * size**3 / min(times)


class Watch(Checkpoint):
    """Pass every row of the history to a function, which may raise to end the training.

    A checkpoint callback only by name, like Throughput.
    """

    def __init__(self, watch: Watcher) -> None:
        """Pass the rows to ``watch``, including those before a resumption."""
        self._watch = watch
        self._count = 0

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Pass on the new rows."""
        assert isinstance(pl_module, OfflineModule)
        rows = pl_module.rows[self._count :]
        self._count += len(rows)
        for row in rows:
            self._watch(row)


class BestWeights(Checkpoint):
    """Keep the weights of the lowest held-out loss, and end training that no longer lowers it."""

    def __init__(self, keep: Literal["last", "best"], patience: int | None) -> None:
        """Set which weights to keep and when to stop.

        Args:
            keep: the weights that training ends with.
            patience: measurements without a lower ``validation/loss`` that end training; None: no limit.
        """
        self._keep = keep
        self._patience = patience
        self._lowest = float("inf")
        self._since = 0
        self._rows = 0
        self._weights: dict[str, Tensor] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop at once if the patience was over before the resumption."""
        self._stop_if_patience_is_over(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the loss of the interval, if one has ended."""
        assert isinstance(pl_module, OfflineModule)
        if len(pl_module.rows) == self._rows:
            return
        self._rows = len(pl_module.rows)
        loss = pl_module.rows[-1]["validation/loss"]
        self._since += 1
        if loss < self._lowest:
            self._lowest, self._since = loss, 0
            if self._keep == "best":
                self._weights = {name: value.clone() for name, value in pl_module.state_dict().items()}
        self._stop_if_patience_is_over(trainer, pl_module)

    def _stop_if_patience_is_over(self, trainer: Trainer, module: LightningModule) -> None:
        # The processes agree on it: on different machines, losses may differ in the last digit.
        if self._patience is not None and any_of(self._since >= self._patience, module.device):
            trainer.should_stop = True

    def restore(self, module: OfflineModule) -> None:
        """Load the weights to keep into the module."""
        if self._weights:
            module.load_state_dict(self._weights)

    def state_dict(self) -> dict[str, Any]:
        """The complete state."""
        return {
            "lowest": self._lowest, "since": self._since, "rows": self._rows, "weights": self._weights
        }  # fmt: skip

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state."""
        self._lowest, self._since = state_dict["lowest"], state_dict["since"]
        self._rows, self._weights = state_dict["rows"], state_dict["weights"]


class Checkpoints(Checkpoint):
    """Save unfinished training after a chunk of steps: by time, by steps, and on SIGTERM.

    Attributes:
        terminated: whether SIGTERM arrived, in this process or, before the last chunk, in another one.
    """

    def __init__(self, folder: Path | None, seconds: float, steps: int | None) -> None:
        """Set where and how often to save.

        Args:
            folder: for last.ckpt; None: nothing is saved, and SIGTERM only ends the training.
            seconds: time between saves.
            steps: gradient steps between saves; None: by time only.
        """
        self.path = None if folder is None else folder / "last.ckpt"
        self._seconds = seconds
        self._steps = steps
        self.terminated = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock and handle SIGTERM."""
        self._saved, self._saved_step = time.monotonic(), trainer.global_step
        if threading.current_thread() is threading.main_thread():
            # Replaces Lightning's handler, which sends messages to the other processes while it runs.
            # Lightning restores the original handler at the end.
            signal.signal(signal.SIGTERM, self._note)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save if it is time to; the processes agree on it."""
        terminated = any_of(self.terminated, pl_module.device)
        if self.path is not None:
            late = time.monotonic() - self._saved >= self._seconds
            many = self._steps is not None and trainer.global_step - self._saved_step >= self._steps
            if terminated or any_of((late or many) and rank() == 0, pl_module.device):
                trainer.save_checkpoint(self.path)
                self._saved, self._saved_step = time.monotonic(), trainer.global_step
        if terminated:
            self.terminated = True
            raise SIGTERMException

    def _note(self, *_: object) -> None:
        self.terminated = True
