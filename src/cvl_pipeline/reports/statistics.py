"""Aggregates over runs and tasks with stratified bootstrap intervals.

After "Deep Reinforcement Learning at the Edge of the Statistical Precipice" (Agarwal et al., NeurIPS 2021). The scores
of a method are an array of shape (runs, tasks); any axes before these two are batch axes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Scores = NDArray[np.float64]
RESAMPLES = 10_000


class Estimate(NamedTuple):
    """A statistic and its interval; each part has the shape of the statistic."""

    value: Scores
    low: Scores
    high: Scores


def interquartile_mean(scores: Scores) -> Scores:
    """Mean of the middle half of all runs, (..., runs, tasks) -> (...).

    Of n scores, the n // 4 lowest and as many of the highest are left out.
    """
    from scipy import stats  # imported when needed: it takes half a second

    return np.asarray(stats.trim_mean(scores.reshape(*scores.shape[:-2], -1), 0.25, axis=-1))


def optimality_gap(scores: Scores, target: float = 1.0) -> Scores:
    """Mean distance by which scores miss a target, (..., runs, tasks) -> (...); more than the target counts as it."""
    return np.asarray(target - np.minimum(scores, target).mean((-2, -1)))


def performance_profile(scores: Scores, thresholds: ArrayLike) -> Scores:
    """Share of runs with a score above each threshold, (..., runs, tasks) -> (..., thresholds)."""
    return np.asarray((scores[..., None] > np.asarray(thresholds)).mean((-3, -2)))


def probability_of_improvement(first: Scores, second: Scores) -> Scores:
    """Probability that a run of one method beats a run of another on the same task, averaged over tasks.

    This is the Mann-Whitney U statistic: equal scores count half.

    Args:
        first: scores of the one, (..., runs, tasks).
        second: scores of the other, (..., other runs, tasks).
    """
    ours, theirs = first[..., :, None, :], second[..., None, :, :]
    return np.asarray(((ours > theirs) + 0.5 * (ours == theirs)).mean((-3, -2, -1)))


def estimate(
    statistic: Callable[..., Scores],
    *scores: ArrayLike,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
    tasks: Sequence[str] | None = None,
) -> Estimate:
    """Compute a statistic and its percentile bootstrap interval, stratified by task.

    The runs of every task are resampled independently, with replacement. Tasks are not resampled: the interval says
    how much the statistic varies with the seeds of the runs. With ``tasks``, the interval says instead how much it
    varies with the choice of the tasks: a bootstrap of clusters, in which columns of the same task go together.

    Args:
        statistic: one of the functions above, or another one that reduces the last two axes.
        scores: an array (runs, tasks) for every argument of the statistic. Numbers of runs may differ.
        confidence: level of the interval.
        resamples: number of bootstrap samples.
        seed: of the resampling.
        tasks: name of the task of each column. Resample tasks, the same for all scores, instead of runs.

    Raises:
        ValueError: an array is empty, does not have two axes, contains a number that is not finite, or has other tasks
            than the first one.
    """
    arrays = [np.asarray(part, np.float64) for part in scores]
    for array in arrays:
        if array.ndim != 2 or not array.size or not np.isfinite(array).all():
            raise ValueError(f"scores must be finite numbers of shape (runs, tasks); got shape {array.shape}")
        if array.shape[1] != arrays[0].shape[1]:
            raise ValueError(f"scores must have the same tasks: {array.shape[1]} and {arrays[0].shape[1]}")
    if tasks is not None:
        samples = np.concatenate(
            [
                statistic(*(np.moveaxis(array[:, columns], 1, 0) for array in arrays))
                for columns in _resampled_columns(tuple(tasks), resamples, seed)
            ]
        )
    else:
        generator = np.random.default_rng(seed)
        samples = statistic(*(_resampled(array, resamples, generator) for array in arrays))
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(samples, [tail, 1.0 - tail], axis=0)
    return Estimate(statistic(*arrays), low, high)


@functools.lru_cache(maxsize=8)  # a report has a hundred estimates over the same tasks
def _resampled_columns(tasks: tuple[str, ...], count: int, seed: int) -> list[NDArray[np.int64]]:
    """Columns of bootstrap samples of tasks, one array (samples, columns) for each number of columns."""
    generator = np.random.default_rng(seed)
    columns_of = [np.flatnonzero(np.asarray(tasks) == task) for task in dict.fromkeys(tasks)]
    chosen = generator.integers(len(columns_of), size=(count, len(columns_of)))
    by_width: dict[int, list[NDArray[np.int64]]] = {}
    for sample in chosen:
        columns = np.concatenate([columns_of[task] for task in sample])
        by_width.setdefault(len(columns), []).append(columns)
    return [np.stack(samples) for samples in by_width.values()]


def _resampled(scores: Scores, count: int, generator: np.random.Generator) -> Scores:
    """Bootstrap samples, (runs, tasks) -> (count, runs, tasks)."""
    rows = generator.integers(len(scores), size=(count, *scores.shape))
    return np.take_along_axis(scores[None], rows, axis=1)
