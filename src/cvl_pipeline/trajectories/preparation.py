"""From validated episodes to what training reads: the split, the statistics and the episode table."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cvl_pipeline.errors import InputError
from cvl_pipeline.trajectories.container import Normalisation, Rewards, Split, Transitions


def split_episodes(transitions: Transitions, validation_fraction: float, seed: int) -> Split:
    """Hold out a random share of whole episodes, so that no state of them is ever trained on.

    Raises:
        InputError: fewer than two episodes, so that one part would be empty.
    """
    episodes = transitions.episodes
    if episodes < 2:
        raise InputError(f"data_ingestion: {episodes} episode cannot be split; at least 2 are needed")
    held_out = min(max(1, round(validation_fraction * episodes)), episodes - 1)
    order = torch.from_numpy(np.random.default_rng([seed, 2]).permutation(episodes))
    return Split(train=order[held_out:].sort().values, validation=order[:held_out].sort().values)


def fit_normalisation(transitions: Transitions, split: Split, std_floor: float) -> Normalisation:
    """Mean and standard deviation of the training episodes' observations and actions.

    Args:
        transitions: all episodes.
        split: which of them train.
        std_floor: standard deviations below it count as it, so that a dimension that hardly moves
            (in Meta-World, the place of an absent object) is not blown up into noise.
    """
    train = transitions.select(split.train)

    def moments(values: Tensor) -> tuple[Tensor, Tensor]:
        wide = values.double()
        std = wide.std(0, unbiased=False).clamp(min=std_floor)
        return wide.mean(0).float(), std.float()

    return Normalisation(*moments(train.observations), *moments(train.actions))


def discounted_returns(rewards: Tensor, transitions: Transitions, discount: float) -> Tensor:
    """Discounted return to the end of its episode from every transition, (N,) float64.

    ``G_t = sum_{k>=0} discount^k r_{t+k}``, which for a truncated episode leaves out what the log does
    not show.
    """
    values = rewards.double().numpy()
    result = np.empty_like(values)
    starts = transitions.episode_starts.numpy()
    for start, end in pairwise(starts):
        running = 0.0
        for t in range(end - 1, start - 1, -1):
            running = values[t] + discount * running
            result[t] = running
    return torch.from_numpy(result)


def episode_table(transitions: Transitions, rewards: Rewards, split: Split) -> pd.DataFrame:
    """One row an episode: id, part, length (steps), return (undiscounted), success (at any step), ending."""
    part = np.full(transitions.episodes, "train", dtype=object)
    part[split.validation.numpy()] = "validation"
    return episode_summary(transitions, rewards).assign(
        episode=np.arange(transitions.episodes),
        part=part.astype(str),
        terminated=transitions.terminated.numpy(),
        truncated=transitions.truncated.numpy(),
    )


def episode_summary(transitions: Transitions, rewards: Rewards) -> pd.DataFrame:
    """One row an episode: length (steps), return (undiscounted), success (at any step)."""
    starts = transitions.episode_starts[:-1].numpy()
    return pd.DataFrame(
        {
            "length": transitions.lengths.numpy(),
            "return": np.add.reduceat(rewards.rewards.double().numpy(), starts),
            "success": np.logical_or.reduceat(rewards.successes.numpy(), starts),
        }
    )
