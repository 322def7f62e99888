"""Training of many critics of equal shapes as one, by batched products: a fleet (docs/benchmarks.md).

S members (seeds, or points of a study) take their gradient steps together. Each has its own weights, batches and
learning rate. The benchmark first checks that a fleet ends with the weights of S single trainings. Then it measures
member-steps per second, on the CPU (processor time too) and on a GPU, if there is one, with steps captured as CUDA
graphs. Single trainings are ``ContrastiveDynamics`` without Lightning, which a fleet would not need either.

    python -m benchmarks.fleet
    python -m benchmarks.fleet --only gpu   # needs no Kedro and no simulator
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Generator, Tensor, nn
from torch.autograd.function import once_differentiable

from cvl_pipeline.dynamics.module import ContrastiveDynamics
from cvl_pipeline.dynamics.parameters import DynamicsParameters
from cvl_pipeline.episodes.container import Split, Transitions
from cvl_pipeline.episodes.data import EpisodeData
from cvl_pipeline.episodes.parameters import IngestionParameters
from cvl_pipeline.episodes.preparation import fit_normalisation
from cvl_pipeline.episodes.sampling import Draws, SegmentSampler
from cvl_pipeline.networks.mlp import MLP, SMALLEST_NORM
from cvl_pipeline.training.module import DRAWN
from cvl_pipeline.training.seeds import stream_seed

PROJECT = Path(__file__).parents[1]
OBSERVATION, ACTION, EPISODES, STEPS = 39, 4, 360, 200
"""Sizes of a Meta-World log; every tenth episode is held out."""
TRAINING = 3000
"""Gradient steps of a whole training, over which the learning rate falls."""
CHECKED, TOLERANCE = 20, 1e-4
"""Steps after which fleets are compared with single trainings; largest relative difference of weights and losses."""
SMALLEST_PIECE, PIECES = 4096, 72
"""Fewest numbers and most tensors that Adam gets in its variant in pieces (two launches of its kernel). A CUDA block
takes 65 536 numbers of one tensor, so a vector of 200 000 would keep four blocks busy."""
DEADLINE = 75.0
"""Seconds after which no measurement on the GPU begins."""


@dataclass(frozen=True)
class Size:
    """Hidden layers and batch of a critic."""

    hidden: tuple[int, ...]
    batch: int

    def __str__(self) -> str:
        """Return the name in the tables."""
        return f"{self.hidden} x {self.batch}"


STARTED = time.perf_counter()
CPU_SIZES = (Size((256, 256), 256), Size((64, 64), 256))
GPU_SIZES = (Size((256, 256), 256), Size((1024, 1024), 1024))
CPU_MEMBERS, GPU_MEMBERS = (1, 4, 16), (1, 4, 16, 64)


def random_log(episodes: int = EPISODES, steps: int = STEPS) -> EpisodeData:
    """Make the log of ``benchmarks.speed``, without files."""
    generator = Generator().manual_seed(0)
    transitions = Transitions(
        observations=torch.randn(episodes * (steps + 1), OBSERVATION, generator=generator),
        actions=torch.rand(episodes * steps, ACTION, generator=generator) * 2.0 - 1.0,
        episode_starts=torch.arange(episodes + 1) * steps,
        terminated=torch.arange(episodes) % 4 == 0,
        truncated=torch.arange(episodes) % 4 != 0,
        action_low=-torch.ones(ACTION),
        action_high=torch.ones(ACTION),
    )
    held_out = torch.arange(episodes) % 10 == 9
    split = Split(torch.where(~held_out)[0], torch.where(held_out)[0])
    normalisation = fit_normalisation(transitions, split, IngestionParameters().std_floor)
    return EpisodeData(transitions, split, normalisation)


def single_module(data: EpisodeData, size: Size, seed: int, rate: float) -> ContrastiveDynamics:
    """Make the module of a single training with default parameters."""
    training = {"steps": TRAINING, "batch_size": size.batch, "learning_rate": rate}
    parameters = DynamicsParameters.model_validate({"hidden": size.hidden, "training": training})
    return ContrastiveDynamics(data, parameters, seed)


def cosine(step: int) -> float:
    """Learning rate of a step as a share of the first one."""
    return 0.5 * (1.0 + math.cos(math.pi * step / TRAINING))


class Trained(Protocol):
    """What is timed: one training or a fleet."""

    members: int

    def block(self, number: int) -> Tensor:
        """Positions of the next DRAWN batches, (DRAWN, 4, S, B): rows, anchors, rows of futures, absorbed."""

    def step(self, positions: Tensor, share: Tensor) -> Tensor:
        """Take a gradient step and return the losses, (S,); ``positions`` is an entry of a block.

        ``share``, a scalar, is that of the first learning rate.
        """

    def state(self) -> list[Tensor]:
        """All tensors that a step changes."""

    def weights(self) -> Tensor:
        """The trained parameters, (S, N)."""


def packed(draws: Draws) -> Tensor:
    """Positions as one tensor, (4, ...)."""
    return torch.stack([draws.rows, draws.anchors, draws.future_rows, draws.absorbed.long()])


def adam(
    values: Tensor, gradient: Tensor, moments: Sequence[Tensor], step: Tensor, rate: Tensor, pieces: bool
) -> None:
    """Update a vector, (N,), by the fused kernel, whole or in pieces."""
    step.add_(1.0)
    vectors = (values, gradient, *moments)
    # A multiple of four numbers keeps the pieces aligned.
    size = max(SMALLEST_PIECE, 4 * math.ceil(len(values) / PIECES / 4)) if pieces else len(values)
    parts = [list(torch.split(vector, size)) for vector in vectors]
    torch._fused_adam_(
        parts[0], parts[1], parts[2], parts[3], [], [step] * len(parts[0]), lr=rate, beta1=0.9, beta2=0.999,
        eps=1e-8, weight_decay=0.0, amsgrad=False, maximize=False,
    )  # fmt: skip


class Single:
    """One training: the pipeline's module, with its batches and learning rates on the device."""

    members = 1

    def __init__(self, module: ContrastiveDynamics, device: torch.device, pieces: bool = False) -> None:
        """Move the module to the device."""
        self.module = module.to(device)
        self.pieces = pieces
        module.on_fit_start()
        module.configure_optimizers()
        vector = module._vector.values.detach()
        self._rate = module.training_parameters.learning_rate
        self._moments = torch.zeros_like(vector), torch.zeros_like(vector)
        self._step = torch.zeros((), device=device)

    def block(self, number: int) -> Tensor:
        """See ``Trained``."""
        generator = Generator(device=self.module.device)
        generator.manual_seed(stream_seed(self.module.seed, "training", number))
        draws = self.module.draw(DRAWN, generator)
        return torch.stack([packed(batch) for batch in draws]).unsqueeze(2)

    def step(self, positions: Tensor, share: Tensor) -> Tensor:
        """See ``Trained``."""
        rows, anchors, futures, absorbed = positions[:, 0]
        # The critic reads neither offsets nor arrivals.
        loss, _ = self.module.training_loss(
            Draws(anchors, anchors, rows, futures, anchors, absorbed.to(torch.bool))
        )
        vector = self.module._vector
        vector.differentiate(loss)
        assert vector.values.grad is not None
        adam(
            vector.values.detach(),
            vector.values.grad,
            self._moments,
            self._step,
            share * self._rate,
            self.pieces,
        )
        return loss.detach().reshape(1)

    def state(self) -> list[Tensor]:
        """See ``Trained``."""
        return [self.module._vector.values.detach(), *self._moments, self._step]

    def weights(self) -> Tensor:
        """See ``Trained``."""
        return self.module._vector.values.detach().unsqueeze(0)


