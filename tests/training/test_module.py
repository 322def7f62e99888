from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from cvl_pipeline.dynamics.module import train_dynamics
from cvl_pipeline.episodes.container import Transitions
from cvl_pipeline.testing.builders import dynamics_parameters, make_data, training_parameters
from cvl_pipeline.training import module as offline
from cvl_pipeline.training.fit import fit
from cvl_pipeline.training.module import OfflineModule
from cvl_pipeline.training.parameters import TrainingParameters
from tests.training.toy import LineFit


def test_chunk_size_changes_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, histories = [], []
    for chunk in (25, 1, 7):
        monkeypatch.setattr(offline, "CHUNK", chunk)
        line = LineFit(training_parameters(steps=40, validation_interval=30), 0)
        histories.append(fit(line, description="test"))
        weights.append(line.weight)
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[2])
    assert histories[0].equals(histories[1])


def test_chunk_size_changes_no_result_in_bfloat16(
    monkeypatch: pytest.MonkeyPatch, transitions: Transitions
) -> None:
    # Autocast may keep the bfloat16 copy of a weight until its context ends, which here holds many steps.
    histories = []
    for chunk in (25, 1):
        monkeypatch.setattr(offline, "CHUNK", chunk)
        _, history = train_dynamics(
            make_data(transitions, 4),
            dynamics_parameters(training={"precision": "bfloat16", "steps": 30, "learning_rate": 0.01}),
            0,
        )
        histories.append(history)
    assert histories[0].equals(histories[1])


def test_batch_depends_on_the_seed_and_the_step_alone() -> None:
    draws = []
    for seed, learning_rate, steps in ((0, 0.01, 20), (0, 0.5, 35), (1, 0.01, 20)):
        line = LineFit(
            training_parameters(steps=steps, validation_interval=9, learning_rate=learning_rate), seed
        )
        torch.manual_seed(steps)  # the global generator must not matter
        fit(line, description="test")
        draws.append(line.first_draws)
    assert draws[0] == draws[1][:20]
    assert not set(draws[0]) & set(draws[2])
    assert len(set(draws[0])) == 20


def test_only_parameters_that_require_gradients_are_trained() -> None:
    line = LineFit(training_parameters(), 0)
    line.fixed = torch.nn.Parameter(torch.ones(1), requires_grad=False)
    assert [id(parameter) for parameter in line.trained_parameters()] == [id(line.weight)]


class Slope(OfflineModule):
    """A loss of slope one under plain gradient descent: the weight is minus the sum of the learning rates."""

    def __init__(self, training: TrainingParameters) -> None:
        super().__init__(training, 0)
        self.weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def make_optimizer(self, values: torch.nn.Parameter) -> torch.optim.Optimizer:
        return torch.optim.SGD([values], lr=1.0)

    def draw(self, batches: int, generator: Generator) -> list[None]:
        return [None] * batches

    def training_loss(self, batch: None) -> tuple[Tensor, dict[str, Tensor]]:
        return self.weight.sum(), {}

    def validation_metrics(self, generator: Generator) -> dict[str, Tensor]:
        return {"weight": self.weight.detach().clone()}


def test_learning_rate_falls_along_half_a_cosine() -> None:
    history = fit(
        Slope(training_parameters(steps=60, validation_interval=20, learning_rate=0.3)), description="test"
    )
    rates = 0.3 * 0.5 * (1.0 + np.cos(np.pi * np.arange(60) / 60))
    assert rates[0] == 0.3
    expected = [-rates[:20].sum(), -rates[:40].sum(), -rates.sum()]
    assert history["validation/weight"].tolist() == pytest.approx(expected, rel=1e-9)


class Follower(Slope):
    """A loss whose gradient is the weight that autocast multiplies by: one tenth less with every step."""

    def __init__(self, training: TrainingParameters) -> None:
        super().__init__(training)
        self.weight = torch.nn.Parameter(torch.ones(1, 1))

    def make_optimizer(self, values: torch.nn.Parameter) -> torch.optim.Optimizer:
        return torch.optim.SGD([values], lr=0.1)

    def learning_rate(self, step: int) -> float:
        return 0.1

    def training_loss(self, batch: None) -> tuple[Tensor, dict[str, Tensor]]:
        product = torch.ones(1, 1) @ self.weight
        return 0.5 * product.float().square().sum(), {}


def test_every_step_in_bfloat16_takes_the_weights_of_the_step_before() -> None:
    module = Follower(training_parameters(steps=20, validation_interval=20, precision="bfloat16"))
    fit(module, description="test")
    assert module.weight.item() == pytest.approx(0.9**20, rel=0.02)
