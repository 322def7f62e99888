"""Preparation of validated episodes for training: split, statistics and episode table."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from cvl_pipeline.episodes.container import BLOCK, Normalisation, Rewards, Split, Transitions
from cvl_pipeline.episodes.validation import check_splittable
from cvl_pipeline.errors import InputError

BLOCK_NUMBERS = 1 << 22
"""Numbers per block in a pass over all images, in double precision: 32 MiB."""
COARSE = 8
"""Side length, in pixels, of the downscaled images in ``coverage``."""
COARSE_ROWS = 1024
"""Observations that ``coverage`` reads at once."""
PLOTTED_OBSERVATIONS = 50_000
"""Number of observations that pictures of ``coverage`` show."""


def split_episodes(transitions: Transitions, validation_fraction: float, seed: int) -> Split:
    """Hold out whole episodes, so that training never sees their states: those of the source, or a random share.

    Raises:
        InputError: fewer than two episodes, so one part would be empty.
    """
    check_splittable(transitions)
    episodes = transitions.episodes
    if transitions.held_out:
        first = episodes - int(transitions.held_out)
        if not 1 <= first < episodes:
            raise InputError(
                f"data_ingestion: the source holds out {int(transitions.held_out)} of {episodes} episodes; it "
                "must leave some of both"
            )
        return Split(train=torch.arange(first), validation=torch.arange(first, episodes))
    held_out = min(max(1, round(validation_fraction * episodes)), episodes - 1)
    order = torch.from_numpy(np.random.default_rng([seed, 2]).permutation(episodes))
    return Split(train=order[held_out:].sort().values, validation=order[:held_out].sort().values)


def fit_normalisation(transitions: Transitions, split: Split, std_floor: float) -> Normalisation:
    """Mean and standard deviation of the training episodes' observations and actions.

    Args:
        transitions: all episodes.
        split: defines the training episodes.
        std_floor: smaller standard deviations are raised to this value, so that an almost constant dimension
            (in Meta-World, the position of an absent object) is not amplified into noise.
    """
    trains = torch.zeros(transitions.episodes, dtype=torch.bool)
    trains[split.train] = True
    first_rows = transitions.episode_starts + torch.arange(transitions.episodes + 1)
    layout = transitions.parts
    takes = [partial(layout.part, name=name) for name in layout.names] if layout else [_whole]
    of_parts = [_moments(transitions.observations, first_rows, trains, std_floor, take) for take in takes]
    mean, std = (torch.cat(values) for values in zip(*of_parts, strict=True))
    return Normalisation(
        mean, std, *_moments(transitions.actions, transitions.episode_starts, trains, std_floor)
    )


def _whole(rows: Tensor) -> Tensor:
    return rows


def _moments(
    values: Tensor,
    starts: Tensor,
    trains: Tensor,
    std_floor: float,
    take: Callable[[Tensor], Tensor] = _whole,
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over the rows of the training episodes, float32.

    Vectors (N, O) give statistics per dimension, (O,); images (N, H, W, C) per channel, (C,). The function
    makes two passes, block by block, in double precision.

    Args:
        values: rows, episode after episode.
        starts: (E + 1,) first row of each episode, then the number of rows.
        trains: (E,) bool, the episode is a training episode.
        std_floor: smallest standard deviation.
        take: part of the rows whose moments are computed.
    """
    one = take(values[:1])
    size = BLOCK if one.ndim < 4 else max(1, BLOCK_NUMBERS // one.numel())

    def blocks() -> Iterator[Tensor]:
        for first in range(0, len(values), size):
            rows = torch.arange(first, min(first + size, len(values)))
            mask = trains[torch.searchsorted(starts, rows, right=True) - 1]
            yield take(values[first : first + size])[mask].double().reshape(-1, one.shape[-1])

    count, total = 0, torch.zeros(one.shape[-1], dtype=torch.float64)
    for block in blocks():
        count, total = count + len(block), total + block.sum(0)
    mean = total / count
    variance = torch.stack([(block - mean).square().sum(0) for block in blocks()]).sum(0) / count
    return mean.float(), variance.sqrt().clamp(min=std_floor).float()


def discounted_returns(rewards: Tensor, transitions: Transitions, discount: float) -> Tensor:
    """Discounted return from every transition to the end of its episode, (N,) float64.

    ``G_t = sum_{k>=0} discount^k r_{t+k}``. In a truncated episode, the sum omits the rewards after the end
    of the log.
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


def last_steps(transitions: Transitions) -> Tensor:
    """Whether each transition is the last one of its episode, (N,) bool."""
    last = torch.zeros(len(transitions), dtype=torch.bool)
    last[transitions.episode_starts[1:] - 1] = True
    return last


def goes_on(transitions: Transitions) -> Tensor:
    """Whether anything follows each transition, (N,) bool: not after the last one of a terminated episode."""
    last = last_steps(transitions)
    return ~(last & transitions.terminated[transitions.episode_of(torch.arange(len(last)))])


def logged_shares(transitions: Transitions, discount: float) -> Tensor:
    """Share of every transition's discounted future that is logged, (N,) float64.

    It is ``1 - gamma^L`` with L steps left in a truncated episode, and one in a terminated episode.
    """
    index = torch.arange(len(transitions))
    episodes = transitions.episode_of(index)
    steps_left = transitions.episode_starts[episodes + 1] - index
    return torch.where(transitions.terminated[episodes], 1.0, 1.0 - discount ** steps_left.double())


def observed_returns(rewards: Tensor, transitions: Transitions, discount: float) -> Tensor:
    """Discounted returns divided by the logged share of their future (see ``logged_shares``), (N,) float64."""
    return discounted_returns(rewards, transitions, discount) / logged_shares(transitions, discount)


def coverage(transitions: Transitions, normalisation: Normalisation, count: int, seed: int) -> pd.DataFrame:
    """Project up to ``count`` standardised observations onto their first two principal components.

    Images are first reduced to COARSE by COARSE pixels.

    Args:
        transitions: all episodes.
        normalisation: statistics of the training episodes.
        count: maximum number of observations, sampled at random.
        seed: seed of the sampling.

    Returns:
        Columns ``first`` and ``second``, in standard deviations of a dimension; ``second`` is zero if
        observations have only one dimension.
    """
    generator = torch.Generator().manual_seed(seed)
    index = torch.randperm(len(transitions.observations), generator=generator)[:count]
    coarse = [_coarse(transitions, normalisation, part) for part in torch.split(index, COARSE_ROWS)]
    rows = torch.cat(coarse)
    centred = (rows - rows.mean(0)).double()
    _, directions = torch.linalg.eigh(centred.T @ centred)  # ascending
    components = (centred @ directions.flip(1)[:, :2]).numpy()
    second = components[:, 1] if components.shape[1] > 1 else np.zeros(len(components))
    return pd.DataFrame({"first": components[:, 0], "second": second})


def _coarse(transitions: Transitions, normalisation: Normalisation, index: Tensor) -> Tensor:
    """Standardised observations of some rows, (B, D); images as mean colours on a coarse grid."""
    rows = transitions.observations.index_select(0, index)
    mean, std, layout = normalisation.observation_mean, normalisation.observation_std, transitions.parts
    if layout is None:
        return _standardised(rows, mean, std)
    places = {name: layout.statistics_of(name) for name in layout.names}
    parts = [_standardised(layout.part(rows, name), mean[at], std[at]) for name, at in places.items()]
    return torch.cat(parts, dim=1)


def _standardised(rows: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    if rows.ndim == 4:  # full images have too many dimensions
        pooled = functional.adaptive_avg_pool2d(rows.permute(0, 3, 1, 2).float(), COARSE)
        rows = pooled.permute(0, 2, 3, 1)
    return ((rows - mean) / std).flatten(1)


def duplicate_episodes(transitions: Transitions) -> Tensor:
    """Whether each episode is bitwise identical to an earlier one, (E,) bool."""
    digests: set[bytes] = set()
    flags = []
    for episode, (start, end) in enumerate(pairwise(transitions.episode_starts.tolist())):
        digest = hashlib.sha256(
            transitions.observations[start + episode : end + episode + 1].numpy().tobytes()
        )
        digest.update(transitions.actions[start:end].numpy().tobytes())
        flags.append(digest.digest() in digests)
        digests.add(digest.digest())
    return torch.tensor(flags)


def episode_table(transitions: Transitions, rewards: Rewards, split: Split) -> pd.DataFrame:
    """Table with one row per episode.

    Columns: ``length`` (steps), ``return`` (undiscounted; NaN without rewards), ``success`` (at any step),
    ``episode`` (id), ``part`` (train or validation), ``terminated``, ``truncated`` and ``duplicate``.
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
    """Table with one row per episode: length (steps), return (undiscounted), success (at any step).

    Success is missing if nothing reports it.
    """
    starts = transitions.episode_starts[:-1].numpy()
    successes = np.logical_or.reduceat(rewards.successes.numpy(), starts)
    return pd.DataFrame(
        {
            "length": transitions.lengths.numpy(),
            "return": np.add.reduceat(rewards.rewards.double().numpy(), starts),
            "success": successes
            if rewards.reports_success
            else pd.array([pd.NA] * transitions.episodes, dtype="boolean"),
        }
    )


def with_tasks(table: pd.DataFrame, transitions: Transitions, tasks: Sequence[str]) -> pd.DataFrame:
    """Add the column ``task``, read from the observations, to a table with one row per episode.

    Without ``tasks``, the table is returned unchanged.

    Args:
        table: one row per episode.
        transitions: the episodes; the observations end with a one-hot vector of the task, or have one as the part
            ``task``.
        tasks: task names, in the order of the one-hot vector.
    """
    if not tasks:
        return table
    first = transitions.episode_starts[:-1] + torch.arange(transitions.episodes)  # rows of observations
    observations = transitions.observations[first]
    if transitions.parts is not None:
        observations = transitions.parts.part(observations, "task")
    one_hot = observations[:, -len(tasks) :]
    return table.assign(task=[tasks[index] for index in one_hot.argmax(1).tolist()])
