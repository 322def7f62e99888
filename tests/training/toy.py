"""A training problem that takes no time: fit a line to random points."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from cvl_pipeline.training.module import OfflineModule
from cvl_pipeline.training.parameters import TrainingParameters
from cvl_pipeline.training.processes import own_share


class LineFit(OfflineModule):
    """Fits y = 2 x - 1 and records every step; can fail or return NaN at a given step."""

    def __init__(
        self,
        training: TrainingParameters,
        seed: int,
        *,
        fail_at: int | None = None,
        failure: BaseException | None = None,
        nan_at: int | None = None,
    ) -> None:
        super().__init__(training, seed)
        self.weight = torch.nn.Parameter(torch.zeros(2))
        self._fail_at = fail_at
        self._failure = failure or RuntimeError("the machine went away")
        self._nan_at = nan_at
        self.losses: list[float] = []
        self.first_draws: list[float] = []
        self.weights_after: dict[int, float] = {}
        self.validation_draws: list[float] = []

    def draw(self, batches: int, generator: Generator) -> list[Tensor]:
        size = self.training_parameters.batch_size
        return list(torch.randn(batches, size, generator=generator))

    def training_loss(self, batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        step = self.global_step
        if step == self._fail_at:
            raise self._failure
        x = own_share(batch)
        loss = (self.weight[0] * x + self.weight[1] - (2.0 * x - 1.0)).square().mean()
        if step == self._nan_at:
            loss = loss * torch.nan
        self.losses.append(float(loss.detach()))
        self.first_draws.append(float(x[0]))
        return loss, {"first_draw": x[0]}

    def validation_metrics(self, generator: Generator) -> dict[str, Tensor]:
        self.validation_draws.append(float(torch.randn(1, generator=generator)))
        return {"slope": self.weight[0].detach().clone()}

    def on_train_epoch_end(self) -> None:
        rows = len(self.rows)
        super().on_train_epoch_end()
        if len(self.rows) > rows:
            self.weights_after[self.global_step] = float(self.weight[0].detach())