class Layer:
    """A linear layer of all members, and LayerNorm behind it, as views of vectors of parameters and gradients.

    ``weight`` is (S, H, I); ``bias``, ``scale`` and ``shift`` are (S, 1, H). ``of_...`` are their gradients.
    """

    def __init__(self, parts: Sequence[Tensor], gradients: Sequence[Tensor], epsilon: float = 0.0) -> None:
        """Take the parameters in a network's order, and their gradients; two of them: there is no LayerNorm."""
        self.weight, self.bias = parts[0], parts[1].unsqueeze(1)
        self.of_weight, self.of_bias = gradients[:2]
        self.epsilon = epsilon
        if len(parts) > 2:
            self.scale, self.shift = (part.unsqueeze(1) for part in parts[2:])
            self.of_scale, self.of_shift = gradients[2:]


class Stack:
    """Equal networks of all members."""

    def __init__(self, network: MLP, values: Tensor, gradient: Tensor) -> None:
        """Take the networks' columns of the members' parameters and gradients, (S, n) each."""
        self.values = values.detach().requires_grad_()
        self.gradient = gradient
        shapes = [parameter.shape for parameter in network.parameters()]
        parts, gradients = (
            [
                part.view(-1, *shape)
                for part, shape in zip(
                    torch.split(matrix, [shape.numel() for shape in shapes], dim=1), shapes, strict=True
                )
            ]
            for matrix in (values, gradient)
        )
        epsilons = [layer.eps for layer in network if isinstance(layer, nn.LayerNorm)]
        self.hidden = [
            Layer(parts[4 * place : 4 * place + 4], gradients[4 * place : 4 * place + 4], epsilon)
            for place, epsilon in enumerate(epsilons)
        ]
        self.last = Layer(parts[-2:], gradients[-2:])

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return outputs of unit norm, (S, B, I) -> (S, B, D)."""
        outputs: Tensor = _Stacked.apply(inputs, self.values, self)  # type: ignore[no-untyped-call]
        return outputs


_relu_backward = torch.ops.aten.threshold_backward.grad_input
_norm_backward = torch.ops.aten.native_layer_norm_backward.default


class _Stacked(torch.autograd.Function):
    """All layers of all members, as ``networks.mlp._Fused`` for one.

    The kernel of LayerNorm has one scale and shift for all rows, so those of the members are operations of their own.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, values: Tensor, stack: Stack) -> Tensor:
        saved = []
        rows = inputs
        for layer in stack.hidden:
            products = torch.baddbmm(layer.bias, rows, layer.weight.transpose(1, 2))
            units, mean, deviation = torch.native_layer_norm(
                products, products.shape[-1:], None, None, layer.epsilon
            )
            saved += [rows, products, units, mean, deviation]
            rows = torch.addcmul(layer.shift, units, layer.scale).relu_()
        outputs = torch.baddbmm(stack.last.bias, rows, stack.last.weight.transpose(1, 2))
        norms = torch.linalg.vector_norm(outputs, dim=-1, keepdim=True).clamp_min_(SMALLEST_NORM)
        outputs.div_(norms)
        ctx.save_for_backward(*saved, rows, norms, outputs)
        ctx.stack = stack
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None]:
        stack: Stack = ctx.stack
        *saved, rows, norms, units = ctx.saved_tensors
        along = torch.linalg.vecdot(gradient, units).unsqueeze(-1)
        gradient = torch.addcmul(gradient, along, units, value=-1.0).div_(norms)
        torch.bmm(gradient.transpose(1, 2), rows, out=stack.last.of_weight)
        torch.sum(gradient, 1, out=stack.last.of_bias)
        gradient = gradient.bmm(stack.last.weight)
        for place in range(len(stack.hidden) - 1, -1, -1):
            layer = stack.hidden[place]
            below, products, normal, mean, deviation = saved[5 * place : 5 * place + 5]
            _relu_backward(gradient, rows, 0, grad_input=gradient)
            torch.sum(gradient, 1, out=layer.of_shift)
            torch.sum(normal.mul_(gradient), 1, out=layer.of_scale)  # nobody reads it after that
            gradient, _, _ = _norm_backward(
                gradient.mul_(layer.scale), products, products.shape[-1:], mean, deviation, None, None,
                [True, False, False],
            )  # fmt: skip
            torch.bmm(gradient.transpose(1, 2), below, out=layer.of_weight)
            torch.sum(gradient, 1, out=layer.of_bias)
            if place:
                gradient = gradient.bmm(layer.weight)
            rows = below
        return None, stack.gradient, None


