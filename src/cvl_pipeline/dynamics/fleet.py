"""Training of many critics of equal shapes as one, by batched products: a fleet (docs/training.md).

The members differ in seed and data. They take their gradient steps together, each on its own batches. A fleet ends
one chunk of steps before its members' trainings do, and leaves the checkpoints from which these resume.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Generator, Tensor, nn
from torch.autograd.function import once_differentiable

from cvl_pipeline.dynamics.losses import SPREAD
from cvl_pipeline.dynamics.module import ContrastiveDynamics
from cvl_pipeline.dynamics.parameters import DynamicsParameters
from cvl_pipeline.episodes.container import Transitions
from cvl_pipeline.episodes.data import EpisodeData
from cvl_pipeline.episodes.sampling import SegmentSampler
from cvl_pipeline.errors import InputError
from cvl_pipeline.io.checked import read_checkpoint
from cvl_pipeline.networks.critic import ContrastiveCritic
from cvl_pipeline.networks.encoder import ObservationEncoder
from cvl_pipeline.networks.mlp import MLP, SMALLEST_NORM, norm_backward, relu_backward
from cvl_pipeline.training.callbacks import BestWeights
from cvl_pipeline.training.devices import accelerator_of
from cvl_pipeline.training.fit import fit, rounded, run_fingerprint
from cvl_pipeline.training.graph import captured
from cvl_pipeline.training.module import CHUNK, DRAWN
from cvl_pipeline.training.prefetch import fits
from cvl_pipeline.training.progress import progress_bar
from cvl_pipeline.training.seeds import stream_seed
from cvl_pipeline.training.threads import dense_operations, threads_for
from cvl_pipeline.training.vector import Adam


class Member(NamedTuple):
    """A training of a fleet: its data, its seed, and the folder of its checkpoints (see ``train_dynamics``)."""

    data: EpisodeData
    seed: int
    checkpoints: Path


def check_fleet(parameters: DynamicsParameters) -> None:
    """Raise InputError if critics with these parameters cannot be trained as a fleet."""
    training = parameters.training
    loss, encoder = parameters.loss, parameters.encoder
    refused = {
        f"loss.name={loss.name}": loss.name != "symmetric_infonce",
        f"loss.logsumexp_penalty={loss.logsumexp_penalty}": loss.logsumexp_penalty != 0.0,
        f"encoder.name={encoder.name}": encoder.name not in ("auto", "identity"),
        "part_encoders": bool(parameters.part_encoders),
        f"representation={parameters.representation}": parameters.representation != "unit_norm",
        f"temperature={parameters.temperature}": 2.0 / parameters.temperature >= SPREAD,
        "learned_temperature": parameters.learned_temperature,
        "horizon_conditioning": parameters.horizon_conditioning,
        f"keep={parameters.keep}": parameters.keep != "last",
        f"patience={parameters.patience}": parameters.patience is not None,
        f"training.precision={training.precision}": training.precision == "bfloat16",
        f"training.devices={training.devices}, nodes={training.nodes}": training.devices * training.nodes > 1,
        f"training.steps={training.steps} (one chunk of at most {CHUNK} steps)": not _last_chunk(parameters),
    }
    for name, wrong in refused.items():
        if wrong:
            raise InputError(
                f"contrastive_dynamics.{name} is not possible in a fleet; use kedro run for each seed"
            )


def _last_chunk(parameters: DynamicsParameters) -> int:
    """First step of the last chunk of a training; see ``OfflineModule.training_step``."""
    steps, interval = parameters.training.steps, parameters.training.validation_interval
    start = (steps - 1) // interval * interval
    return start + (steps - 1 - start) // CHUNK * CHUNK


def train_fleet(members: Sequence[Member], parameters: DynamicsParameters) -> dict[int, str]:
    """Train critics together, and leave the checkpoints from which their own trainings resume.

    A checkpoint is one chunk before the end of the training. It is the one of a single training up to rounding. A
    member that has it already is not trained again; an earlier one is replaced.

    Args:
        members: trainings with observations and actions of equal sizes.
        parameters: the stage's, of all members.

    Returns:
        Why a member has no checkpoint, by seed: its loss was not finite. This does not end the others.

    Raises:
        InputError: a fleet cannot do this; see ``check_fleet``.
    """
    check_fleet(parameters)
    last = _last_chunk(parameters)
    todo, fingerprints = [], []
    for member in members:
        fingerprint = run_fingerprint(
            parameters, member.seed, *member.data.without_rewards().parts().values()
        )
        path = member.checkpoints / fingerprint / "last.ckpt"
        if not path.exists() or read_checkpoint(path)["global_step"] < last:
            todo.append(member)
            fingerprints.append(fingerprint)
    if not todo:
        return {}
    modules = [ContrastiveDynamics(member.data, parameters, member.seed) for member in todo]
    cuda = accelerator_of(parameters.training) == "gpu"
    snapshots: dict[int, Tensor] = {}
    with rounded(parameters.training.precision == "tf32" and cuda):
        fleet = Fleet(modules, torch.device("cuda" if cuda else "cpu"), capture=cuda)
        losses = torch.empty(last, len(todo), device=fleet.values.device)
        with progress_bar() as bar, threads_for(fleet.operations):
            task = bar.add_task(f"Training {len(todo)} contrastive critics", total=last)
            for step in range(last):
                losses[step] = fleet.step(step)
                if (step + 1) % modules[0].interval == 0 or step + 1 == last:
                    snapshots[step + 1] = fleet.values.to("cpu", copy=True)
                bar.update(task, completed=step + 1)
    moments = torch.stack(fleet.optimizer.moments[:2]).view(2, len(todo), -1).cpu()
    losses = losses.cpu()
    del fleet
    failures = {}
    for place, (member, fingerprint) in enumerate(zip(todo, fingerprints, strict=True)):
        own = {step: values[place] for step, values in snapshots.items()}
        replay = _Replay(member, parameters, losses[:, place], own, moments[:, place])
        shutil.rmtree(member.checkpoints / fingerprint, ignore_errors=True)
        try:
            with suppress(_SavedError):
                fit(
                    replay,
                    description=f"Saving the critic of seed {member.seed}",
                    checkpoints=member.checkpoints,
                    fingerprint=fingerprint,
                    best=BestWeights(parameters.keep, parameters.patience),
                )
        except FloatingPointError as error:
            failures[member.seed] = str(error)
    return failures


class _SavedError(Exception):
    """Ends a training whose checkpoint is written."""


class _Replay(ContrastiveDynamics):
    """A training with the results of a fleet instead of gradient steps.

    Lightning counts, measures and saves as in a training, so the checkpoint has everything that one has.
    """

    def __init__(
        self,
        member: Member,
        parameters: DynamicsParameters,
        losses: Tensor,
        snapshots: Mapping[int, Tensor],
        moments: Tensor,
    ) -> None:
        """Take the results of a member.

        Args:
            member: the member.
            parameters: the stage's.
            losses: of every step, (steps,).
            snapshots: the trained parameters, (N,), by number of steps taken.
            moments: of Adam after the last step, (2, N).
        """
        last = len(losses)
        # One checkpoint, at the end: before, the weights are those of the snapshot before.
        saving = {"checkpoint_seconds": math.inf, "checkpoint_steps": last}
        training = parameters.training.model_copy(update=saving)
        data = member.data.without_rewards()
        super().__init__(data, parameters.model_copy(update={"training": training}), member.seed)
        self._losses, self._snapshots, self._moments, self._last = losses, snapshots, moments, last

    def training_step(self, _: int) -> None:
        """Take over the steps of one chunk."""
        first = self.global_step
        if first == self._last:
            raise _SavedError
        count = min(CHUNK, self.interval - first % self.interval, self._last - first)
        self._count(count)
        self._check(self._losses[first : first + count].to(self.device), first)
        if first + count in self._snapshots:
            self._vector.values.detach().copy_(self._snapshots[first + count])
        if first + count == self._last:
            (optimizer,) = self.trainer.optimizers
            assert isinstance(optimizer, Adam)
            for value, own in zip(optimizer.moments, (*self._moments, self._last), strict=True):
                value.copy_(torch.as_tensor(own))
            optimizer.param_groups[0]["lr"] = self.learning_rate(self._last - 1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save nothing before the last step, which only SIGTERM asks for."""
        if self.global_step != self._last:
            raise SIGTERMException
        super().on_save_checkpoint(checkpoint)


