"""Ours, timed as the peers are: a script that does a job and prints one line of JSON."""

from __future__ import annotations

import json
import math
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from benchmarks.common import defaults
from benchmarks.peers.harness import Job, Train, given_job, report, timed
from cvl_pipeline.artifacts import load_artifact
from cvl_pipeline.dynamics.losses import contrastive_loss
from cvl_pipeline.dynamics.module import ContrastiveDynamics
from cvl_pipeline.dynamics.parameters import DynamicsParameters
from cvl_pipeline.networks.critic import ContrastiveCritic, CriticShape
from cvl_pipeline.policies.module import PolicyExtraction
from cvl_pipeline.policies.parameters import PolicyParameters
from cvl_pipeline.readout.q_function import QFunction
from cvl_pipeline.readout.readouts import ExactReadout
from cvl_pipeline.training.fit import fit
from cvl_pipeline.training.module import DRAWN, OfflineModule
from cvl_pipeline.trajectories.container import Normalisation, Split, Transitions
from cvl_pipeline.trajectories.sampling import SegmentSampler

PIECES = ("sampling", "forward", "loss", "backward", "optimiser")
ROUNDS = 3
"""Of the pieces and of the whole, in turn."""


class Clock(OfflineModule):
    """Takes the time from the first gradient step to the first measurement, which comes after the last."""

    began = ended = 0.0

    def on_train_start(self) -> None:
        """Start."""
        self.began = time.perf_counter()

    def on_validation_start(self) -> None:
        """Stop; the losses of the last steps have been waited for."""
        self.ended = time.perf_counter()


class TimedDynamics(Clock, ContrastiveDynamics):
    """The critic's training."""


class TimedPolicy(Clock, PolicyExtraction):
    """The policy's."""


def training_values(job: Job, stage: str, steps: int) -> dict[str, Any]:
    """The pipeline's own, with the job's sizes and a single measurement, after the last step."""
    values: dict[str, Any] = defaults(stage)["training"]
    return values | {
        "steps": steps,
        "batch_size": job.batch,
        "learning_rate": job.learning_rate,
        "validation_interval": steps,
        "precision": job.precision,
        "accelerator": "gpu" if job.device == "cuda" else "cpu",
        "loggers": (),
    }


def dynamics_parameters(job: Job, steps: int) -> DynamicsParameters:
    """Of the critic."""
    stage = "contrastive_dynamics"
    changes = {
        "discount": job.discount, "loss": "symmetric_infonce", "representation": "unit_norm",
        "representation_size": job.representation, "hidden": job.hidden, "temperature": job.temperature,
        "segments_per_episode": job.per_episode, "validation_batches": 1,
        "training": training_values(job, stage, steps),
    }  # fmt: skip
    return DynamicsParameters(**defaults(stage) | changes)


def policy_parameters(job: Job, steps: int) -> PolicyParameters:
    """Of the policy, by advantage-weighted regression; V takes one action, since it is not what is timed."""
    stage = "policy_extraction"
    changes = {
        "objective": "awr", "hidden": job.hidden, "beta": job.beta, "max_weight": job.max_weight,
        "baseline": "marginal_actions", "baseline_actions": 1,
        "training": training_values(job, stage, steps),
    }  # fmt: skip
    return PolicyParameters(**defaults(stage) | changes)


def read(job: Job) -> tuple[Transitions, Split, Normalisation]:
    """The artifacts."""
    transitions, split, normalisation = (
        load_artifact(Path(job.folder) / f"{kind}.safetensors", kind)
        for kind in ("transitions", "split", "normalisation")
    )
    return transitions, split, normalisation


def small_q(job: Job, transitions: Transitions, normalisation: Normalisation) -> QFunction:
    """Some Q: advantages are computed before the first step, so its size does not show in the time."""
    shape = CriticShape(
        observation_shape=tuple(transitions.observations.shape[1:]),
        action_size=transitions.actions.shape[1], hidden=(8,), representation_size=4,
        representation="unit_norm", temperature=job.temperature, learned_temperature=False,
        discount=job.discount, horizon_conditioning=False,
    )  # fmt: skip
    critic = ContrastiveCritic(shape, normalisation).requires_grad_(False)
    count = 16
    readout = ExactReadout(
        temperature=critic.temperature, horizons=torch.empty(0, dtype=torch.int64), discount=job.discount,
        self_normalised=True, rewards=torch.linspace(0.0, 1.0, count),
        psi=critic.psi(transitions.observations[:count], torch.zeros(count, dtype=torch.bool)),
        log_weights=torch.full((count,), -math.log(count)),
    )  # fmt: skip
    return QFunction(critic, readout)


