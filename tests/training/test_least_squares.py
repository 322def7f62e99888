"""Least squares by Adam."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from cvl_pipeline.networks.mlp import MLP
from cvl_pipeline.training.least_squares import Batch, fit_least_squares


def _batches(steps: int, seed: int = 0) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        inputs = torch.randn(32, 3, generator=generator)
        yield inputs, inputs[:, 0] - 0.5 * inputs[:, 1], torch.rand(32, generator=generator)


def test_networks_that_diverge_are_not_returned() -> None:
    with pytest.raises(FloatingPointError, match=r"least squares became nan: lower the learning rate \(1\)"):
        fit_least_squares(MLP(3, (8,), 1), _batches(200), batch_size=32, learning_rate=1.0, weight_decay=1e3)


@pytest.mark.parametrize(("cosine_steps", "decay"), [(None, 0.0), (20, 0.0), (20, 3.0)])
def test_steps_are_those_of_torchs_adam_and_schedule(cosine_steps: int | None, decay: float) -> None:
    torch.manual_seed(0)
    network = MLP(3, (8, 8), 1)
    expected = copy.deepcopy(network)
    optimizer = torch.optim.AdamW(expected.parameters(), lr=1e-2, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
    for inputs, targets, weights in _batches(20):
        errors = (expected(inputs).squeeze(-1) - targets).square()
        optimizer.zero_grad()
        ((weights * errors).sum() / weights.sum()).backward()
        optimizer.step()
        if cosine_steps:
            schedule.step()
    with torch.no_grad():  # as its callers may be
        fit_least_squares(
            network,
            _batches(20),
            batch_size=32,
            learning_rate=1e-2,
            cosine_steps=cosine_steps,
            weight_decay=decay,
        )
    for (name, one), other in zip(network.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, msg=name)


def test_a_linear_function_is_found_and_errors_without_weight_do_not_count() -> None:
    def batches() -> Iterator[Batch]:
        for inputs, targets, _ in _batches(600):
            wrong: Tensor = torch.arange(len(targets)) % 2 == 0
            yield inputs, torch.where(wrong, 100.0, targets), (~wrong).float()

    torch.manual_seed(0)
    network = MLP(3, (), 1)
    fit_least_squares(network, batches(), batch_size=32, learning_rate=3e-2, cosine_steps=600)
    assert isinstance(network[0], torch.nn.Linear)
    torch.testing.assert_close(
        network[0].weight.detach(), torch.tensor([[1.0, -0.5, 0.0]]), rtol=0.0, atol=1e-2
    )


def test_only_parameters_that_require_a_gradient_change() -> None:
    torch.manual_seed(0)
    network = MLP(3, (4,), 1)
    network[0].requires_grad_(False)
    before = copy.deepcopy(network)
    fit_least_squares(network, _batches(3), batch_size=32, learning_rate=1e-2)
    for index, changes in ((0, False), (3, True)):
        layers = network[index], before[index]
        assert all(isinstance(layer, torch.nn.Linear) for layer in layers)
        assert torch.equal(layers[0].weight, layers[1].weight) != changes  # type: ignore[arg-type]
