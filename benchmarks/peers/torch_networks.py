"""Networks of the same shape as this package's, and the log, for the peers that use torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.peers.harness import Job


def mlp(inputs: int, hidden: Sequence[int], outputs: int) -> nn.Sequential:
    """Linear layers with LayerNorm and ReLU between them."""
    layers: list[nn.Module] = []
    for size in hidden:
        layers += [nn.Linear(inputs, size), nn.LayerNorm(size), nn.ReLU()]
        inputs = size
    return nn.Sequential(*layers, nn.Linear(inputs, outputs))


def read_transitions(job: Job) -> dict[str, Tensor]:
    """Read standardised states and next states, actions, rewards and episode ends, (N, ...) each."""
    with np.load(job.log) as file:
        log = dict(file)
    starts = log["episode_starts"]
    lengths = np.diff(starts)
    rows = np.arange(starts[-1]) + np.repeat(np.arange(len(lengths)), lengths)
    standard = (log["observations"] - log["observation_mean"]) / log["observation_std"]
    ends = np.zeros(starts[-1], dtype=bool)
    ends[starts[1:] - 1] = True
    arrays = {
        "states": standard[rows],
        "next_states": standard[rows + 1],
        "actions": log["actions"],
        "rewards": log["rewards"],
        "ends": ends,
    }
    return {name: torch.from_numpy(value).to(job.device) for name, value in arrays.items()}
