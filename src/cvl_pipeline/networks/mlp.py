"""Multilayer perceptrons and input standardisation."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

SMALLEST_NORM = 1e-12
"""Norms below it count as this, as in ``functional.normalize``."""


class MLP(nn.Sequential):
    """Linear layers with LayerNorm and ReLU between them; the last layer has neither.

    While it is trained, ``vector`` makes all its parameters one variable of the loss, with a forward and a backward
    pass of its own. The modules are the reference, and everything else uses them: torch's bookkeeping of every
    layer and parameter costs as much as the arithmetic between the matrix products.
    """

    vector: Vector | None = None

    def __init__(self, inputs: int, hidden: Sequence[int], outputs: int, unit_norm: bool = False) -> None:
        """Build the layers.

        Args:
            inputs: size of the last axis of the input.
            hidden: sizes of the hidden layers.
            outputs: size of the last axis of the output.
            unit_norm: whether outputs are divided by their norm, in single precision.
        """
        layers: list[nn.Module] = []
        sizes = [inputs, *hidden]
        for size_in, size_out in pairwise(sizes):
            layers += [nn.Linear(size_in, size_out), nn.LayerNorm(size_out), nn.ReLU()]
        super().__init__(*layers, nn.Linear(sizes[-1], outputs))
        self.unit_norm = unit_norm

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the outputs, (..., inputs) -> (..., outputs)."""
        if self.vector is not None and torch.is_grad_enabled():
            if inputs.ndim == 2:  # a view would be one more node to differentiate
                return self.vector.outputs(inputs)
            rows = self.vector.outputs(inputs.reshape(-1, inputs.shape[-1]))
            return rows.reshape(*inputs.shape[:-1], -1)
        outputs: Tensor = super().forward(inputs)  # type: ignore[no-untyped-call]
        # Under autocast, bfloat16 would round by 0.4 %.
        return functional.normalize(outputs.float(), dim=-1) if self.unit_norm else outputs

    def __getstate__(self) -> dict[str, Any]:
        """Leave the variable of the training out of copies, which have parameters of their own."""
        return {**self.__dict__, "vector": None}


class _Hidden(NamedTuple):
    """A hidden layer's weight (H, I) and bias (H,), and scale (H,), shift (H,), shape and epsilon of its LayerNorm."""

    weight: Tensor
    bias: Tensor
    scale: Tensor
    shift: Tensor
    shape: tuple[int, ...]
    epsilon: float


