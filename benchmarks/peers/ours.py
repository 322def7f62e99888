"""Training of this package, timed like the peers: the script does a job and prints one line of JSON."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import read_data
from benchmarks.peers.harness import Job, Train, given_job, report, timed
from cvl_pipeline.api import EpisodeData, QFunction, read_out
from cvl_pipeline.dynamics.module import ContrastiveDynamics
from cvl_pipeline.dynamics.parameters import DynamicsParameters
from cvl_pipeline.episodes.container import Rewards
from cvl_pipeline.objectives.awr import AdvantageWeightedRegression
from cvl_pipeline.objectives.training import PolicyExtraction
from cvl_pipeline.training.fit import fit
from cvl_pipeline.training.module import OfflineModule

PIECES = ("drawing", "gathering", "forward", "loss", "backward", "optimiser")
ROUNDS = 3
"""Number of measurements, of which the fastest counts."""


class Clock(OfflineModule):
    """Measures the time from the first gradient step to the first validation, which follows the last step."""

    began = ended = 0.0
    processor_seconds = 0.0
    """CPU time of this process in between, of all threads."""

    def on_train_start(self) -> None:
        """Start the clock."""
        self.began, self.processor_seconds = time.perf_counter(), -time.process_time()

    def on_validation_start(self) -> None:
        """Stop the clock, after the losses of the last steps."""
        self.ended = time.perf_counter()
        self.processor_seconds += time.process_time()


class TimedDynamics(Clock, ContrastiveDynamics):
    """Training of the critic with a clock."""


class TimedPolicy(Clock, PolicyExtraction):
    """Training of the policy with a clock."""


def training_values(job: Job, steps: int) -> dict[str, Any]:
    """Training parameters with the job's sizes and one validation, after the last step."""
    return {
        "steps": steps,
        "batch_size": job.batch,
        "learning_rate": job.learning_rate,
        "validation_interval": steps,
        "precision": job.precision,
        "accelerator": "gpu" if job.device == "cuda" else "cpu",
        "loggers": (),
    }


def dynamics_parameters(job: Job, steps: int, **changes: Any) -> DynamicsParameters:
    """Parameters of the critic."""
    values = {
        "discount": job.discount, "representation_size": job.representation, "hidden": job.hidden,
        "loss": "symmetric_infonce", "representation": "unit_norm", "temperature": job.temperature,
        "segments_per_episode": job.per_episode, "validation_batches": 1, "training": training_values(job, steps),
    }  # fmt: skip
    return DynamicsParameters.model_validate(values | changes)


def policy_parameters(job: Job, steps: int) -> AdvantageWeightedRegression.Parameters:
    """Parameters of the policy, for advantage-weighted regression; V is not timed, so it takes one action."""
    values = {
        "hidden": job.hidden, "beta": job.beta, "max_weight": job.max_weight,
        "state_value": {"actions": 1}, "training": training_values(job, steps),
    }  # fmt: skip
    return AdvantageWeightedRegression.Parameters.model_validate(values)


def read(job: Job) -> EpisodeData:
    """Read the artifacts."""
    return read_data(Path(job.folder))


def small_q(job: Job, data: EpisodeData) -> QFunction:
    """Build a small Q; advantages are computed before the first step, so its size does not affect the time."""
    small = dynamics_parameters(job, 1, hidden=(8,), representation_size=4)
    critic = ContrastiveDynamics(data, small, 0).critic
    rewards = torch.linspace(0.0, 1.0, len(data.transitions))
    labelled = data.with_rewards(Rewards(rewards, rewards > 1.0))
    return QFunction(critic, read_out(critic, labelled, references=16, regression=None))


def trainer(job: Job) -> Train:
    """Make a Train that times ``fit`` with Lightning, without startup, advantages and validation."""
    data = read(job)
    q = small_q(job, data) if job.stage == "policy" else None

    def train(steps: int) -> tuple[int, float]:
        module: TimedDynamics | TimedPolicy
        if job.stage == "policy":
            module = TimedPolicy(data, policy_parameters(job, steps), 0, q)
        else:
            module = TimedDynamics(data, dynamics_parameters(job, steps), 0)
        module.graphable = module.graphable and job.method != "without a graph"
        fit(module, description=job.stage)
        return steps, module.ended - module.began

    return train


class ClockedDynamics(TimedDynamics):
    """Training of the critic with a clock for each part of a step."""

    def __init__(self, job: Job, steps: int) -> None:
        """Read the log and set the clocks to zero."""
        super().__init__(read(job), dynamics_parameters(job, steps), 0)
        self.job = job
        self.spent = dict.fromkeys(PIECES, 0.0)

    def clock(self, owner: Any, name: str, piece: str) -> None:
        """Sum the time of all calls of a function; on a GPU, wait for the result of each call."""
        function = getattr(owner, name)

        def clocked(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            result = function(*arguments, **options)
            if self.job.device == "cuda":
                torch.cuda.synchronize()
            if not self.ended:
                self.spent[piece] += time.perf_counter() - start
            return result

        setattr(owner, name, clocked)

    def make_optimizer(self, values: torch.nn.Parameter) -> torch.optim.Optimizer:
        """Return Adam with a clock."""
        optimizer = super().make_optimizer(values)
        self.clock(optimizer, "step", "optimiser")
        return optimizer

    def on_train_start(self) -> None:
        """Install the other clocks."""
        self.clock(self, "draw", "drawing")
        self.clock(self._train_sampler, "gather", "gathering")
        for network in (self.critic.phi_network, self.critic.psi_network):
            self.clock(network.variable, "run", "forward")
            self.clock(network.variable, "differentiate", "backward")
        self.clock(self, "gradient_step", "loss")  # with the pieces above, which ``shares`` subtracts
        super().on_train_start()


def shares(job: Job) -> dict[str, float]:
    """Microseconds of each part of a critic's training step in ``fit``, and of the whole step.

    Drawing samples many batches at once. Forward and backward are the passes of both networks. The loss includes the
    networks' inputs, the logits and their gradients. The rest of the step is the work of Lightning and the module. The
    fastest of ROUNDS counts. On a GPU, each part waits for its result, so parts do not overlap as usual.
    """
    steps, _ = timed(trainer(job), job.seconds / ROUNDS)
    rows = []
    for _ in range(ROUNDS):
        module = ClockedDynamics(job, steps)
        fit(module, description="shares")
        spent = {piece: seconds / steps for piece, seconds in module.spent.items()}
        spent["loss"] -= spent["gathering"] + spent["forward"] + spent["backward"]
        step = (module.ended - module.began) / steps
        rows.append(spent | {"Lightning and the rest": step - sum(spent.values()), "step": step})
    best = min(rows, key=lambda row: row["step"])
    return {name: 1e6 * seconds for name, seconds in best.items()}


def main() -> None:
    """Do the job."""
    job = given_job(sys.argv[1])
    if job.stage == "shares":
        print(json.dumps(shares(job)))  # noqa: T201
        return
    report(job, trainer(job), ["torch", "lightning"], torch.cuda.max_memory_allocated)


if __name__ == "__main__":
    main()
