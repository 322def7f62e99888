from __future__ import annotations

import pytest
import torch
from torch import Generator, Tensor, nn

from cvl_pipeline.networks.mlp import MLP
from cvl_pipeline.testing.builders import training_parameters
from cvl_pipeline.training.fit import fit
from cvl_pipeline.training.module import OfflineModule
from cvl_pipeline.training.vector import Adam, ParameterVector, Part


class Mixed(nn.Module):
    """Two networks that can be joined, one layer that cannot, and a frozen network."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = MLP(3, (5,), 4)
        self.scale = nn.Parameter(torch.tensor([0.5]))
        self.frozen = MLP(3, (5,), 4).requires_grad_(False)
        self.second = MLP(4, (), 2)
        self.last = nn.Linear(2, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.scale * self.first(inputs) + self.frozen(inputs)
        outputs: Tensor = self.last(self.second(hidden)).square().mean()
        return outputs


def _parameters(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


@pytest.mark.parametrize("join", [True, False])
def test_gradient_and_order_are_those_of_the_parameters(join: bool) -> None:
    module, inputs = Mixed(), torch.randn(6, 3)
    expected = torch.autograd.grad(module(inputs), _parameters(module))
    vector = ParameterVector(module, _parameters(module), join)
    assert torch.equal(vector.values, torch.cat([p.detach().flatten() for p in _parameters(module)]))
    for _ in range(2):  # the second gradient replaces the first
        vector.differentiate(module(inputs))
        assert vector.values.grad is not None
        torch.testing.assert_close(vector.values.grad, torch.cat([part.flatten() for part in expected]))
    assert module.frozen.variable is None


def test_a_network_that_the_loss_does_not_use_has_no_gradient() -> None:
    module = Mixed()
    vector = ParameterVector(module, _parameters(module))
    vector.differentiate(module(torch.randn(6, 3)))
    vector.differentiate(module.second(torch.randn(6, 4)).sum())
    assert vector.values.grad is not None
    first = sum(parameter.numel() for parameter in module.first.parameters())
    assert not vector.values.grad[:first].any()
    assert vector.values.grad[first + 1 :].any()


def test_parts_are_the_gradient_if_joined_networks_have_all_parameters() -> None:
    mixed = Mixed()
    assert not ParameterVector(mixed, _parameters(mixed)).joint
    network, inputs = MLP(3, (5,), 2), torch.randn(6, 3)
    assert not ParameterVector(network, _parameters(network), join=False).joint
    expected = torch.autograd.grad(network(inputs).sum(), _parameters(network))
    vector = ParameterVector(network, _parameters(network))
    assert vector.joint
    variable = network.variable
    assert variable is not None
    outputs, kept = variable.run(inputs)
    variable.differentiate(torch.ones_like(outputs), kept, variable.parts)
    vector.take_parts()
    assert vector.values.grad is not None
    torch.testing.assert_close(vector.values.grad, torch.cat([part.flatten() for part in expected]))


def test_released_networks_are_differentiated_by_their_own_parameters() -> None:
    module = Mixed()
    vector = ParameterVector(module, _parameters(module))
    vector.release()
    gradients = torch.autograd.grad(module(torch.randn(6, 3)), _parameters(module))
    assert all(gradient.any() for gradient in gradients)


def test_steps_are_those_of_torchs_adam() -> None:
    module, twin = Mixed(), Mixed()
    vector = ParameterVector(module, _parameters(module))
    ours = Adam(vector.values, 1e-2)
    theirs = torch.optim.Adam(_parameters(twin), lr=1e-2)
    for step in range(10):
        inputs = torch.randn(6, 3, generator=torch.Generator().manual_seed(step))
        rate = 1e-2 / (1 + step)
        vector.differentiate(module(inputs))
        ours.param_groups[0]["lr"] = rate
        ours.step()
        theirs.zero_grad()
        twin(inputs).backward()
        theirs.param_groups[0]["lr"] = rate
        theirs.step()
    for one, two in zip(module.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


def test_moments_are_restored_with_the_optimiser() -> None:
    values = nn.Parameter(torch.zeros(3))
    optimizer = Adam(values, 0.1)
    values.grad = torch.ones(3)
    optimizer.step()
    again = Adam(nn.Parameter(torch.zeros(3)), 0.1)
    again.load_state_dict(optimizer.state_dict())
    for one, two in zip(optimizer.moments, again.moments, strict=True):
        assert torch.equal(one, two)
    assert float(again.moments[2]) == 1.0


class Failing(OfflineModule):
    """Ends in the middle of its training."""

    def __init__(self) -> None:
        super().__init__(training_parameters(steps=60), 0)
        self.network = MLP(1, (4,), 1)

    def draw(self, batches: int, generator: Generator) -> list[int]:
        return list(range(batches))

    def training_loss(self, batch: int) -> tuple[Tensor, dict[str, Tensor]]:
        assert self.network.variable is not None
        if batch == 30:
            raise RuntimeError("the machine went away")
        return self.network(torch.ones(2, 1)).sum(), {}

    def validation_metrics(self, generator: Generator) -> dict[str, Tensor]:
        return {}


def test_networks_are_released_after_training_that_failed() -> None:
    module = Failing()
    with pytest.raises(RuntimeError, match="the machine went away"):
        fit(module, description="test")
    assert module.network.variable is None


def test_with_code_of_the_users_own_networks_stay_modules() -> None:
    module = Failing()
    module.own_code = True
    with pytest.raises(AssertionError):
        fit(module, description="test")


def test_parts_are_updated_at_their_own_rates_and_intervals() -> None:
    torch.manual_seed(0)
    values = nn.Parameter(torch.randn(5))
    start = values.detach().clone()
    optimizer = Adam(values, 0.1, [Part(size=2), Part(rate=0.5, interval=3, size=3)])
    whole = [nn.Parameter(start[:2].clone()), nn.Parameter(start[2:].clone())]
    reference = [torch.optim.Adam([whole[0]], lr=0.1), torch.optim.Adam([whole[1]], lr=0.05)]
    for turn in range(7):
        values.grad = torch.randn(5)
        for place, (part, alone) in enumerate(zip(whole, reference, strict=True)):
            part.grad = values.grad[:2].clone() if place == 0 else values.grad[2:].clone()
            if place == 0 or turn % 3 == 0:
                alone.step()
        optimizer.step()
        torch.testing.assert_close(values.detach(), torch.cat([part.detach() for part in whole]))
    assert optimizer.moments[2].tolist() == [7.0, 3.0]


@pytest.mark.parametrize("parts", [(), (Part(size=2, decay=0.0), Part(rate=0.5, size=3))])
def test_decay_is_that_of_torchs_adamw(parts: tuple[Part, ...]) -> None:
    torch.manual_seed(0)
    values = nn.Parameter(torch.randn(5))
    optimizer = Adam(values, 0.1, parts, decay=0.7)
    pieces = torch.split(values.detach().clone(), [2, 3])
    whole = [nn.Parameter(piece) for piece in pieces]
    reference = [
        torch.optim.AdamW([whole[0]], lr=0.1, weight_decay=0.0 if parts else 0.7),
        torch.optim.AdamW([whole[1]], lr=0.05 if parts else 0.1, weight_decay=0.7),
    ]
    for _ in range(5):
        values.grad = torch.randn(5)
        for part, gradient, alone in zip(whole, torch.split(values.grad, [2, 3]), reference, strict=True):
            part.grad = gradient.clone()
            alone.step()
        optimizer.step()
        torch.testing.assert_close(values.detach(), torch.cat([part.detach() for part in whole]))


@pytest.mark.parametrize("turn", [0, 2**24 - 2, 2**24])
def test_delayed_parts_keep_their_intervals_after_millions_of_steps(turn: int) -> None:
    """Checkpoints of older versions have the number of all steps."""
    values = nn.Parameter(torch.zeros(3))
    optimizer = Adam(values, 0.1, [Part(size=1), Part(interval=2, size=1), Part(interval=3, size=1)])
    values.grad = torch.ones(3)
    optimizer.step()
    optimizer.state[values]["turn"].fill_(turn)
    changed = []
    for _ in range(12):
        before = values.detach().clone()
        optimizer.step()
        changed.append((values.detach() != before).tolist())
    assert changed == [[True, step % 2 == 0, step % 3 == 0] for step in range(turn, turn + 12)]


def test_parts_resume_where_they_were() -> None:
    torch.manual_seed(0)
    parts, gradients = [Part(size=2), Part(interval=2, size=1)], torch.randn(6, 3)
    ends = []
    for saved_at in (None, 3):
        values = nn.Parameter(torch.zeros(3))
        optimizer = Adam(values, 0.1, parts)
        for turn, gradient in enumerate(gradients):
            if turn == saved_at:
                state = optimizer.state_dict()
                optimizer = Adam(values, 0.1, parts)
                optimizer.load_state_dict(state)
            values.grad = gradient.clone()
            optimizer.step()
        ends.append(values.detach().clone())
    assert torch.equal(*ends)