class Vector:
    """All parameters of a network as one variable, and the place of their gradient.

    Attributes:
        values: (N,), a leaf that shares its memory with the parameters.
        gradient: (N,), where the next backward pass writes the gradient instead of into new memory.
        free: whether it may. A second pass through the network in the same loss takes new memory.
    """

    def __init__(self, network: MLP, values: Tensor, gradient: Tensor) -> None:
        """Take parts of the values and of the gradient of everything that is trained, (N,) each."""
        self.values = values.detach().requires_grad_()
        self.gradient = gradient
        self.free = True
        self.unit_norm = network.unit_norm
        self.shapes = [parameter.shape for parameter in network.parameters()]
        self.gradients = self.split(gradient)
        *parameters, self.weight, self.bias = self.split(values.detach())
        norms = [layer for layer in network if isinstance(layer, nn.LayerNorm)]
        parts = zip(parameters[::4], parameters[1::4], parameters[2::4], parameters[3::4], norms, strict=True)
        self.hidden = [
            _Hidden(weight, bias, scale, shift, norm.normalized_shape, norm.eps)
            for weight, bias, scale, shift, norm in parts
        ]

    def split(self, vector: Tensor) -> list[Tensor]:
        """Views of a vector with the shapes of the network's parameters."""
        parts = torch.split(vector, [shape.numel() for shape in self.shapes])
        return [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def outputs(self, inputs: Tensor) -> Tensor:
        """Return the network's outputs, (B, inputs) -> (B, outputs)."""
        outputs: Tensor = _Fused.apply(inputs, self.values, self)  # type: ignore[no-untyped-call]
        return outputs

    def take(self) -> tuple[Tensor, list[Tensor]]:
        """Return memory for a gradient, as a vector and by parameter."""
        if self.free:
            self.free = False
            return self.gradient, self.gradients
        gradient = torch.empty_like(self.gradient)
        return gradient, self.split(gradient)


_relu_backward = torch.ops.aten.threshold_backward.grad_input
_norm_backward = torch.ops.aten.native_layer_norm_backward.default


class _Fused(torch.autograd.Function):
    """A whole network, with the kernels of its modules."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, values: Tensor, vector: Vector) -> Tensor:
        """Return the outputs, (B, inputs) -> (B, outputs)."""
        saved = []
        rows = inputs
        for weight, bias, scale, shift, shape, epsilon in vector.hidden:
            products = torch.addmm(bias, rows, weight.t())
            outputs, mean, deviation = torch.native_layer_norm(products, shape, scale, shift, epsilon)
            outputs.relu_()
            saved += [rows, products, mean, deviation]
            rows = outputs
        outputs = torch.addmm(vector.bias, rows, vector.weight.t())
        saved.append(rows)
        if vector.unit_norm:
            norms = torch.linalg.vector_norm(outputs, dim=-1, keepdim=True).clamp_min_(SMALLEST_NORM)
            outputs.div_(norms)
            saved += [norms, outputs]
        ctx.save_for_backward(*saved)
        ctx.vector = vector
        return outputs

    @staticmethod
    @once_differentiable  # the second derivative of a training loss is never asked for
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, None]:
        """Return the gradients of the inputs, if asked for, and of the parameters."""
        vector: Vector = ctx.vector
        saved = list(ctx.saved_tensors)
        whole, parts = vector.take()
        if vector.unit_norm:
            units, norms = saved.pop(), saved.pop()
            # The part along the output would change only the norm.
            along = torch.linalg.vecdot(gradient, units).unsqueeze(-1)
            gradient = torch.addcmul(gradient, along, units, value=-1.0).div_(norms)
        rows = saved.pop()
        torch.mm(gradient.t(), rows, out=parts[-2])
        torch.sum(gradient, 0, out=parts[-1])
        gradient = gradient.mm(vector.weight)
        for place in range(len(vector.hidden) - 1, -1, -1):
            weight, _, scale, shift, shape, _ = vector.hidden[place]
            below, products, mean, deviation = saved[4 * place : 4 * place + 4]
            of_weight, of_bias, of_scale, of_shift = parts[4 * place : 4 * place + 4]
            _relu_backward(gradient, rows, 0, grad_input=gradient)
            gradient, scales, shifts = _norm_backward(
                gradient, products, shape, mean, deviation, scale, shift, [True, True, True]
            )
            of_scale.copy_(scales)
            of_shift.copy_(shifts)
            torch.mm(gradient.t(), below, out=of_weight)
            torch.sum(gradient, 0, out=of_bias)
            if place or ctx.needs_input_grad[0]:
                gradient = gradient.mm(weight)
            rows = below
        return (gradient if ctx.needs_input_grad[0] else None), whole, None


class Standardise(nn.Module):
    """``(x - mean) / std`` per dimension with fixed statistics, stored with the module's weights."""

    mean: Tensor
    std: Tensor

    def __init__(self, size: int) -> None:
        """Start as the identity; ``fit`` or ``load_state_dict`` sets the statistics."""
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))

    def fit(self, mean: Tensor, std: Tensor) -> None:
        """Set the statistics, each of shape (size,)."""
        self.mean.copy_(mean)
        self.std.copy_(std)

    def forward(self, values: Tensor) -> Tensor:
        """Standardise the last axis."""
        return (values - self.mean) / self.std
