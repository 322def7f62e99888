from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from cvl_pipeline.networks.mlp import MLP, Standardise, transposed_product


def test_hidden_layers_are_normalised_and_the_last_layer_is_linear() -> None:
    torch.manual_seed(0)
    kinds = [type(layer) for layer in MLP(5, (7, 6), 2)]
    assert kinds == [nn.Linear, nn.LayerNorm, nn.ReLU, nn.Linear, nn.LayerNorm, nn.ReLU, nn.Linear]
    outputs = MLP(5, (7, 6), 2)(torch.randn(200, 5, generator=torch.Generator().manual_seed(0)))
    assert outputs.shape == (200, 2)
    assert (outputs < 0).any()
    assert (outputs > 0).any()


def test_without_hidden_layers_it_is_one_linear_map() -> None:
    network = MLP(3, (), 2)
    layer = network[0]
    assert isinstance(layer, nn.Linear)
    inputs = torch.randn(4, 3)
    assert torch.equal(network(inputs), inputs @ layer.weight.T + layer.bias)


def _joined(network: MLP) -> Tensor:
    """Make the network's parameters one variable; return the memory of its gradient."""
    parameters = list(network.parameters())
    values = torch.cat([parameter.detach().flatten() for parameter in parameters])
    for parameter, part in zip(parameters, torch.split(values, [p.numel() for p in parameters]), strict=True):
        parameter.data = part.view_as(parameter)
    gradient = torch.full_like(values, torch.nan)
    network.join(values, gradient)
    return gradient


def _modules(network: MLP, inputs: Tensor) -> Tensor:
    outputs: Tensor = nn.Sequential(*network)(inputs)
    return functional.normalize(outputs, dim=-1) if network.unit_norm else outputs


@given(
    rows=st.integers(1, 9),
    inputs=st.integers(1, 9),
    hidden=st.lists(st.integers(1, 9), max_size=3),
    outputs=st.integers(1, 9),
    unit_norm=st.booleans(),
    of_inputs=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_a_network_in_training_equals_its_modules(
    rows: int, inputs: int, hidden: list[int], outputs: int, unit_norm: bool, of_inputs: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    network = MLP(inputs, hidden, outputs, unit_norm).double()
    batch = torch.randn(rows, inputs, dtype=torch.float64, requires_grad=of_inputs)
    weights = torch.randn(rows, outputs, dtype=torch.float64)
    expected = _modules(network, batch)
    wanted = torch.autograd.grad((expected * weights).sum(), [*network.parameters(), *[batch] * of_inputs])
    gradient = _joined(network)
    found = network(batch)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert network.variable is not None
    variables = [network.variable.values, *[batch] * of_inputs]
    gradients = torch.autograd.grad((found * weights).sum(), variables)
    assert gradients[0].data_ptr() == gradient.data_ptr()  # not copied
    sizes = [parameter.numel() for parameter in network.parameters()]
    parts = [*torch.split(gradients[0], sizes), *gradients[1:]]
    for part, want in zip(parts, wanted, strict=True):
        torch.testing.assert_close(part, want.reshape(part.shape), rtol=1e-9, atol=1e-9)


def test_outputs_are_in_single_precision_under_autocast() -> None:
    """Values of 200 that differ by a tenth would be equal in bfloat16."""
    network = MLP(3, (16,), 1)
    inputs = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    last = network[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.bias.fill_(200.0)
        exact = network(inputs)
        with torch.autocast("cpu", torch.bfloat16):
            outputs = network(inputs)
    assert outputs.dtype == torch.float32
    assert float((outputs - exact).abs().max()) < 0.05


def test_a_network_that_a_loss_uses_twice_has_the_sum_of_both_gradients() -> None:
    torch.manual_seed(0)
    network = MLP(3, (5,), 2).double()
    first, second = torch.randn(2, 4, 3, dtype=torch.float64)
    loss = network(first).square().sum() + network(second).sin().sum()
    wanted = torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(network.parameters()))])
    _joined(network)
    assert network.variable is not None
    loss = network(first).square().sum() + network(second).sin().sum()
    (found,) = torch.autograd.grad(loss, [network.variable.values])
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_other_leading_axes_are_kept_in_training() -> None:
    network = MLP(3, (5,), 2, unit_norm=True)
    inputs = torch.randn(4, 6, 3)
    expected = _modules(network, inputs)
    _joined(network)
    torch.testing.assert_close(network(inputs), expected)


def test_the_gradient_in_training_cannot_be_differentiated_again() -> None:
    network = MLP(3, (5,), 2)
    _joined(network)
    assert network.variable is not None
    loss = network(torch.randn(4, 3)).square().sum()
    (gradient,) = torch.autograd.grad(loss, [network.variable.values], create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(gradient.sum(), [network.variable.values])


def test_a_copy_of_a_network_in_training_has_parameters_of_its_own() -> None:
    network = MLP(3, (5,), 2)
    _joined(network)
    twin = copy.deepcopy(network)
    assert twin.variable is None
    with torch.no_grad():
        next(network.parameters()).add_(1.0)
    assert not torch.equal(next(twin.parameters()), next(network.parameters()))
    gradients = torch.autograd.grad(twin(torch.randn(4, 3)).sum(), list(twin.parameters()))
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


@pytest.mark.parametrize("sizes", [(7, 2), (2, 7), (3, 3)])  # high, wide and square
@pytest.mark.parametrize("given_memory", [False, True])
def test_the_transposed_product_is_the_product_in_rows(sizes: tuple[int, int], given_memory: bool) -> None:
    left, right = (torch.randn(5, size, dtype=torch.float64) for size in sizes)
    memory = torch.full(sizes, torch.nan, dtype=torch.float64) if given_memory else None
    product = transposed_product(left, right, memory)
    torch.testing.assert_close(product, left.t() @ right)
    assert product.is_contiguous()
    assert memory is None or product.data_ptr() == memory.data_ptr()


def test_standardise_starts_as_the_identity_and_then_divides_by_the_spread() -> None:
    layer = Standardise(2)
    values = torch.tensor([[1.0, 2.0], [3.0, 8.0]])
    assert torch.equal(layer(values), values)
    layer.fit(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 3.0]))
    np.testing.assert_allclose(layer(values), [[0.0, 0.0], [1.0, 2.0]])


def test_statistics_are_stored_with_the_weights_and_not_trained() -> None:
    layer = Standardise(2)
    layer.fit(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 3.0]))
    other = Standardise(2)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(torch.ones(2)), layer(torch.ones(2)))
    assert list(layer.parameters()) == []