def trainer(job: Job) -> Train:
    """Training by ``fit``, Lightning included; not its start, the advantages or the measurement."""
    transitions, split, normalisation = read(job)
    q = small_q(job, transitions, normalisation) if job.stage == "policy" else None

    def train(steps: int) -> tuple[int, float]:
        module: TimedDynamics | TimedPolicy
        if job.stage == "policy":
            module = TimedPolicy(transitions, split, normalisation, policy_parameters(job, steps), 0, q)
        else:
            module = TimedDynamics(transitions, split, normalisation, dynamics_parameters(job, steps), 0)
        fit(module, description=job.stage)
        return steps, module.ended - module.began

    return train


def wait(job: Job) -> None:
    """Until the GPU, if it is one, has done what it was told."""
    if job.device == "cuda":
        torch.cuda.synchronize()


def seconds_of_pieces(job: Job, steps: int) -> list[float]:
    """Seconds a step of each of PIECES: the step written out as a loop, with a clock between the pieces.

    Sampling draws DRAWN batches at once, as training does, and gathers one a step; forward makes phi and psi;
    the loss has the logits too, and backward has its own. On a GPU each piece is waited for, so their sum may
    exceed the step's time, in which they overlap.
    """
    transitions, split, normalisation = read(job)
    parameters = dynamics_parameters(job, steps)
    module = ContrastiveDynamics(transitions, split, normalisation, parameters, 0).to(job.device)
    sampler = SegmentSampler(transitions.to(job.device), job.discount, split.train)
    generator = Generator(device=job.device).manual_seed(0)
    loss_of = contrastive_loss(parameters.loss)
    optimiser = module.configure_optimizers()
    spent = [0.0] * len(PIECES)
    for step in range(steps):
        times = [time.perf_counter()]

        def stamp(times: list[float] = times) -> None:
            wait(job)
            times.append(time.perf_counter())

        if step % DRAWN == 0:
            draws = sampler.draw(DRAWN * job.batch, generator, job.per_episode).split([job.batch] * DRAWN)
        segments = sampler.gather(draws[step % DRAWN])
        stamp()
        phi = module.critic.phi(segments.observations, segments.actions)
        psi = module.critic.psi(segments.futures, segments.absorbed)
        stamp()
        loss: Tensor = loss_of(module.critic.logits(phi, psi))
        stamp()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        stamp()
        for group in optimiser.param_groups:
            group["lr"] = module.learning_rate(step)
        optimiser.step()
        stamp()
        spent = [
            total + after - before for total, (before, after) in zip(spent, pairwise(times), strict=True)
        ]
    return [total / steps for total in spent]


def shares(job: Job) -> dict[str, float]:
    """Microseconds of each piece of a critic's step, of the whole step, and of what is left: the trainer.

    The pieces and whole training by ``fit`` are timed in turn, for as many steps, ROUNDS times; the fastest
    round of each counts. What the whole takes beyond the pieces is Lightning and the check of the losses.
    """
    train = trainer(job)
    steps, _ = timed(train, job.seconds / ROUNDS)
    rounds = [(seconds_of_pieces(job, steps), train(steps)[1] / steps) for _ in range(ROUNDS)]
    pieces = min((pieces for pieces, _ in rounds), key=sum)
    whole = min(whole for _, whole in rounds)
    row = dict(zip(PIECES, pieces, strict=True)) | {
        "Lightning and the rest": whole - sum(pieces),
        "step": whole,
    }
    return {name: 1e6 * seconds for name, seconds in row.items()}


def main() -> None:
    """Do the job."""
    job = given_job(sys.argv[1])
    if job.stage == "shares":
        print(json.dumps(shares(job)))  # noqa: T201
        return
    report(job, trainer(job), ["torch", "lightning"], torch.cuda.max_memory_allocated)


if __name__ == "__main__":
    main()
