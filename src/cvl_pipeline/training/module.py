"""Base class of the Lightning modules of all training stages."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Protocol

import lightning
import torch
from pydantic import BaseModel
from torch import Generator, Tensor, nn

from cvl_pipeline.errors import InputError, one_line
from cvl_pipeline.training.batches import mapped, stacked
from cvl_pipeline.training.graph import StepGraph
from cvl_pipeline.training.parameters import TrainingParameters
from cvl_pipeline.training.prefetch import Prefetch, batches_in_block, fits
from cvl_pipeline.training.processes import average, gather, own_share, rank, world_size
from cvl_pipeline.training.seeds import stream_seed
from cvl_pipeline.training.vector import Adam, ParameterVector, Part

logger = logging.getLogger(__name__)

CHUNK = 25
"""Gradient steps per Lightning step. The trainer's overhead is as large as a small network's step, so it is
paid once for many. A constant: it changes no result, only the overhead."""
DRAWN = 64
"""Batches sampled at once: locating them in the log is cheap for many together, but not one by one."""


@dataclass(frozen=True)
class Noisy:
    """An entry of ``draw``, or its rows, with the noise of an augmentation, (B, ...)."""

    rows: Any
    noise: Tensor


OBSERVATIONS = ("observations", "futures", "goals")
"""Names of the fields of rows that are observations."""


class Augmentation(Protocol):
    """Random changes of the observations of a batch, such as ``episodes.shifts.RandomShift``."""

    def draw(self, count: int, generator: Generator) -> Tensor:
        """Draw the noise of ``count`` rows, (count, ...), with ``generator`` only."""

    def changed(self, observations: Tensor, noise: Tensor, place: int) -> Tensor:
        """Change observations, (B, ...); ``place`` is 0, or 1 for the second ones of the same rows."""


class OfflineModule(lightning.LightningModule):
    """Train on batches that the module samples by index arithmetic on the device that holds the data.

    That is the network's device. Data that do not fit a GPU stay on the CPU, and batches are read ahead of their steps
    (see ``prefetch``).

    A subclass defines the batches, the loss of a gradient step and the metrics on held-out data. The batch of
    step n depends only on the seed and n, so resumed training samples the same batches as uninterrupted
    training.

    A Lightning epoch is one chunk of steps, so that training can be saved and stopped after any chunk. A
    validation interval is a whole number of chunks.
    """

    graphable = False
    """Whether a step consists of operations on tensors alone: on a GPU, it is captured as a graph, and it may be
    counted by taking it once more."""
    own_code = False
    """Whether code of the user's own takes part in a step. It may differentiate twice, so networks stay modules."""
    default_decay = 0.0
    """Weight decay if the parameters set none."""
    own_read = False
    """Whether ``read`` is code of the user's own, which gets batches one by one, not a block of them as one."""

    def __init__(
        self, training: TrainingParameters, seed: int, stage_parameters: BaseModel | None = None
    ) -> None:
        """Set the parameters; no batch has been sampled yet.

        Args:
            training: how to train.
            seed: of the initial weights and the batches.
            stage_parameters: all parameters of the stage, for loggers; None: those of the training alone.
        """
        super().__init__()
        self.training_parameters = training
        self.stage_parameters = stage_parameters or training
        self.seed = seed
        self.automatic_optimization = False
        self.rows: list[dict[str, float]] = []  # one per validation interval
        self._sums: dict[str, Tensor] = {}
        self._validation: Mapping[str, Tensor] = {}
        self._block: tuple[int, Sequence[Any]] = 0, ()  # its first step and its batches
        self._graph: StepGraph | None = None
        self._prefetch: Prefetch | None = None  # if the log stays on the CPU
        self._drawn_on: str | None = None  # before a resumption
        self.augmentation: Augmentation | None = None

    def draw(self, batches: int, generator: Generator) -> Sequence[Any]:
        """Sample the places of the next batches in the data, one entry per batch, with ``generator`` only."""
        raise NotImplementedError

    def read(self, entry: Any) -> Any:
        """Rows of this process's share of an entry of ``draw``, a dataclass of tensors with a row per place.

        A module that calls ``place`` defines it. A thread calls it if the data stay on the CPU, with an entry that
        joins those of several batches.
        """
        raise NotImplementedError

    def prepared(self, batch: Any) -> Any:
        """What ``training_loss`` gets: an entry of a block, whose rows are read and augmented if that is asked for."""
        if self.augmentation is None:
            return batch
        if self._prefetch is None:
            batch = self._read_entry(batch)
        rows, noise = batch.rows, batch.noise
        names = [name for name in OBSERVATIONS if hasattr(rows, name)]
        changes = {
            name: self.augmentation.changed(getattr(rows, name), noise, place)
            for place, name in enumerate(names)
        }
        return replace(rows, **changes)

    def _read_entry(self, batch: Any) -> Any:
        """Rows of this process's share of an entry of a block."""
        if self.augmentation is None:
            return self.read(batch)
        return Noisy(self.read(batch.rows), own_share(batch.noise))

    def training_loss(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of one entry of ``draw``, or of what ``read`` made of it, and scalar metrics to record."""
        raise NotImplementedError

    def validation_metrics(self, generator: Generator) -> dict[str, Tensor]:
        """Metrics on held-out data; ``generator`` is the same in every call."""
        raise NotImplementedError

    def parts(self) -> Sequence[tuple[Iterable[nn.Parameter], Part]]:
        """Trained parameters that differ in how the optimiser treats them; none: all are alike."""
        return ()

    def without_decay(self, parameter: nn.Parameter) -> Sequence[tuple[Iterable[nn.Parameter], Part]]:
        """Parts in which one trained parameter does not decay, and all else does."""
        others = [each for each in self.parameters() if each.requires_grad and each is not parameter]
        return ([parameter], Part(decay=0.0)), (others, Part())

    def trained_parameters(self) -> list[nn.Parameter]:
        """Parameters that the optimiser changes, part after part."""
        parts = [parameter for parameters, _ in self.parts() for parameter in parameters]
        return parts or [parameter for parameter in self.parameters() if parameter.requires_grad]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Create the optimiser; the trained parameters become parts of one vector."""
        # Autocast needs the modules, too.
        join = self.training_parameters.precision != "bfloat16" and not self.own_code
        self._vector = ParameterVector(self, self.trained_parameters(), join)
        return self.make_optimizer(self._vector.values)

    def make_optimizer(self, values: nn.Parameter) -> torch.optim.Optimizer:
        """Create Adam."""
        parts = [
            part.sized(sum(parameter.numel() for parameter in parameters))
            for parameters, part in self.parts()
        ]
        return Adam(values, self.training_parameters.learning_rate, parts, self.weight_decay)

    @property
    def weight_decay(self) -> float:
        """Decoupled weight decay."""
        own = self.training_parameters.weight_decay
        return self.default_decay if own is None else own

    def learning_rate(self, step: int) -> float:
        """Learning rate of a step: half a cosine from the parameter's value down to zero."""
        parameters = self.training_parameters
        return parameters.learning_rate * 0.5 * (1.0 + math.cos(math.pi * step / parameters.steps))

    def release(self) -> None:
        """End the training: the parameters are the networks' own variables again."""
        self._graph = None
        if hasattr(self, "_vector"):  # otherwise, it ended before it began
            self._vector.release()

    @property
    def interval(self) -> int:
        """Gradient steps between two measurements."""
        return min(self.training_parameters.validation_interval, self.training_parameters.steps)

    @property
    def chunks(self) -> int:
        """Chunks per interval; its last one may be short, and those after the last step are empty."""
        return math.ceil(self.interval / CHUNK)

    def training_step(self, _: int) -> None:
        """Take the gradient steps of one chunk."""
        (optimizer,) = self.trainer.optimizers
        first = self.global_step
        in_interval = self.interval - first % self.interval
        count = min(CHUNK, in_interval, self.training_parameters.steps - first)
        if count <= 0:
            return
        graph = self._graph_of(optimizer)
        if graph is None:
            losses = self._run(optimizer, first, count)
        else:
            losses = graph.run(first, count, self._add)
            self._count(count)
        self._check(losses, first)

    def _count(self, steps: int) -> None:
        """Count steps for Lightning, whose own wrapper of the optimiser costs as much as the optimiser."""
        progress = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        for _ in range(steps):
            progress.increment_ready()
            progress.increment_completed()

    def _run(self, optimizer: torch.optim.Optimizer, first: int, count: int) -> Tensor:
        """Take ``count`` steps from step ``first`` and return their losses, (count,)."""
        losses = []
        for step in range(first, first + count):
            loss, metrics = self.gradient_step(self.prepared(self.batch(step)))
            optimizer.param_groups[0]["lr"] = self.learning_rate(step)
            optimizer.step()
            self._count(1)
            losses.append(loss.detach())
            for name, value in metrics.items():
                self._add(name, value.detach())
        return torch.stack(losses)

    def gradient_step(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Set the gradient of the trained parameters to that of the batch's loss; return the loss and the metrics.

        A module may override it if it knows the gradient without autograd.
        """
        loss, metrics = self.training_loss(batch)
        self.differentiate(loss)
        return loss, metrics

    def differentiate(self, loss: Tensor) -> None:
        """Set the gradient of the trained parameters to that of the loss."""
        self._vector.differentiate(loss)

    def _graph_of(self, optimizer: torch.optim.Optimizer) -> StepGraph | None:
        """The step as a CUDA graph, where there can be one."""
        if self._graph is None and self.graphable and self.device.type == "cuda" and world_size() == 1:
            assert isinstance(optimizer, Adam)
            try:
                self._graph = StepGraph(self, optimizer, self.global_step, CHUNK)
            except (RuntimeError, TypeError) as error:
                logger.warning("The gradient step is no CUDA graph, so it takes longer (%s)", one_line(error))
                self.graphable = False
        return self._graph

    def validation_step(self, _: int) -> None:
        """Measure on held-out data."""
        generator = Generator(device=self.data_device)
        generator.manual_seed(stream_seed(self.seed, "validation", 0))
        self._validation = self.validation_metrics(generator)

    def on_train_epoch_end(self) -> None:
        """Add the interval's row to the history if this chunk was its last."""
        if (self.current_epoch + 1) % self.chunks:
            return
        steps = float(self._sums.pop("steps"))
        row = {"step": float(self.global_step)}
        row |= {f"train/{name}": float(average(total)) / steps for name, total in self._sums.items()}
        row |= {f"validation/{name}": float(value) for name, value in self._validation.items()}
        self._sums = {}
        self.rows.append(row)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the history and the sums of the current interval with the weights."""
        checkpoint["history"] = self.rows
        checkpoint["drawn_on"] = self.data_device.type
        # The sums of every process, because only one process writes the checkpoint.
        checkpoint["sums"] = {name: gather(value.reshape(1)) for name, value in self._sums.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the history and the sums."""
        self.rows = checkpoint["history"]
        self._drawn_on = checkpoint.get("drawn_on")
        # If the number of processes has changed, each takes the mean, so the next average stays right.
        self._sums = {
            name: values[rank()] if len(values) == world_size() else values.mean()
            for name, values in checkpoint["sums"].items()
        }

    def on_train_start(self) -> None:
        """Move the restored sums to the device of the network."""
        self._sums = {name: value.to(self.device) for name, value in self._sums.items()}

    @property
    def data_device(self) -> torch.device:
        """Device that holds the data, and on which batches are drawn."""
        return torch.device("cpu") if self._prefetch is not None else self.device

    def place(self, *log: Tensor) -> torch.device:
        """Decide where the data are, by the size of their largest tensors, and return that device.

        Training that resumes on a GPU draws its batches where it did before, because devices draw different numbers.
        """
        stays = not fits(self.device, *log)
        if self._drawn_on is not None and self.device.type == "cuda":
            if stays and self._drawn_on == "cuda":
                raise InputError(
                    "this training began with the log on a GPU, which has too little free memory for it now; free "
                    "some, or delete the checkpoint to begin anew"
                )
            stays = self._drawn_on == "cpu"
        self.stop_prefetching()
        self._prefetch = Prefetch(self._read_from, self.device) if stays else None
        return self.data_device

    def stop_prefetching(self) -> None:
        """End the thread that reads batches, if there is one."""
        self._block = 0, ()
        if self._prefetch is not None:
            self._prefetch.close()

    def batch(self, step: int) -> Any:
        """The batch of a gradient step: an entry of ``draw``, or its rows if they were read ahead."""
        batches, place = self.block(step)
        return batches[place]

    def block(self, step: int) -> tuple[Sequence[Any], int]:
        """The block of batches that has the batch of a gradient step, and its place there."""
        first, batches = self._block
        if not first <= step < first + len(batches):
            if self._prefetch is None:
                number = step // DRAWN
                self._block = number * DRAWN, self._draw_block(number)
            else:
                self._block = self._prefetch.block(step)
            first, batches = self._block
        return batches, step - first

    def _draw_block(self, number: int) -> Sequence[Any]:
        generator = Generator(device=self.data_device)
        generator.manual_seed(stream_seed(self.seed, "training", number))
        entries = self.draw(DRAWN, generator)
        if self.augmentation is None:
            return entries
        noise = self.augmentation.draw(DRAWN * self.training_parameters.batch_size, generator)
        return [Noisy(*pair) for pair in zip(entries, noise.chunk(DRAWN), strict=True)]

    def _read_from(self, step: int) -> Iterator[tuple[int, Any]]:
        """Yield the blocks of rows from that of a step on; see ``Prefetch``."""
        size = 0
        for number in count(step // DRAWN):
            entries = self._draw_block(number)
            size = size or batches_in_block(DRAWN, self._read_entry(entries[0]))
            for place in range(0, DRAWN, size):
                first = number * DRAWN + place
                if first + size > step:
                    yield first, self._read_block(entries[place : place + size])

    def _read_block(self, entries: Sequence[Any]) -> Any:
        """Rows of this process's shares of some entries, as ``Prefetch`` takes them."""
        if self.own_read:
            return tuple(self._read_entry(entry) for entry in entries)
        # One entry, with the first process's shares of all entries before the second's. So its share joins theirs.
        joined = mapped(
            stacked(entries), lambda column: torch.cat(column.chunk(world_size(), dim=1)).flatten(0, 1)
        )
        parts = (len(entries), -1)
        return mapped(self._read_entry(joined), lambda column: column.unflatten(0, parts))  # type: ignore[no-untyped-call]

    def _check(self, losses: Tensor, first: int) -> None:
        """Add up the losses of a chunk; raise FloatingPointError if one is not finite."""
        losses = average(losses)  # over processes, so that a fault in one ends all
        self._add("loss", losses.sum())
        self._add("steps", torch.full_like(losses[0], len(losses)))
        finite = torch.isfinite(losses)
        if not finite.all():
            place = int((~finite).nonzero()[0])
            block, batch = divmod(first + place, DRAWN)
            raise FloatingPointError(
                f"the loss became {float(losses[place])} at step {first + place} (seed {self.seed}; batch "
                f"{batch} sampled with seed {stream_seed(self.seed, 'training', block)}); lower "
                "training.learning_rate"
            )

    def _add(self, name: str, value: Tensor) -> None:
        self._sums[name] = self._sums[name] + value if name in self._sums else value