class Fleet:
    """Trainings of equal shapes as one.

    Attributes:
        values: (S, N); row s is the vector of trained parameters of member s.
        operations: floating-point operations of a step.
    """

    def __init__(
        self, modules: Sequence[ContrastiveDynamics], device: torch.device, capture: bool = False
    ) -> None:
        """Copy the members' initial weights; the modules stay as they are.

        Args:
            modules: of single trainings with the same parameters, which ``check_fleet`` accepts.
            device: of the fleet.
            capture: whether to make a step one CUDA graph.

        Raises:
            InputError: observations or actions of the members differ in size, are images, or do not fit the GPU.
        """
        first = modules[0]
        self._seeds = [module.seed for module in modules]
        self._batch = first.training_parameters.batch_size
        self._per_episode = first.parameters_of_stage.segments_per_episode
        self._learning_rate = first.learning_rate
        self._place_logs(modules, device)
        vectors = [[value.detach().flatten() for value in module.trained_parameters()] for module in modules]
        parameter = nn.Parameter(torch.stack([torch.cat(vector) for vector in vectors]).flatten().to(device))
        parameter.grad = torch.zeros_like(parameter)
        self.optimizer = Adam(parameter, self._learning_rate(0), decay=first.weight_decay)
        self.values = parameter.detach().view(len(modules), -1)
        gradient = parameter.grad.view(len(modules), -1)
        critics = [module.critic for module in modules]
        bound = critics[0].bound
        assert bound is not None
        self._bound = bound
        self._temperature = critics[0].temperature.detach().to(device)
        self._statistics = [
            torch.stack(values).unsqueeze(1).to(device)  # (S, 1, O) or (S, 1, A)
            for values in zip(*(_statistics_of(critic) for critic in critics), strict=True)
        ]
        networks = (critics[0].phi_network, critics[0].psi_network)
        sizes = [sum(weight.numel() for weight in network.parameters()) for network in networks]
        places = [slice(end - size, end) for size, end in zip(sizes, accumulate(sizes), strict=True)]
        self._phi, self._psi = (
            Stack(network, self.values[:, place], gradient[:, place])
            for network, place in zip(networks, places, strict=True)
        )
        self.operations = len(modules) * sum(dense_operations(network, self._batch) for network in networks)
        self._number = 0
        self._block = self.block(0)
        self._positions = self._block[0].clone()
        self._rate = torch.zeros((), device=device)
        self._losses = torch.zeros(len(modules), device=device)
        self._replay: Callable[[], None] = self._take
        if capture:
            state = [self.values, *self.optimizer.moments]
            self._replay = captured(lambda: self._take(), state, self.values.device).replay

    def _place_logs(self, modules: Sequence[ContrastiveDynamics], device: torch.device) -> None:
        """Put the logs of all members one after another on the device; equal logs once."""
        logs: list[Transitions] = []
        numbers = []
        for module in modules:
            log = module._transitions
            sizes = [tuple(part.shape[1:]) for part in (log.observations, log.actions)]
            if not logs:
                expected = sizes
            if len(sizes[0]) != 1 or sizes != expected or log.parts is not None:
                raise InputError(
                    f"a fleet needs vectors of equal sizes: observations and actions of seed {module.seed} have the "
                    f"shapes {sizes[0]} and {sizes[1]}, those of seed {modules[0].seed} {expected[0]} and "
                    f"{expected[1]}"
                )
            number = next((n for n, other in enumerate(logs) if _equal(log, other)), len(logs))
            logs += [log] if number == len(logs) else []
            numbers.append(number)
        rows = [0, *accumulate(len(log.observations) for log in logs)]
        steps = [0, *accumulate(len(log) for log in logs)]
        columns = [[log.observations for log in logs], [log.actions for log in logs]]
        if not fits(device, *columns[0], *columns[1]):
            raise InputError("the logs of the fleet do not fit the GPU; name fewer seeds")
        self._observations, self._actions = (
            torch.cat(column).to(device) if len(column) > 1 else column[0].to(device) for column in columns
        )
        placed = [
            replace(
                log,
                observations=self._observations[rows[number] : rows[number + 1]],
                actions=self._actions[steps[number] : steps[number + 1]],
            ).to(device)
            for number, log in enumerate(logs)
        ]
        self._samplers = [
            SegmentSampler(placed[number], module.parameters_of_stage.discount, module._split.train)
            for number, module in zip(numbers, modules, strict=True)
        ]
        # What leads from a position in a member's log to that in all logs: rows, anchors, rows of futures, absorbed.
        shifts = [[rows[number], steps[number], rows[number], 0] for number in numbers]
        self._shifts = torch.tensor(shifts, device=device).t().unsqueeze(-1)  # (4, S, 1)

    def block(self, number: int) -> Tensor:
        """Positions of DRAWN batches, (DRAWN, 4, S, B): rows, anchors, rows of futures, absorbed.

        Each member draws with its own generator, what its single training draws.
        """
        draws = []
        for seed, sampler in zip(self._seeds, self._samplers, strict=True):
            generator = Generator(device=self._actions.device)
            generator.manual_seed(stream_seed(seed, "training", number))
            batches = sampler.draw(DRAWN * self._batch, generator, self._per_episode)
            positions = [batches.rows, batches.anchors, batches.future_rows, batches.absorbed.long()]
            draws.append(torch.stack(positions).view(4, DRAWN, self._batch))
        return (torch.stack(draws, dim=2).transpose(0, 1) + self._shifts).contiguous()

    def step(self, number: int) -> Tensor:
        """Take a gradient step and return the losses, (S,), which the next step may overwrite."""
        block, place = divmod(number, DRAWN)
        if block != self._number:
            self._number, self._block = block, self.block(block)
        self._positions.copy_(self._block[place])
        self._rate.fill_(self._learning_rate(number))
        self._replay()
        return self._losses

    def _take(self) -> None:
        shape = self._positions.shape[1:]
        rows, anchors, futures, absorbed = self._positions.flatten(1)
        mean, std, action_mean, action_std = self._statistics
        states = (self._observations.index_select(0, rows).view(*shape, -1) - mean) / std
        actions = (self._actions.index_select(0, anchors).view(*shape, -1) - action_mean) / action_std
        flag = absorbed.to(torch.bool).view(*shape, 1)
        arrivals = (self._observations.index_select(0, futures).view(*shape, -1) - mean) / std
        arrivals = torch.where(flag, 0.0, arrivals)
        phi = self._phi(torch.cat([states, actions], dim=-1))
        psi = self._psi(torch.cat([arrivals, flag.to(arrivals.dtype)], dim=-1))
        losses: Tensor = _Losses.apply(phi / self._temperature, psi, self._bound)  # type: ignore[no-untyped-call]
        torch.autograd.grad(
            losses.sum(), [self._phi.values, self._psi.values]
        )  # written to where Adam reads it
        self.optimizer.update(self._rate)
        self._losses.copy_(losses.detach())


def _statistics_of(critic: ContrastiveCritic) -> list[Tensor]:
    """Means and deviations of observations and of actions."""
    encoder = critic.encode_observation
    assert isinstance(encoder, ObservationEncoder)  # a fleet has no parts
    inputs = (encoder.standardise, critic.standardise_action)
    return [statistic for part in inputs for statistic in (part.mean, part.std)]


def _equal(log: Transitions, other: Transitions) -> bool:
    """Whether two logs have the same observations and actions in the same episodes."""
    if log is other:
        return True
    return all(
        torch.equal(getattr(log, name), getattr(other, name))
        for name in ("episode_starts", "terminated", "actions", "observations")
    )


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
            relu_backward(gradient, rows, 0, grad_input=gradient)
            torch.sum(gradient, 1, out=layer.of_shift)
            torch.sum(normal.mul_(gradient), 1, out=layer.of_scale)  # nobody reads it after that
            gradient, _, _ = norm_backward(
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
