"""The Lightning module that every training stage builds on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import lightning
import numpy as np
import torch
from torch import Generator, Tensor

from cvl_pipeline.training.parameters import TrainingParameters
from cvl_pipeline.training.seeds import stream_seed

CHUNK = 25
"""Gradient steps in one Lightning step. The trainer's own work per step is of the size of a small
network's, so it is paid once for many. A constant: it changes no result, only the overhead."""


class OfflineModule(lightning.LightningModule):
    """Trains on batches that it draws itself, by index arithmetic on the device that holds the data.

    A subclass says what one gradient step minimises and what is measured on held-out data. The batch of
    step n depends on the seed and n alone, so training that was interrupted and resumed draws the very
    batches of training that was not.
    """

    def __init__(self, training: TrainingParameters, seed: int) -> None:
        """Keep the parameters; nothing is drawn yet."""
        super().__init__()
        self.training_parameters = training
        self.seed = seed
        self.automatic_optimization = False
        self.rows: list[dict[str, float]] = []  # one a validation interval
        self._sums: dict[str, Tensor] = {}
        self._validation: Mapping[str, Tensor] = {}

    def training_loss(self, generator: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of one batch drawn with ``generator``, and metrics to record (scalars)."""
        raise NotImplementedError

    def validation_metrics(self, generator: Generator) -> dict[str, Tensor]:
        """Metrics on held-out data; ``generator`` is the same at every call."""
        raise NotImplementedError

    def trained_parameters(self) -> list[torch.nn.Parameter]:
        """What the optimiser changes."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam over the trained parameters."""
        return torch.optim.Adam(
            self.trained_parameters(), lr=self.training_parameters.learning_rate, foreach=True
        )

    def learning_rate(self, step: int) -> float:
        """Learning rate of a step: from the parameter's value down to zero along half a cosine."""
        parameters = self.training_parameters
        return parameters.learning_rate * 0.5 * (1.0 + math.cos(math.pi * step / parameters.steps))

    def chunks(self) -> list[int]:
        """Gradient steps of each Lightning step of one epoch; an epoch is one validation interval."""
        interval = min(self.training_parameters.validation_interval, self.training_parameters.steps)
        full, rest = divmod(interval, CHUNK)
        return [CHUNK] * full + ([rest] if rest else [])

    def training_step(self, steps: int) -> None:
        """Take ``steps`` gradient steps, or as many as are left."""
        optimizer = self.optimizers()
        assert isinstance(optimizer, lightning.pytorch.core.optimizer.LightningOptimizer)
        generator = Generator(device=self.device)
        first = self.global_step
        for step in range(first, min(first + steps, self.training_parameters.steps)):
            generator.manual_seed(stream_seed(self.seed, "training", step))
            loss, metrics = self.training_loss(generator)
            optimizer.zero_grad(set_to_none=True)
            self.manual_backward(loss)
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate(step)
            optimizer.step()
            for name, value in {"loss": loss, **metrics}.items():
                self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + value.detach()
            self._sums["steps"] = self._sums.get("steps", torch.zeros_like(loss)) + 1.0

    def validation_step(self, _: int) -> None:
        """Measure on held-out data."""
        generator = Generator(device=self.device)
        generator.manual_seed(stream_seed(self.seed, "validation", 0))
        self._validation = self.validation_metrics(generator)

    def on_train_epoch_end(self) -> None:
        """Close the interval's row of the history; a loss that is not a number ends the training."""
        steps = float(self._sums.pop("steps"))
        row = {"step": float(self.global_step)}
        row |= {f"train/{name}": float(total) / steps for name, total in self._sums.items()}
        row |= {f"validation/{name}": float(value) for name, value in self._validation.items()}
        self._sums = {}
        self.rows.append(row)
        if not np.isfinite(row["train/loss"]):
            raise FloatingPointError(
                f"the loss became {row['train/loss']} between steps {int(row['step'] - steps)} and "
                f"{int(row['step'])} (seed {self.seed}); lower training.learning_rate"
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the history with the weights."""
        checkpoint["history"] = self.rows

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the history up again."""
        self.rows = checkpoint["history"]
