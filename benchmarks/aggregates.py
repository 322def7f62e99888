"""Our aggregates over runs and tasks beside rliable's, for the test of ``reports/statistics.py``.

rliable 1.2.0 does not import beside pandas 3, so it gets an environment of its own in ``.venv-peers``. Its numbers are
saved in benchmarks/results/rliable.json, and the largest differences from ours are printed.

    python -m benchmarks.aggregates
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from benchmarks.common import RESULTS, write_record
from benchmarks.speed import Contender, output, python_of
from cvl_pipeline.reports import statistics

REQUIREMENTS = ("rliable==1.2.0", "pandas<3", "numpy==2.4.6", "scipy==1.17.1")
PEER = Contender("rliable", "benchmarks.peers.rliable", (), "", "rliable", (REQUIREMENTS,))
RESAMPLES = 10_000
THRESHOLDS = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9)


def cases() -> list[dict[str, Any]]:
    """Scores of two methods: success rates with many ties, wide scores, and unequal numbers of runs."""
    generator = np.random.default_rng(0)
    rates = generator.binomial(50, generator.beta(2, 1, size=(2, 1, 6)), size=(2, 3, 6)) / 50
    wide = generator.normal(0.6, 0.7, size=(2, 5, 10))
    few, many = generator.random((4, 3)), generator.random((7, 3))
    return [
        {"first": first.tolist(), "second": second.tolist(), "thresholds": THRESHOLDS, "resamples": RESAMPLES}
        for first, second in (rates, wide, (few, many))
    ]


def ours(case: dict[str, Any], seed: int = 0) -> dict[str, statistics.Estimate]:
    """Our numbers of a case, by the names of rliable's."""
    first, second = np.array(case["first"]), np.array(case["second"])
    options: dict[str, Any] = {"resamples": case["resamples"], "seed": seed}
    return {
        "interquartile_mean": statistics.estimate(statistics.interquartile_mean, first, **options),
        "optimality_gap": statistics.estimate(statistics.optimality_gap, first, **options),
        "performance_profile": statistics.estimate(
            lambda scores: statistics.performance_profile(scores, case["thresholds"]), first, **options
        ),
        "probability_of_improvement": statistics.estimate(
            statistics.probability_of_improvement, first, second, **options
        ),
    }


def main() -> None:
    """Save rliable's numbers and print how far ours are from them."""
    given = cases()
    peer = str(python_of(PEER))
    theirs = json.loads(output([peer, "-m", PEER.module, json.dumps(given)]))
    write_record(
        RESULTS / "rliable.json",
        requirements=REQUIREMENTS,
        cases=[case | {"rliable": numbers} for case, numbers in zip(given, theirs, strict=True)],
    )
    for position, (case, numbers) in enumerate(zip(given, theirs, strict=True)):
        for name, own in ours(case).items():
            gaps = [np.abs(getattr(own, part) - numbers[name][part]).max() for part in own._fields]
            text = ", ".join(
                f"{part} differs by {gap:.1e}" for part, gap in zip(own._fields, gaps, strict=True)
            )
            print(f"case {position}, {name}: {text}")  # noqa: T201


if __name__ == "__main__":
    main()
