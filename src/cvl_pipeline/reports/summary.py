"""Means of rollouts with bootstrap confidence intervals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

RESAMPLES = 10_000
DRAWN = 10_000_000
"""Numbers that are drawn at a time: the resamples of a large log, all at once, would not fit the memory."""


def bootstrap_interval(values: NDArray[np.float64], confidence: float, seed: int) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean, episodes resampled (Efron 1979)."""
    if np.ptp(values) == 0.0:  # nothing to resample; scipy would warn
        return float(values[0]), float(values[0])
    from scipy import stats  # imported when needed: it takes half a second

    interval = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=max(1, DRAWN // len(values)),
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def summarise_rollouts(
    tables: Mapping[str, pd.DataFrame], confidence: float, seed: int
) -> dict[str, float | None]:
    """``<name>.success_rate`` and ``<name>.return_mean`` of each table, each with ``_ci_low``/``_ci_high``.

    They are None where success or reward is not known. A table with tasks also gives
    ``<name>.success_rate.<task>`` of each.

    Args:
        tables: with columns ``success`` and ``return``, one row per episode, and perhaps ``task``.
        confidence: level of the intervals, such as 0.95.
        seed: of the resampling.
    """
    summary: dict[str, float | None] = {}
    for name, table in tables.items():
        for metric, column in (("success_rate", "success"), ("return_mean", "return")):
            key = f"{name}.{metric}"
            if table[column].isna().any():
                summary |= dict.fromkeys((key, f"{key}_ci_low", f"{key}_ci_high"))
                continue
            values = table[column].to_numpy(np.float64)
            low, high = bootstrap_interval(values, confidence, seed)
            summary |= {key: float(values.mean()), f"{key}_ci_low": low, f"{key}_ci_high": high}
        if "task" in table and not table["success"].isna().any():
            for task, rate in table.groupby("task")["success"].mean().items():
                summary[f"{name}.success_rate.{task}"] = float(rate)
    return summary


def return_digits(returns: Iterable[float | None]) -> int:
    """Decimals of returns beside each other (None: unknown): three digits of the largest, but at most two decimals."""
    largest = max((abs(value) for value in returns if value is not None), default=0.0)
    return 0 if largest >= 100.0 else 1 if largest >= 10.0 else 2
