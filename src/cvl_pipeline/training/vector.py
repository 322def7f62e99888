"""Trained parameters as one vector, and its optimiser."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from cvl_pipeline.training.processes import average

SMALLEST_PIECE, PIECES = 4096, 64
"""Fewest numbers, and largest count, of the pieces of a vector that Adam's kernel gets on a GPU. It gives each block of
threads 65 536 numbers of a tensor, so a vector of 200 000 would keep four of more than a hundred processors busy."""


class Variable:
    """All parameters of a network as one variable of the loss, and the place of their gradient.

    Attributes:
        values: (N,), a leaf that shares its memory with the parameters.
        gradient: (N,), where the next backward pass writes the gradient instead of into new memory.
        parts: ``gradient`` by parameter, as views of their shapes.
        free: whether it may. A second pass through the network in the same loss takes new memory.
    """

    def __init__(self, network: nn.Module, values: Tensor, gradient: Tensor) -> None:
        """Take the network's parts of a vector of parameters and of its gradient, (N,) each."""
        self.values = values.detach().requires_grad_()
        self.gradient = gradient
        self.free = True
        self._shapes = [parameter.shape for parameter in network.parameters()]
        self.parts = self.split(gradient)

    def split(self, vector: Tensor) -> list[Tensor]:
        """Views of a vector, (N,), with the shapes of the network's parameters."""
        parts = torch.split(vector, [shape.numel() for shape in self._shapes])
        return [part.view(shape) for part, shape in zip(parts, self._shapes, strict=True)]

    def take(self) -> tuple[Tensor, list[Tensor]]:
        """Return memory for a gradient, as a vector, (N,), and by parameter."""
        if self.free:
            self.free = False
            return self.gradient, self.parts
        gradient = torch.empty_like(self.gradient)
        return gradient, self.split(gradient)


class Joint(nn.Module, ABC):
    """A network whose parameters can be one variable of the loss, with a backward pass of its own."""

    variable: Variable | None = None

    @abstractmethod
    def join(self, values: Tensor, gradient: Tensor) -> Variable:
        """Set and return ``variable``; see it for the arguments."""

    def __getstate__(self) -> dict[str, Any]:
        """Leave the variable out of copies, which have parameters of their own."""
        return {**self.__dict__, "variable": None}


class ParameterVector:
    """Parameters as views of one vector: one tensor to update and to average over processes.

    In networks whose step takes milliseconds, the optimiser's bookkeeping of twenty tensors costs as much as
    its arithmetic.

    Attributes:
        values: (N,), what an optimiser changes.
    """

    def __init__(self, module: nn.Module, parameters: Sequence[nn.Parameter], join: bool = True) -> None:
        """Move parameters into the vector.

        Args:
            module: the module that has them.
            parameters: the trained ones, which keep their order.
            join: whether every Joint network becomes one variable of the loss, until ``release``.
        """
        sizes = [parameter.numel() for parameter in parameters]
        starts = dict(zip(parameters, accumulate(sizes, initial=0), strict=False))
        self.values = nn.Parameter(torch.cat([parameter.detach().flatten() for parameter in parameters]))
        self._gradient = torch.zeros_like(self.values)
        for parameter, part in zip(parameters, torch.split(self.values.detach(), sizes), strict=True):
            parameter.data = part.view_as(parameter)
        self._joined: list[tuple[Joint, Variable]] = []
        single = dict(zip(parameters, torch.split(self._gradient, sizes), strict=True))
        for network in module.modules() if join else ():
            if isinstance(network, Joint) and all(parameter in single for parameter in network.parameters()):
                own = list(network.parameters())
                place = slice(starts[own[0]], starts[own[0]] + sum(parameter.numel() for parameter in own))
                self._joined.append((network, network.join(self.values[place], self._gradient[place])))
                for parameter in own:
                    del single[parameter]
        self._variables = [*(variable.values for _, variable in self._joined), *single]
        """What the loss is differentiated by."""
        self._gradients = [
            *(variable.gradient for _, variable in self._joined),
            *(gradient.view_as(parameter) for parameter, gradient in single.items()),
        ]

    @property
    def joint(self) -> bool:
        """Whether every parameter belongs to a joined network."""
        return len(self._joined) == len(self._variables)

    def take_parts(self) -> None:
        """Set the vector's gradient to what the joined networks, which have all parameters, wrote to their parts."""
        self.values.grad = average(self._gradient)

    def differentiate(self, loss: Tensor) -> None:
        """Set the vector's gradient to that of the loss, averaged over processes."""
        for _, variable in self._joined:
            variable.free = True
        gradients = torch.autograd.grad(loss, self._variables, materialize_grads=True)
        for gradient, place in zip(gradients, self._gradients, strict=True):
            if gradient.data_ptr() != place.data_ptr():  # a Joint network may have written it there
                place.copy_(gradient)
        self.values.grad = average(self._gradient)

    def release(self) -> None:
        """Make the parameters the networks' variables again."""
        for network, _ in self._joined:
            network.variable = None