class _Losses(torch.autograd.Function):
    """Symmetric InfoNCE of every member, as ``dynamics.losses._SymmetricInfoNCE`` with a known bound."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, bound: float) -> Tensor:
        logits = left.bmm(right.transpose(1, 2))  # (S, B, B)
        positives = logits.diagonal(dim1=1, dim2=2).mean(1)
        size = logits.shape[-1]
        weights = logits.sub_(bound).exp_()
        rows, columns = weights.sum(2), weights.sum(1)
        losses = 0.5 * (rows.log().mean(1) + columns.log().mean(1)) + bound - positives
        gradient = weights.mul_((0.5 / size / rows).unsqueeze(2) + (0.5 / size / columns).unsqueeze(1))
        gradient.diagonal(dim1=1, dim2=2).sub_(1.0 / size)
        ctx.save_for_backward(left, right, gradient)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        left, right, gradient = ctx.saved_tensors
        factors = gradients[0].view(-1, 1, 1)
        return gradient.bmm(right).mul_(factors), gradient.transpose(1, 2).bmm(left).mul_(factors), None


class Fleet:
    """Trainings of equal shapes as one. Row s of the parameters is the vector of member s."""

    def __init__(
        self, modules: Sequence[ContrastiveDynamics], device: torch.device, pieces: bool = False
    ) -> None:
        """Copy the members' initial weights; the modules stay as they are.

        Args:
            modules: of single trainings on the same log, with the same shape.
            device: of the fleet.
            pieces: see ``adam``.
        """
        first = modules[0]
        self.members, self.pieces = len(modules), pieces
        self.batch = first.training_parameters.batch_size
        self._seeds = [module.seed for module in modules]
        self._per_episode = first.parameters_of_stage.segments_per_episode
        rates = [module.training_parameters.learning_rate for module in modules]
        self._rate = rates[0]
        self._transitions = first._transitions.to(device)
        self._sampler = SegmentSampler(
            self._transitions, first.parameters_of_stage.discount, first._split.train
        )
        vectors = [[value.detach().flatten() for value in module.trained_parameters()] for module in modules]
        self.values = torch.stack([torch.cat(vector) for vector in vectors]).to(device)  # (S, N)
        self.gradient = torch.zeros_like(self.values)
        self._moments = torch.zeros_like(self.values), torch.zeros_like(self.values)
        self._step = torch.zeros((), device=device)
        # The kernel takes one learning rate. Adam's moves do not depend on the values, so the moves of members with
        # different rates are added up with a rate of 1, and scaled.
        self._own: tuple[Tensor, Tensor, Tensor] | None = None
        if len(set(rates)) > 1:
            column = torch.tensor(rates, device=device).unsqueeze(1)
            self._own = self.values.clone(), torch.zeros_like(self.values), column
        critic = first.critic
        bound = critic.bound
        assert bound is not None
        self._bound = bound
        self._temperature = critic.temperature.detach().to(device)
        self._observation = [
            statistic.clone().to(device)
            for statistic in (
                critic.encode_observation.standardise.mean,
                critic.encode_observation.standardise.std,
            )
        ]
        self._action = [
            statistic.clone().to(device)
            for statistic in (critic.standardise_action.mean, critic.standardise_action.std)
        ]
        networks = (critic.phi_network, critic.psi_network)
        sizes = [sum(parameter.numel() for parameter in network.parameters()) for network in networks]
        places = [slice(end - size, end) for size, end in zip(sizes, accumulate(sizes), strict=True)]
        self._phi, self._psi = (
            Stack(network, self.values[:, place], self.gradient[:, place])
            for network, place in zip(networks, places, strict=True)
        )

    def block(self, number: int) -> Tensor:
        """See ``Trained``; each member draws with its own generator."""
        device = self.values.device
        draws = []
        for seed in self._seeds:
            generator = Generator(device=device)
            generator.manual_seed(stream_seed(seed, "training", number))
            positions = packed(self._sampler.draw(DRAWN * self.batch, generator, self._per_episode))
            draws.append(positions.view(4, DRAWN, self.batch))
        return torch.stack(draws, dim=2).transpose(0, 1).contiguous()

    def step(self, positions: Tensor, share: Tensor) -> Tensor:
        """See ``Trained``."""
        shape = positions.shape[1:]
        rows, anchors, futures, absorbed = positions.flatten(1)
        observations, actions = self._transitions.observations, self._transitions.actions
        mean, std = self._observation
        action_mean, action_std = self._action
        of_state = (observations.index_select(0, rows) - mean) / std
        of_action = (actions.index_select(0, anchors) - action_mean) / action_std
        flag = absorbed.to(torch.bool).unsqueeze(-1)
        of_future = torch.where(flag, 0.0, (observations.index_select(0, futures) - mean) / std)
        phi = self._phi(torch.cat([of_state, of_action], dim=-1).view(*shape, -1))
        psi = self._psi(torch.cat([of_future, flag.to(of_future.dtype)], dim=-1).view(*shape, -1))
        losses: Tensor = _Losses.apply(phi / self._temperature, psi, self._bound)  # type: ignore[no-untyped-call]
        torch.autograd.grad(losses.sum(), [self._phi.values, self._psi.values])  # written into self.gradient
        with torch.no_grad():
            self._update(share)
        return losses.detach()

    def _update(self, share: Tensor) -> None:
        gradient, moments = self.gradient.view(-1), [moment.view(-1) for moment in self._moments]
        if self._own is None:
            adam(self.values.view(-1), gradient, moments, self._step, share * self._rate, self.pieces)
            return
        start, moves, rates = self._own
        adam(moves.view(-1), gradient, moments, self._step, share, self.pieces)
        torch.addcmul(start, moves, rates, out=self.values)

    def state(self) -> list[Tensor]:
        """See ``Trained``."""
        return [self.values, *self._moments, self._step, *(self._own[1:2] if self._own else ())]

    def weights(self) -> Tensor:
        """See ``Trained``."""
        return self.values


def fleet_of(
    data: EpisodeData, size: Size, rates: Iterable[float], device: torch.device, pieces: bool = False
) -> Fleet:
    """Make a fleet of seeds from 0, with a first learning rate each."""
    return Fleet([single_module(data, size, seed, rate) for seed, rate in enumerate(rates)], device, pieces)


class Runner:
    """Takes steps one after another; on a GPU, a step may be one CUDA graph."""

    def __init__(self, trained: Trained, device: torch.device, captured: bool = False) -> None:
        """Capture a step if asked to; the weights stay as they are."""
        self.trained = trained
        self.device = device
        self.next = 0
        self._shares = torch.tensor([cosine(step) for step in range(TRAINING)], device=device)
        self._share = self._shares[0].clone()
        self._block = trained.block(0)
        self._positions = self._block[0].clone()
        self._losses = torch.zeros(trained.members, device=device)
        self._replay: Callable[[], None] = self._capture() if captured else self._take

    def _take(self) -> None:
        self._losses = self.trained.step(self._positions, self._share)

    def _capture(self) -> Callable[[], None]:
        before = [tensor.clone() for tensor in self.trained.state()]
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(4):
                self._take()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._take()
        for tensor, value in zip(self.trained.state(), before, strict=True):
            tensor.copy_(value)
        torch.cuda.synchronize()
        return graph.replay

    def run(self, steps: int) -> Tensor:
        """Take steps, and return the last one's losses, (S,)."""
        for step in range(self.next, self.next + steps):
            block, place = divmod(step, DRAWN)
            if place == 0 and step:
                self._block = self.trained.block(block)
            self._positions.copy_(self._block[place])
            self._share.copy_(self._shares[step % TRAINING])
            self._replay()
        self.next += steps
        return self._losses

    def wait(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def difference(
    data: EpisodeData, size: Size, rates: Sequence[float], device: torch.device, captured: bool = False
) -> dict[str, float]:
    """Compare a fleet with single trainings after CHECKED steps.

    Rounding decides whether a ReLU is on whose input is nearly zero, and the sign of Adam's first moves. So one member
    in ten or so leaves its twin by far more than rounding, and so does a single training from weights that are
    rounded otherwise: the median member says whether the arithmetic is equal.

    Returns:
        ``median`` and ``largest`` over members of the norm of the difference over the norm of the weights; ``rounding``
        and ``largest_rounding``, the same of single trainings that begin a rounding away; ``losses``, the largest
        relative difference of the last losses.
    """
    fleet = fleet_of(data, size, rates, device)
    losses = Runner(fleet, device, captured).run(CHECKED).cpu()
    apart: dict[str, list[float]] = {"fleet": [], "rounding": [], "losses": []}
    for member, rate in enumerate(rates):
        loss, expected = _reference(data, size, member, rate, device)
        _, other = _reference(data, size, member, rate, device, rounding=True)
        apart["fleet"].append(float((fleet.weights()[member] - expected).norm() / expected.norm()))
        apart["rounding"].append(float((other - expected).norm() / expected.norm()))
        apart["losses"].append(abs(float(losses[member]) / loss - 1.0))
    return {
        "median": statistics.median(apart["fleet"]),
        "largest": max(apart["fleet"]),
        "rounding": statistics.median(apart["rounding"]),
        "largest_rounding": max(apart["rounding"]),
        "losses": max(apart["losses"]),
    }


def _reference(
    data: EpisodeData, size: Size, seed: int, rate: float, device: torch.device, rounding: bool = False
) -> tuple[float, Tensor]:
    """Train as ``OfflineModule.training_step`` does; return the last loss and the weights, (N,).

    Args:
        data: the log.
        size: of the critic.
        seed: of the training.
        rate: first learning rate.
        device: where to train.
        rounding: whether the initial weights are changed by about one rounding.
    """
    module = single_module(data, size, seed, rate)
    if rounding:
        generator = Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in module.trained_parameters():
                parameter.mul_(1.0 + 2.0**-23 * torch.randn(parameter.shape, generator=generator).sign())
    training = Reference(module, device)
    loss = training.run(CHECKED)
    return float(loss), module._vector.values.detach()


class Reference:
    """The single training of the pipeline, without Lightning, for ``timed``."""

    def __init__(self, module: ContrastiveDynamics, device: torch.device) -> None:
        """Move the module to the device."""
        self.module, self.next = module.to(device), 0
        module.on_fit_start()
        self._optimizer = module.configure_optimizers()

    def run(self, steps: int) -> Tensor:
        """Take steps, and return the last one's loss."""
        for step in range(self.next, self.next + steps):
            loss, _ = self.module.training_loss(self.module.batch(step))
            self.module._vector.differentiate(loss)
            self._optimizer.param_groups[0]["lr"] = self.module.learning_rate(step % TRAINING)
            self._optimizer.step()
        self.next += steps
        return loss.detach()

    def wait(self) -> None:
        """Wait for the device."""
        if self.module.device.type == "cuda":
            torch.cuda.synchronize()


def timed(runner: Runner | Reference, members: int, seconds: float, chunk: int) -> dict[str, float]:
    """Take chunks of steps for some seconds.

    Returns:
        ``rate``: member-steps per second; ``processor``: processor milliseconds per member-step, of all threads;
        ``step``: milliseconds per step.
    """
    runner.wait()
    start, processor, steps = time.perf_counter(), time.process_time(), 0
    while not steps or time.perf_counter() - start < seconds:
        runner.run(chunk)
        runner.wait()
        steps += chunk
    elapsed, processor = time.perf_counter() - start, time.process_time() - processor
    return {
        "rate": members * steps / elapsed,
        "processor": 1e3 * processor / (members * steps),
        "step": 1e3 * elapsed / steps,
    }


def best(rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    """The fastest round by wall-clock time, and the fewest processor seconds."""
    return {
        "rate": max(row["rate"] for row in rounds),
        "processor": min(row["processor"] for row in rounds),
        "step": min(row["step"] for row in rounds),
    }


def cpu_runner(data: EpisodeData, size: Size, members: int) -> Runner | Reference:
    """Make what is timed on the CPU; no members: one single training."""
    if not members:
        return Reference(single_module(data, size, 0, 1e-3), torch.device("cpu"))
    device = torch.device("cpu")
    return Runner(fleet_of(data, size, [1e-3] * members, device), device)


def chunk_of(members: int) -> int:
    """Steps between two looks at the clock: about as much work for every number of members."""
    return max(2, 32 // max(members, 1))


def measure_cpu(data: EpisodeData, seconds: float, rounds: int) -> list[dict[str, Any]]:
    """Measure single trainings and fleets in turn, for each number of threads, and then two processes of each."""
    rows: list[dict[str, Any]] = []
    for size in CPU_SIZES:
        for threads in sorted({1, os.cpu_count() or 1}):
            torch.set_num_threads(threads)
            runners = {members: cpu_runner(data, size, members) for members in (0, *CPU_MEMBERS)}
            for members, runner in runners.items():
                runner.run(chunk_of(members))
            results: dict[int, list[dict[str, float]]] = {members: [] for members in runners}
            for _ in range(rounds):
                for members, runner in runners.items():
                    results[members].append(timed(runner, max(members, 1), seconds, chunk_of(members)))
            for members, measured in results.items():
                row = {"size": str(size), "threads": threads, "processes": 1, "members": members}
                rows.append(row | best(measured))
                print(as_text(rows[-1]), flush=True)  # noqa: T201
        torch.set_num_threads(1)
        for members in (0, CPU_MEMBERS[-1]) if (os.cpu_count() or 1) > 1 else ():
            row = {"size": str(size), "threads": 1, "processes": 2, "members": members}
            rows.append(row | best([_two(size, members, seconds) for _ in range(rounds)]))
            print(as_text(rows[-1]), flush=True)  # noqa: T201
    return rows


def _two(size: Size, members: int, seconds: float) -> dict[str, float]:
    """Measure two processes with one thread each at the same time: as studies run today, or a fleet in each."""
    job = {"hidden": size.hidden, "batch": size.batch, "members": members, "seconds": 2.0 * seconds}
    command = [sys.executable, "-m", "benchmarks.fleet", "--worker", json.dumps(job)]
    own = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            command, cwd=PROJECT, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True, env=own
        )
        for _ in range(2)
    ]
    for process in processes:  # until both are ready
        assert process.stdout is not None
        process.stdout.readline()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    outputs = [json.loads(process.communicate()[0].splitlines()[-1]) for process in processes]
    return {
        "rate": sum(output["rate"] for output in outputs),
        "processor": sum(output["processor"] for output in outputs) / 2.0,
        "step": max(output["step"] for output in outputs),
    }


def work(job: dict[str, Any]) -> None:
    """Measure in a process of ``_two``, from the moment that a line arrives."""
    members = job["members"]
    runner = cpu_runner(random_log(), Size(tuple(job["hidden"]), job["batch"]), members)
    runner.run(chunk_of(members))
    print("ready", flush=True)  # noqa: T201
    sys.stdin.readline()
    print(json.dumps(timed(runner, max(members, 1), job["seconds"], chunk_of(members))), flush=True)  # noqa: T201


def as_text(row: dict[str, Any]) -> str:
    """Format a row for the terminal."""
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in row.items()
    )


