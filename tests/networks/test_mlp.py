from __future__ import annotations

import numpy as np
import torch
from torch import nn

from cvl_pipeline.networks.mlp import Standardise, mlp


def test_hidden_layers_are_normalised_and_the_last_layer_is_linear() -> None:
    torch.manual_seed(0)
    kinds = [type(layer) for layer in mlp(5, (7, 6), 2)]
    assert kinds == [nn.Linear, nn.LayerNorm, nn.ReLU, nn.Linear, nn.LayerNorm, nn.ReLU, nn.Linear]
    outputs = mlp(5, (7, 6), 2)(torch.randn(200, 5, generator=torch.Generator().manual_seed(0)))
    assert outputs.shape == (200, 2)
    assert (outputs < 0).any()
    assert (outputs > 0).any()


def test_without_hidden_layers_it_is_one_linear_map() -> None:
    network = mlp(3, (), 2)
    layer = network[0]
    assert isinstance(layer, nn.Linear)
    inputs = torch.randn(4, 3)
    assert torch.equal(network(inputs), inputs @ layer.weight.T + layer.bias)


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
