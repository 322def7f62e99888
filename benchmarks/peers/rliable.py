"""Numbers of rliable for ``benchmarks.aggregates``; runs in rliable's own environment."""

from __future__ import annotations

import json
import sys
import warnings
from typing import Any

import numpy as np
from rliable import library, metrics


def numbers(case: dict[str, Any]) -> dict[str, Any]:
    """Aggregates of a case's first scores, and their improvement over its second, with 95 % intervals."""
    first, second = np.array(case["first"]), np.array(case["second"])
    thresholds = np.array(case["thresholds"])

    def estimate(statistic: Any, *scores: np.ndarray) -> dict[str, Any]:
        np.random.seed(0)
        given = scores[0] if len(scores) == 1 else list(scores)
        points, intervals = library.get_interval_estimates({"": given}, statistic, reps=case["resamples"])
        (low, high) = intervals[""]
        return {"value": points[""].tolist(), "low": low.tolist(), "high": high.tolist()}

    def aggregates(scores: np.ndarray) -> np.ndarray:
        return np.array([metrics.aggregate_iqm(scores), metrics.aggregate_optimality_gap(scores)])

    def profile(scores: np.ndarray) -> np.ndarray:
        return library.score_distributions(scores, thresholds)

    def improvement(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
        return np.array([metrics.probability_of_improvement(ours, theirs)])

    both = estimate(aggregates, first)
    return {
        "interquartile_mean": {name: part[0] for name, part in both.items()},
        "optimality_gap": {name: part[1] for name, part in both.items()},
        "performance_profile": estimate(profile, first),
        "probability_of_improvement": {
            name: part[0] for name, part in estimate(improvement, first, second).items()
        },
    }


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(json.dumps([numbers(case) for case in json.loads(sys.argv[1])]), flush=True)  # noqa: T201
