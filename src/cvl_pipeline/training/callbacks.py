"""What happens around the gradient steps: progress, throughput, the best weights, checkpoints."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cvl_pipeline.io.storage import write_atomically
from cvl_pipeline.training.module import OfflineModule
from cvl_pipeline.training.processes import any_of, rank, world_size
from cvl_pipeline.training.progress import progress_bar

Watcher = Callable[[Mapping[str, float]], None]
"""Is shown rows of the history."""


class Progress(Callback):
    """Gradient steps done, of all."""

    def __init__(self, description: str, steps: int) -> None:
        """Describe the bar."""
        self._description = description
        self._steps = steps
        self._bar = progress_bar()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show it, in one of the processes."""
        self._task = self._bar.add_task(self._description, total=self._steps, completed=trainer.global_step)
        if trainer.is_global_zero:
            self._bar.start()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Move it."""
        self._bar.update(self._task, completed=trainer.global_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave its last state."""
        self._bar.stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave its last state."""
        self._bar.stop()


class Throughput(Checkpoint):
    """Writes metrics.csv and tells the loggers, once a validation interval, what was measured and how fast.

    Beside the module's row: ``throughput/steps_per_second`` and ``throughput/samples_per_second`` of the
    interval without its measurement, and ``throughput/model_flops_utilisation``, the operations of the matrix
    products of a step times steps per second, over the rate of one large product on the same device.

    A checkpoint callback by name alone: those run after the module has closed its row.
    """

    def __init__(self, folder: Path) -> None:
        """Write to the folder."""
        self._path = folder / "metrics.csv"
        self._rows: list[dict[str, float]] = []
        self._seconds = 0.0
        self._steps = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count operations and measure the machine."""
        assert isinstance(pl_module, OfflineModule)
        self._rows += pl_module.rows[len(self._rows) :]  # of a run that was begun without logs
        self._operations = operations_of_a_step(pl_module) * world_size()
        narrow = pl_module.training_parameters.precision == "bfloat16"
        rate = product_rate(pl_module.device, torch.bfloat16 if narrow else torch.float32)
        self._machine = rate * world_size()

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Take the time."""
        self._start, self._first = time.perf_counter(), trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Add it up; the losses of a chunk have just been waited for."""
        self._seconds += time.perf_counter() - self._start
        self._steps += trainer.global_step - self._first

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write and tell, if an interval was closed."""
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
            table = pd.DataFrame(self._rows)
            write_atomically(self._path, lambda partial: table.to_csv(partial, index=False))
            for logger in trainer.loggers:
                logger.log_metrics(row, step=int(row["step"]))

    def state_dict(self) -> dict[str, Any]:
        """The rows, which a resumed run writes again, and what was measured of the next."""
        return {"rows": self._rows, "seconds": self._seconds, "steps": self._steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them up."""
        self._rows = state_dict["rows"]
        self._seconds, self._steps = state_dict["seconds"], state_dict["steps"]


def operations_of_a_step(module: OfflineModule) -> float:
    """Floating-point operations of the matrix products and convolutions of one gradient step."""
    with FlopCounterMode(display=False) as counter, torch.enable_grad():
        loss, _ = module.training_loss(module.batch(0))
        loss.backward()  # type: ignore[no-untyped-call]
    module.zero_grad(set_to_none=True)
    return float(counter.get_total_flops())


def product_rate(device: torch.device, dtype: torch.dtype, size: int = 1024) -> float:
    """Floating-point operations a second of a square matrix product, the best of a few, as the machine is."""
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
    """Shows every row of the history to a function, which may raise to end the training.

    A checkpoint callback by name alone, as Throughput is.
    """

    def __init__(self, watch: Watcher) -> None:
        """Show the rows to ``watch``, those before a resumption too."""
        self._watch = watch
        self._shown = 0

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show what is new."""
        assert isinstance(pl_module, OfflineModule)
        rows = pl_module.rows[self._shown :]
        self._shown += len(rows)
        for row in rows:
            self._watch(row)


class BestWeights(Checkpoint):
    """Remembers the weights of the lowest held-out loss, and ends training that no longer lowers it."""

    def __init__(self, keep: Literal["last", "best"], patience: int | None) -> None:
        """Say what to do.

        Args:
            keep: the weights that training ends with.
            patience: measurements without a lower ``validation/loss`` that end it; None: none do.
        """
        self._keep = keep
        self._patience = patience
        self._lowest = float("inf")
        self._since = 0
        self._rows = 0
        self._weights: dict[str, Tensor] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End at once what had been resumed after its end."""
        self._stop_if_patience_is_over(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judge the interval that was closed, if one was."""
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
        # Agreed upon: machines of different kinds may measure losses that differ in their last digit.
        if self._patience is not None and any_of(self._since >= self._patience, module.device):
            trainer.should_stop = True

    def restore(self, module: OfflineModule) -> None:
        """Give the module the weights that are to be kept."""
        if self._weights:
            module.load_state_dict(self._weights)

    def state_dict(self) -> dict[str, Any]:
        """All of it."""
        return {
            "lowest": self._lowest, "since": self._since, "rows": self._rows, "weights": self._weights
        }  # fmt: skip

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it up."""
        self._lowest, self._since = state_dict["lowest"], state_dict["since"]
        self._rows, self._weights = state_dict["rows"], state_dict["weights"]


class Checkpoints(Checkpoint):
    """Saves unfinished training after a chunk of steps: by time, by steps, and when SIGTERM comes."""

    def __init__(self, folder: Path | None, seconds: float, steps: int | None) -> None:
        """Say where and when.

        Args:
            folder: of last.ckpt; None: nothing is saved, and SIGTERM only ends the training.
            seconds: between saves.
            steps: likewise; None: by time alone.
        """
        self.path = None if folder is None else folder / "last.ckpt"
        self._seconds = seconds
        self._steps = steps
        self._terminated = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock and listen."""
        self._saved, self._saved_step = time.monotonic(), trainer.global_step
        if threading.current_thread() is threading.main_thread():
            # In place of Lightning's, which sends messages to the other processes from within the handler.
            # Lightning puts the one before it back at the end.
            signal.signal(signal.SIGTERM, self._note)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save if it is time to; processes agree on it."""
        terminated = any_of(self._terminated, pl_module.device)
        if self.path is not None:
            late = time.monotonic() - self._saved >= self._seconds
            many = self._steps is not None and trainer.global_step - self._saved_step >= self._steps
            if terminated or any_of((late or many) and rank() == 0, pl_module.device):
                trainer.save_checkpoint(self.path)
                self._saved, self._saved_step = time.monotonic(), trainer.global_step
        if terminated:
            raise SIGTERMException

    def _note(self, *_: object) -> None:
        self._terminated = True
