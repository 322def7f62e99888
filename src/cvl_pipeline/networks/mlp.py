"""Multilayer perceptrons and input standardisation."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from cvl_pipeline.training.vector import Joint, Variable

SMALLEST_NORM = 1e-12
"""Norms below it count as this, as in ``functional.normalize``."""


class MLP(Joint, nn.Sequential):
    """Linear layers with LayerNorm and ReLU between them; the last layer has neither.

    While it is trained, all its parameters are one variable of the loss, with a forward and a backward pass of their
    own: torch's bookkeeping of every layer and parameter costs as much as the arithmetic between the matrix
    products. The modules are the reference, and everything else uses them.
    """

    variable: Layers | None = None

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
        if self.variable is not None and torch.is_grad_enabled():
            if inputs.ndim == 2:  # a view would be one more node to differentiate
                return self._fused(inputs, self.variable)
            rows = self._fused(inputs.reshape(-1, inputs.shape[-1]), self.variable)
            return rows.reshape(*inputs.shape[:-1], -1)
        if not self.unit_norm and torch.is_autocast_enabled(inputs.device.type):
            # bfloat16 would round outputs by 0.4 %: a Q of 200 by one, more than actions differ in it.
            *below, last = self
            for layer in below:
                inputs = layer(inputs)
            with torch.autocast(inputs.device.type, enabled=False):
                whole: Tensor = last(inputs.float())
                return whole
        outputs: Tensor = super().forward(inputs)  # type: ignore[no-untyped-call]
        # Under autocast, bfloat16 would round by 0.4 %.
        return functional.normalize(outputs.float(), dim=-1) if self.unit_norm else outputs

    def _fused(self, inputs: Tensor, variable: Layers) -> Tensor:
        outputs: Tensor = _Fused.apply(inputs, variable.values, variable)  # type: ignore[no-untyped-call]
        return outputs

    def join(self, values: Tensor, gradient: Tensor) -> Variable:
        """Make the parameters one variable; see ``Joint``."""
        self.variable = Layers(self, values, gradient)
        return self.variable


class _Hidden(NamedTuple):
    """A hidden layer's weight (H, I) and bias (H,), and scale (H,), shift (H,), shape and epsilon of its LayerNorm."""

    weight: Tensor
    bias: Tensor
    scale: Tensor
    shift: Tensor
    shape: tuple[int, ...]
    epsilon: float


def transposed_product(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """Return ``left.T @ right``, (B, M) and (B, N) -> (M, N), in ``out`` if it is given.

    On a CPU, the product of the other order is a fifth to a third faster if M > N, even with the copy that transposes
    it. This was measured with MKL for the gradients of a first layer and of the contrastive loss.
    """
    if left.device.type == "cpu" and left.shape[1] > right.shape[1]:
        product = torch.mm(right.t(), left).t()
        return product.contiguous() if out is None else out.copy_(product)
    return torch.mm(left.t(), right) if out is None else torch.mm(left.t(), right, out=out)


relu_backward = torch.ops.aten.threshold_backward.grad_input
norm_backward = torch.ops.aten.native_layer_norm_backward.default


class Layers(Variable):
    """The parameters of an MLP as one variable, and its passes with the kernels of its modules."""

    def __init__(self, network: MLP, values: Tensor, gradient: Tensor) -> None:
        """See ``Variable``."""
        super().__init__(network, values, gradient)
        self.unit_norm = network.unit_norm
        *parameters, self.weight, self.bias = self.split(values.detach())
        norms = [layer for layer in network if isinstance(layer, nn.LayerNorm)]
        parts = zip(parameters[::4], parameters[1::4], parameters[2::4], parameters[3::4], norms, strict=True)
        self.hidden = [
            _Hidden(weight, bias, scale, shift, norm.normalized_shape, norm.eps)
            for weight, bias, scale, shift, norm in parts
        ]

    def run(self, inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the outputs, (B, inputs) -> (B, outputs), and what ``differentiate`` needs."""
        kept = []
        rows = inputs
        for weight, bias, scale, shift, shape, epsilon in self.hidden:
            products = torch.addmm(bias, rows, weight.t())
            outputs, mean, deviation = torch.native_layer_norm(products, shape, scale, shift, epsilon)
            outputs.relu_()
            kept += [rows, products, mean, deviation]
            rows = outputs
        outputs = torch.addmm(self.bias, rows, self.weight.t())
        kept.append(rows)
        if self.unit_norm:
            norms = torch.linalg.vector_norm(outputs, dim=-1, keepdim=True).clamp_min_(SMALLEST_NORM)
            outputs.div_(norms)
            kept += [norms, outputs]
        return outputs, kept

    def differentiate(
        self, gradient: Tensor, kept: Sequence[Tensor], parts: Sequence[Tensor], of_inputs: bool = False
    ) -> Tensor | None:
        """Differentiate a loss by the parameters, and by the inputs if asked for.

        Args:
            gradient: the loss's gradient with respect to the outputs, (B, outputs).
            kept: the second result of ``run``.
            parts: where the gradient of each parameter is written.
            of_inputs: whether to return the gradient of the inputs, (B, inputs).
        """
        *kept_of_hidden, rows = kept[:-2] if self.unit_norm else kept
        if self.unit_norm:
            norms, units = kept[-2:]
            # The part along the output would change only the norm.
            along = torch.linalg.vecdot(gradient, units).unsqueeze(-1)
            gradient = torch.addcmul(gradient, along, units, value=-1.0).div_(norms)
        transposed_product(gradient, rows, out=parts[-2])
        torch.sum(gradient, 0, out=parts[-1])
        gradient = gradient.mm(self.weight)
        for place in range(len(self.hidden) - 1, -1, -1):
            weight, _, scale, shift, shape, _ = self.hidden[place]
            below, products, mean, deviation = kept_of_hidden[4 * place : 4 * place + 4]
            of_weight, of_bias, of_scale, of_shift = parts[4 * place : 4 * place + 4]
            relu_backward(gradient, rows, 0, grad_input=gradient)
            gradient, scales, shifts = norm_backward(
                gradient, products, shape, mean, deviation, scale, shift, [True, True, True]
            )
            of_scale.copy_(scales)
            of_shift.copy_(shifts)
            transposed_product(gradient, below, out=of_weight)
            torch.sum(gradient, 0, out=of_bias)
            if place or of_inputs:
                gradient = gradient.mm(weight)
            rows = below
        return gradient if of_inputs else None


class _Fused(torch.autograd.Function):
    """A whole network as one operation."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, values: Tensor, variable: Layers) -> Tensor:
        """Return the outputs, (B, inputs) -> (B, outputs)."""
        outputs, kept = variable.run(inputs)
        ctx.save_for_backward(*kept)
        ctx.variable = variable
        return outputs

    @staticmethod
    @once_differentiable  # the second derivative of a training loss is never asked for
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, None]:
        """Return the gradients of the inputs, if asked for, and of the parameters."""
        variable: Layers = ctx.variable
        whole, parts = variable.take()
        of_inputs = variable.differentiate(gradient, ctx.saved_tensors, parts, ctx.needs_input_grad[0])
        return of_inputs, whole, None


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
