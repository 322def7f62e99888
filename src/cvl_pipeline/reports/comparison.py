"""Comparison of methods over tasks and seeds: which runs there are, and tables with intervals.

All methods are judged on the same tasks: those for which every method has every seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import Any

import numpy as np
import pandas as pd

from cvl_pipeline.reports.statistics import (
    Estimate,
    Scores,
    estimate,
    interquartile_mean,
    optimality_gap,
    performance_profile,
    probability_of_improvement,
)

OURS, BEHAVIOUR, ALL = "cvl", "behaviour data", "all presets"
THRESHOLDS = np.linspace(0.0, 1.0, 101)
PROFILE_RESAMPLES = 2000
"""For profiles, whose samples are a hundred times as large."""


class Comparison:
    """Scores of the tasks for which every method has every seed, so that all are judged on the same ones.

    Attributes:
        methods: names of the methods that have runs, in the order given.
        seeds: of the comparison.
        places: presets and tasks that are compared.
        incomplete: presets and tasks for which a method or a seed is missing.
        presets: of the places.
        scores_at: scores by preset and task, (seeds, methods).
    """

    def __init__(self, rows: pd.DataFrame, methods: Sequence[str], axes: Mapping[str, Sequence[Any]]) -> None:
        """Sort the rows into a grid.

        Args:
            rows: one row per run, with columns ``preset``, ``task``, ``seed``, ``method`` and ``success``.
            methods: names of the methods; one that no row has is left out.
            axes: ``seeds``, ``presets`` and ``tasks``.
        """
        present = set(rows["method"])
        self.methods = [name for name in methods if name in present]
        self.scores_at = {
            (preset, task): part.pivot(index="seed", columns="method", values="success")
            for (preset, task), part in rows.groupby(["preset", "task"], sort=False)
        }
        self.seeds = list(axes["seeds"])
        self.wanted = [(preset, task) for preset in axes["presets"] for task in axes["tasks"]]
        self.places = [place for place in self.wanted if self._is_complete(place)]
        self.incomplete = [place for place in self.wanted if place not in self.places]
        self.presets = list(dict.fromkeys(preset for preset, _ in self.places))
        self.has_behaviour = bool(self.places) and self._is_complete_for([BEHAVIOUR])

    def _is_complete(self, place: tuple[str, str]) -> bool:
        part = self.scores_at.get(place)
        if part is None:
            return False
        return bool(part.reindex(index=self.seeds, columns=self.methods).notna().all(axis=None))

    def _is_complete_for(self, columns: list[str]) -> bool:
        return all(
            self.scores_at[place].reindex(index=self.seeds, columns=columns).notna().all(axis=None)
            for place in self.places
        )

    def scores(self, method: str, preset: str = ALL) -> Scores:
        """Success rates, (seeds, tasks), of a preset, or of all presets side by side."""
        places = self._places(preset)
        return np.stack(
            [self.scores_at[place].loc[self.seeds, method].to_numpy(np.float64) for place in places], 1
        )

    def _places(self, preset: str) -> list[tuple[str, str]]:
        return [place for place in self.places if preset in (ALL, place[0])]

    def without(self, tasks: Sequence[str]) -> Comparison | None:
        """The same comparison without some tasks; None if it has none of them, or no others."""
        places = [place for place in self.places if place[1] not in tasks]
        if not places or len(places) == len(self.places):
            return None
        part = copy(self)
        part.places, part.presets = places, list(dict.fromkeys(preset for preset, _ in places))
        return part

    def estimate(
        self, statistic: Callable[..., Scores], *methods: str, preset: str = ALL, **options: Any
    ) -> Estimate:
        """Compute a statistic of methods and its interval.

        It resamples seeds. If there is only one, it resamples tasks, each with all its presets: a task recurs in
        every preset, so its scores there are not independent of each other.
        """
        tasks = None if len(self.seeds) > 1 else [task for _, task in self._places(preset)]
        return estimate(statistic, *(self.scores(name, preset) for name in methods), tasks=tasks, **options)

    @property
    def resampling(self) -> str:
        """What intervals resample, as a sentence."""
        if len(self.seeds) > 1:
            return "Intervals resample the seeds of each task."
        if len({task for _, task in self.places}) > 1:
            together = ", each with all its presets" if len(self.presets) > 1 else ""
            return (
                f"There is one seed, so intervals resample the tasks{together}: they show how much a number depends "
                "on the choice of tasks, and not how much it varies from seed to seed."
            )
        return "There is one seed, so intervals have no width."

    def columns(self) -> list[str]:
        """Names of the columns of tables: the presets, and all of them if there are several."""
        return [*self.presets, *([ALL] if len(self.presets) > 1 else [])]

    def by_success(self) -> list[str]:
        """The methods, best first."""
        return sorted(self.methods, key=lambda name: -float(interquartile_mean(self.scores(name))))

    def _rows(self) -> list[str]:
        """The methods, best first, and the behaviour data if all of them are there."""
        return [*self.by_success(), *([BEHAVIOUR] if self.has_behaviour else [])]

    def success(self) -> dict[str, dict[str, Estimate]]:
        """Interquartile mean by method and preset, and the optimality gap."""
        return {
            name: {
                **{
                    preset: self.estimate(interquartile_mean, name, preset=preset)
                    for preset in self.columns()
                },
                "optimality gap": self.estimate(optimality_gap, name),
            }
            for name in self._rows()
        }

    def improvement(self, ours: str = OURS) -> dict[str, dict[str, Estimate]]:
        """Probability that a run of one method beats a run of each other one on the same task, by preset."""
        return {
            name: {
                preset: self.estimate(probability_of_improvement, ours, name, preset=preset)
                for preset in self.columns()
            }
            for name in self.by_success()
            if name != ours
        }

    def by_task(self, *, complete: bool = True) -> list[dict[str, Any]]:
        """Mean score over the seeds, one row per preset and task; NaN without a run.

        Args:
            complete: leave out tasks for which a method or a seed is missing.
        """
        places = self.places if complete else [place for place in self.wanted if place in self.scores_at]
        names = [*self.methods, BEHAVIOUR]
        return [
            {"preset": preset, "task": task}
            | {
                str(name): float(mean)
                for name, mean in self.scores_at[preset, task]
                .reindex(index=self.seeds, columns=names)
                .mean()
                .items()
            }
            for preset, task in places
        ]

    def times(self, seconds: pd.Series[float]) -> list[tuple[str, float, Estimate | None]]:
        """Methods with their seconds of training and interquartile mean, fastest first, those without seconds last.

        Args:
            seconds: by method; NaN if unknown.

        Returns:
            Name, seconds and estimate, which is None if no task is compared.
        """
        known = [(name, float(seconds[name])) for name in self.methods]
        known.sort(key=lambda row: (math.isnan(row[1]), row[1]))
        return [
            (name, time, self.estimate(interquartile_mean, name) if self.places else None)
            for name, time in known
        ]

    def profile(self, method: str) -> Estimate:
        """Share of runs above each of THRESHOLDS."""
        return self.estimate(_profile, method, resamples=PROFILE_RESAMPLES)


def _profile(scores: Scores) -> Scores:
    return performance_profile(scores, THRESHOLDS)


def interval(numbers: Estimate) -> str:
    """Format an estimate."""
    return f"{numbers.value:.2f} [{numbers.low:.2f}, {numbers.high:.2f}]"