def measure_gpu(
    data: EpisodeData, device: torch.device, seconds: float, sizes: Sequence[Size] = GPU_SIZES
) -> list[dict[str, Any]]:
    """Measure single trainings and fleets; a measurement that fails is a row with the error.

    ``members`` 0 is the single training with the pipeline's networks. Any device serves, without graphs on the CPU.
    """
    graphs = device.type == "cuda"
    rows: list[dict[str, Any]] = []
    for size in sizes:
        variants = [(0, False, False), (16, False, False)]
        variants += [(members, graphs, pieces) for members in (0, *GPU_MEMBERS) for pieces in (False, True)]
        for members, captured, pieces in variants:
            row: dict[str, Any] = {
                "size": str(size), "members": members, "captured": captured, "adam_in_pieces": pieces
            }  # fmt: skip
            if time.perf_counter() - STARTED > DEADLINE:
                row["error"] = "no time left"
            else:
                try:
                    row |= _gpu_row(data, size, device, seconds, members, captured, pieces)
                except Exception as error:
                    traceback.print_exc()
                    row["error"] = f"{type(error).__name__}: {error}"[:300]
            gc.collect()
            if graphs:
                try:
                    torch.cuda.empty_cache()
                except Exception:
                    traceback.print_exc()
            rows.append(row)
            print(as_text(row), flush=True)  # noqa: T201
    return rows


