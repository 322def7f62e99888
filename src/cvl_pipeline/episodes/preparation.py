"""From validated episodes to what training reads: the split, the statistics and the episode table."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from cvl_pipeline.episodes.container import BLOCK, Normalisation, Rewards, Split, Transitions
from cvl_pipeline.errors import InputError

COARSE = 8
"""Pixels of a side of the images that coverage looks at."""


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
    trains = torch.zeros(transitions.episodes, dtype=torch.bool)
    trains[split.train] = True
    first_rows = transitions.episode_starts + torch.arange(transitions.episodes + 1)
    return Normalisation(
        *_moments(transitions.observations, first_rows, trains, std_floor),
        *_moments(transitions.actions, transitions.episode_starts, trains, std_floor),
    )


def _moments(values: Tensor, starts: Tensor, trains: Tensor, std_floor: float) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the rows of the episodes that train, float32.

    Of rows (N, O) for each of O dimensions; of images (N, H, W, C) for each of C channels. Two passes, block
    by block, in double precision.

    Args:
        values: rows, episode after episode.
        starts: (E + 1,) first row of each episode, and the number of rows.
        trains: (E,) bool.
        std_floor: smallest standard deviation.
    """

    def blocks() -> Iterator[Tensor]:
        for first in range(0, len(values), BLOCK):
            rows = torch.arange(first, min(first + BLOCK, len(values)))
            kept = trains[torch.searchsorted(starts, rows, right=True) - 1]
            yield values[first : first + BLOCK][kept].double().reshape(-1, values.shape[-1])

    count, total = 0, torch.zeros(values.shape[-1], dtype=torch.float64)
    for block in blocks():
        count, total = count + len(block), total + block.sum(0)
    mean = total / count
    variance = torch.stack([(block - mean).square().sum(0) for block in blocks()]).sum(0) / count
    return mean.float(), variance.sqrt().clamp(min=std_floor).float()


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


def observed_returns(rewards: Tensor, transitions: Transitions, discount: float) -> Tensor:
    """Returns over the share of their discounted future that was logged, (N,) float64.

    With L steps left in a truncated episode the return is divided by ``1 - gamma^L``; that of a terminated
    episode is complete as it is.
    """
    index = torch.arange(len(transitions))
    episodes = transitions.episode_of(index)
    steps_left = transitions.episode_starts[episodes + 1] - index
    seen = torch.where(transitions.terminated[episodes], 1.0, 1.0 - discount ** steps_left.double())
    return discounted_returns(rewards, transitions, discount) / seen


def coverage(transitions: Transitions, normalisation: Normalisation, count: int, seed: int) -> pd.DataFrame:
    """Where the data lie: the two principal components of up to ``count`` standardised observations.

    Of images, those of what is left of them at COARSE by COARSE pixels.

    Args:
        transitions: all episodes.
        normalisation: their statistics.
        count: observations, drawn at random.
        seed: of the draw.

    Returns:
        ``first`` and ``second``, in standard deviations of a dimension; ``second`` is zero if observations
        have but one.
    """
    generator = torch.Generator().manual_seed(seed)
    index = torch.randperm(len(transitions.observations), generator=generator)[:count]
    rows = transitions.observations.index_select(0, index)
    if transitions.images:  # their directions are too many: the mean colours of a coarse grid
        pooled = functional.adaptive_avg_pool2d(rows.permute(0, 3, 1, 2).float(), COARSE)
        rows = pooled.permute(0, 2, 3, 1)
    rows = ((rows - normalisation.observation_mean) / normalisation.observation_std).flatten(1)
    centred = (rows - rows.mean(0)).double()
    _, directions = torch.linalg.eigh(centred.T @ centred)  # ascending
    found = (centred @ directions.flip(1)[:, :2]).numpy()
    second = found[:, 1] if found.shape[1] > 1 else np.zeros(len(found))
    return pd.DataFrame({"first": found[:, 0], "second": second})


def duplicate_episodes(transitions: Transitions) -> Tensor:
    """Whether each episode repeats an earlier one to the last bit, (E,) bool."""
    seen: set[bytes] = set()
    repeated = []
    for episode, (start, end) in enumerate(pairwise(transitions.episode_starts.tolist())):
        digest = hashlib.sha256(
            transitions.observations[start + episode : end + episode + 1].numpy().tobytes()
        )
        digest.update(transitions.actions[start:end].numpy().tobytes())
        repeated.append(digest.digest() in seen)
        seen.add(digest.digest())
    return torch.tensor(repeated)


def episode_table(transitions: Transitions, rewards: Rewards, split: Split) -> pd.DataFrame:
    """One row an episode.

    Columns: id, part, length (steps), return (undiscounted; NaN without rewards), success (at any step), how
    it ended, and whether it repeats an earlier one.
    """
    part = np.full(transitions.episodes, "train", dtype=object)
    part[split.validation.numpy()] = "validation"
    return episode_summary(transitions, rewards).assign(
        episode=np.arange(transitions.episodes),
        part=part.astype(str),
        terminated=transitions.terminated.numpy(),
        truncated=transitions.truncated.numpy(),
        duplicate=duplicate_episodes(transitions).numpy(),
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