@dataclass(frozen=True)
class Part:
    """How the optimiser treats a part of the vector.

    Attributes:
        rate: factor of the learning rate.
        decay: factor of the weight decay.
        interval: steps per update; a delayed part keeps its parameters and moments in between.
        size: numbers in the part.
    """

    rate: float = 1.0
    decay: float = 1.0
    interval: int = 1
    size: int = 0

    def sized(self, size: int) -> Part:
        """The same with a size."""
        return replace(self, size=size)


class Adam(torch.optim.Adam):
    """AdamW of one tensor (Loshchilov and Hutter 2019), which is Adam if the weight decay is zero.

    A step multiplies the parameters by ``1 - learning rate * decay`` before Adam's own change. It calls the kernel and
    nothing else, which takes a third of the time.
    """

    def __init__(
        self, values: nn.Parameter, learning_rate: float, parts: Sequence[Part] = (), decay: float = 0.0
    ) -> None:
        """Take the vector, (N,), the first learning rate, its parts, in their order, if they differ, and the decay."""
        super().__init__([values], lr=learning_rate, fused=True)
        self._decay = decay
        self._parts = tuple(parts)
        self._cycle = math.lcm(*(part.interval for part in self._parts))

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update the tensor with the group's learning rate."""
        self.update(self.param_groups[0]["lr"])

    @torch.no_grad()
    def update(self, learning_rate: float | Tensor) -> None:
        """Update the tensor with a learning rate, which may be a scalar on its device."""
        (group,) = self.param_groups
        (values,) = group["params"]
        mean, square, step = self.moments
        assert values.grad is not None
        if not self._parts:
            step += 1.0
            self._kernel((values, values.grad, mean, square), step, learning_rate, self._decay, None)
            return
        sizes = [part.size for part in self._parts]
        columns = zip(
            *(torch.split(column, sizes) for column in (values, values.grad, mean, square)), strict=True
        )
        turn = self.state[values]["turn"]
        for part, column, taken in zip(self._parts, columns, step, strict=True):
            # The kernel leaves everything as it is if this is one; a GPU need not wait for the answer.
            skipped = (turn % part.interval != 0).float() if part.interval > 1 else None
            taken += 1.0 if skipped is None else 1.0 - skipped
            self._kernel(column, taken, learning_rate * part.rate, self._decay * part.decay, skipped)
        turn.remainder_(self._cycle)  # single precision counts no further than 2^24
        turn += 1.0

    def _kernel(
        self,
        column: tuple[Tensor, ...],
        step: Tensor,
        learning_rate: float | Tensor,
        decay: float,
        skipped: Tensor | None,
    ) -> None:
        """Update a part: parameters, gradient and both moments, (n,) each."""
        (group,) = self.param_groups
        if column[0].device.type == "cuda":
            size = max(SMALLEST_PIECE, 4 * math.ceil(len(column[0]) / PIECES / 4))  # aligned
            pieces = [torch.split(part, size) for part in column]
        else:
            pieces = [(part,) for part in column]
        torch._fused_adamw_(
            pieces[0], pieces[1], pieces[2], pieces[3], [], [step] * len(pieces[0]),
            lr=learning_rate, beta1=group["betas"][0], beta2=group["betas"][1], eps=group["eps"],
            weight_decay=decay, amsgrad=False, maximize=False, found_inf=skipped,
        )  # fmt: skip

    @property
    def moments(self) -> tuple[Tensor, Tensor, Tensor]:
        """Moving averages of the gradient and of its square, (N,) each, and the number of updates, () or by part."""
        (values,) = self.param_groups[0]["params"]
        state = self.state[values]
        if not state:
            shape = (len(self._parts),) if self._parts else ()
            state["step"] = torch.zeros(shape, dtype=torch.float32, device=values.device)
            if self._parts:
                state["turn"] = torch.zeros((), dtype=torch.float32, device=values.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(values), torch.zeros_like(values)
        return state["exp_avg"], state["exp_avg_sq"], state["step"]

    @property
    def changing(self) -> list[Tensor]:
        """All tensors besides the parameters that a step changes."""
        mean, square, step = self.moments
        state = self.state[self.param_groups[0]["params"][0]]
        return [mean, square, step, *([state["turn"]] if "turn" in state else [])]

    step.hooked = True  # type: ignore[attr-defined]  # torch adds nothing around it then
