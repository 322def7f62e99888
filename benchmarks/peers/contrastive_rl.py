"""Training of the critic in contrastive-rl-pytorch: its own trainer and loss, with networks of equal shape."""

from __future__ import annotations

import sys

import numpy as np
import torch
from contrastive_rl_pytorch import ContrastiveRLTrainer
from contrastive_rl_pytorch.contrastive_rl import ContrastiveLearning

from benchmarks.peers.harness import clocked, given_job, report
from benchmarks.peers.torch_networks import mlp


def main() -> None:
    """Train and report the time."""
    job = given_job(sys.argv[1])
    with np.load(job.log) as log:
        observations, actions, starts = (
            torch.from_numpy(log[name]) for name in ("observations", "actions", "episode_starts")
        )
    # The trainer takes episodes of equal length, and as many per step as make a batch. Pass whole batches
    # only, because it would train on the remainder as a smaller batch.
    a_step = job.batch // job.per_episode
    episodes = (len(starts) - 1) // a_step * a_step
    steps = int(starts[1])
    states = observations.reshape(-1, steps + 1, observations.shape[1])[:episodes, :-1]
    acts = actions.reshape(-1, steps, actions.shape[1])[:episodes]
    trainer = ContrastiveRLTrainer(
        encoder=mlp(states.shape[-1] + acts.shape[-1], job.hidden, job.representation),
        future_encoder=mlp(states.shape[-1], job.hidden, job.representation),
        batch_size=job.batch,
        repetition_factor=job.per_episode,
        learning_rate=job.learning_rate,
        discount=job.discount,
        contrastive_learn=ContrastiveLearning(l2norm_embed=True, symmetric=True, scale=1.0 / job.temperature),
        cpu=job.device == "cpu",
    )

    def steps_of(count: int) -> int:
        loss = trainer(states, count, actions=acts, pbar=False)  # the trainer waits for every loss
        if not np.isfinite(loss):
            raise FloatingPointError("the loss is not a number")
        return count

    packages = ["contrastive-rl-pytorch", "torch"]
    report(job, clocked(steps_of), packages, torch.cuda.max_memory_allocated)


if __name__ == "__main__":
    main()