def _gpu_row(
    data: EpisodeData, size: Size, device: torch.device, seconds: float, members: int, captured: bool,
    pieces: bool,
) -> dict[str, float]:  # fmt: skip
    graphs = device.type == "cuda"
    if graphs:
        torch.cuda.reset_peak_memory_stats()
    trained: Trained
    if members:
        trained = fleet_of(data, size, [1e-3] * members, device, pieces)
    else:
        trained = Single(single_module(data, size, 0, 1e-3), device, pieces)
    runner = Runner(trained, device, captured)
    chunk = max(8, DRAWN // trained.members) if graphs else 2
    runner.run(chunk)
    row = timed(runner, trained.members, seconds, chunk)
    begin = time.perf_counter()
    trained.block(1)
    runner.wait()
    # Milliseconds of the step above.
    row["sampling"] = 1e3 * (time.perf_counter() - begin) / DRAWN
    if graphs:
        row["peak_mib"] = torch.cuda.max_memory_allocated() / 2**20
    return row


def cpu_ratio(rows: Sequence[dict[str, Any]]) -> float:
    """Processor time per member-step of a single training over that of the largest fleet, at the first size."""
    of = {
        row["members"]: row["processor"]
        for row in rows
        if row["size"] == str(CPU_SIZES[0]) and row["threads"] == 1 and row["processes"] == 1
    }
    return float(of[0] / of[CPU_MEMBERS[-1]]) if of else math.nan


def gpu_ratio(rows: Sequence[dict[str, Any]]) -> float:
    """Member-steps per second of 16 members over those of a single training, both captured, at the first size."""

    def fastest(members: Sequence[int]) -> float:
        return max(
            (
                row["rate"]
                for row in rows
                if row["size"] == str(GPU_SIZES[0]) and row["members"] in members and "rate" in row
            ),
            default=math.nan,
        )

    return fastest([16]) / fastest([0, 1])


def save(record: dict[str, Any]) -> None:
    """Write the record: with the others, or to the folder $OUT where the pipeline's API cannot be imported."""
    try:
        from benchmarks.common import RESULTS, write_record

        write_record(RESULTS / "fleet.json", **record)
    except Exception as error:
        print(f"no record in benchmarks/results: {type(error).__name__}: {error}", flush=True)  # noqa: T201
    if "OUT" in os.environ:
        try:
            path = Path(os.environ["OUT"]) / "fleet.json"
            about = {"machine": f"{platform.machine()}, torch {torch.__version__}"}
            path.write_text(json.dumps(about | record, indent=2) + "\n")
        except OSError as error:
            print(f"no record in $OUT: {error}", flush=True)  # noqa: T201


def checks(data: EpisodeData, device: torch.device) -> list[dict[str, Any]]:
    """Compare fleets with single trainings: equal and different learning rates."""
    rows: list[dict[str, Any]] = []
    for size, rates in (
        (Size((256, 256), 256), [1e-3] * 8),
        (Size((64, 64), 256), [3e-4, 1e-3, 2e-3, 1e-3, 5e-4]),
    ):
        row: dict[str, Any] = {"device": device.type, "size": str(size), "rates": str(rates)}
        try:
            row |= difference(data, size, rates, device, captured=device.type == "cuda")
        except Exception as error:
            if device.type == "cpu":
                raise
            traceback.print_exc()
            row["error"] = f"{type(error).__name__}: {error}"[:300]
        rows.append(row)
        print(f"after {CHECKED} steps: {as_text(row)}", flush=True)  # noqa: T201
    return rows


def main() -> None:
    """Check, measure, save; the last line has the gain of 16 members on CPU and GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", choices=["cpu", "gpu", "check"], help="one part")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3, help="of the measurements on the CPU")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(json.loads(options.worker))
        return
    data = random_log()
    gpu = torch.cuda.is_available() and options.only in (None, "gpu")
    record: dict[str, Any] = {"cores": os.cpu_count(), "load_before": os.getloadavg()[0], "checks": []}
    if options.only in (None, "cpu", "check"):
        record["checks"] += checks(data, torch.device("cpu"))
        if max(max(row["median"], row["losses"]) for row in record["checks"]) > TOLERANCE:
            sys.exit(f"a fleet differs from single trainings by more than {TOLERANCE}")
    record["gpu"] = []
    if gpu:
        device = torch.device("cuda")
        record["device"] = torch.cuda.get_device_name()
        record["checks"] += checks(data, device)
        record["gpu"] = measure_gpu(data, device, options.seconds)
    record["cpu"] = (
        measure_cpu(data, options.seconds, options.rounds) if options.only in (None, "cpu") else []
    )
    if options.only != "check":
        save(record)
    ratios = {"cpu": cpu_ratio(record["cpu"]), "gpu": gpu_ratio(record["gpu"])}
    texts = (f"{name}={'n/a' if math.isnan(ratio) else f'{ratio:.2f}'}" for name, ratio in ratios.items())
    print("fleet: " + " ".join(texts))  # noqa: T201


if __name__ == "__main__":
    main()
