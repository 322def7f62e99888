"""d3rlpy's own updates, with batches from its own buffer and without its logging."""

from __future__ import annotations

import sys

import d3rlpy
import numpy as np
import torch

from benchmarks.peers.harness import clocked, given_job, report
from benchmarks.peers.torch_networks import read_transitions


def main() -> None:
    """Train and report the time."""
    job = given_job(sys.argv[1])
    log = {name: value.cpu().numpy() for name, value in read_transitions(job).items()}
    dataset = d3rlpy.dataset.MDPDataset(
        observations=log["states"],
        actions=log["actions"],
        rewards=log["rewards"],
        terminals=np.zeros(len(log["ends"]), dtype=np.float32),
        timeouts=log["ends"].astype(np.float32),
    )
    encoder = d3rlpy.models.VectorEncoderFactory(list(job.hidden), use_layer_norm=True)
    rate = job.learning_rate
    config = {
        "BC": lambda: d3rlpy.algos.BCConfig(
            batch_size=job.batch, learning_rate=rate, encoder_factory=encoder
        ),
        "TD3+BC": lambda: d3rlpy.algos.TD3PlusBCConfig(
            batch_size=job.batch, actor_learning_rate=rate, critic_learning_rate=rate,
            actor_encoder_factory=encoder, critic_encoder_factory=encoder, gamma=job.discount,
        ),
        "IQL": lambda: d3rlpy.algos.IQLConfig(
            batch_size=job.batch, actor_learning_rate=rate, critic_learning_rate=rate, gamma=job.discount,
            actor_encoder_factory=encoder, critic_encoder_factory=encoder, value_encoder_factory=encoder,
            weight_temp=job.beta, max_weight=job.max_weight,
        ),
    }[job.method]()  # fmt: skip
    learner = config.create(device="cuda:0" if job.device == "cuda" else "cpu:0")
    learner.build_with_dataset(dataset)

    def steps_of(steps: int) -> int:
        for _ in range(steps):
            # d3rlpy reads its losses, so it waits for every step.
            losses = learner.update(dataset.sample_transition_batch(job.batch))
        if not all(np.isfinite(value) for value in losses.values()):
            raise FloatingPointError("a loss is not a number")
        return steps

    report(job, clocked(steps_of), ["d3rlpy", "torch"], torch.cuda.max_memory_allocated)


if __name__ == "__main__":
    main()
