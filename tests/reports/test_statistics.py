from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from benchmarks.aggregates import cases, ours
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from cvl_pipeline.reports.statistics import (
    Scores,
    estimate,
    interquartile_mean,
    optimality_gap,
    performance_profile,
    probability_of_improvement,
)
from tests.project import PROJECT

RLIABLE = json.loads((PROJECT / "benchmarks/results/rliable.json").read_text())
"""Made by ``python -m benchmarks.aggregates``, which its field ``command`` says."""
NUMBERS = st.floats(-2.0, 2.0).map(lambda number: round(number, 1))  # with ties
SCORES = arrays(np.float64, array_shapes(min_dims=2, max_dims=2, max_side=5), elements=NUMBERS)
STATISTICS = (interquartile_mean, optimality_gap)


def pairs(tasks: int) -> st.SearchStrategy[tuple[Scores, Scores]]:
    """Scores of two methods on the same tasks, with numbers of runs of their own."""
    runs = st.integers(1, 4).flatmap(lambda count: arrays(np.float64, (count, tasks), elements=NUMBERS))
    return st.tuples(runs, runs)


@pytest.mark.parametrize("position", range(len(RLIABLE["cases"])))
def test_numbers_are_those_of_rliable(position: int) -> None:
    case = RLIABLE["cases"][position]
    inputs = {name: case[name] for name in ("first", "second", "thresholds", "resamples")}
    assert json.loads(json.dumps(cases()[position])) == inputs
    for name, own in ours(case).items():
        theirs = case["rliable"][name]
        assert own.value == pytest.approx(theirs["value"], abs=1e-12), name
        # Both bootstraps are random, and a profile moves in steps of one run.
        tolerance = max(0.005, 0.1 * np.max(np.subtract(theirs["high"], theirs["low"])))
        assert own.low == pytest.approx(theirs["low"], abs=tolerance), name
        assert own.high == pytest.approx(theirs["high"], abs=tolerance), name


@given(SCORES)
def test_the_interquartile_mean_is_between_the_scores_that_it_keeps(scores: Scores) -> None:
    ordered, cut = np.sort(scores, axis=None), scores.size // 4
    kept = ordered[cut : scores.size - cut]
    assert interquartile_mean(scores) == pytest.approx(kept.mean(), abs=1e-12)
    assert ordered[cut] - 1e-12 <= interquartile_mean(scores) <= ordered[-cut - 1] + 1e-12


@given(SCORES, st.randoms(use_true_random=False))
def test_the_order_of_runs_does_not_count(scores: Scores, random: Any) -> None:
    shuffled = np.stack([np.array(random.sample(list(task), len(task))) for task in scores.T], axis=1)
    for statistic in STATISTICS:
        assert statistic(shuffled) == pytest.approx(statistic(scores), abs=1e-12)
    assert probability_of_improvement(shuffled, scores) == 0.5


@given(st.integers(1, 5).flatmap(pairs))
def test_one_of_two_methods_improves_on_the_other(both: tuple[Scores, Scores]) -> None:
    first, second = both
    forward, backward = probability_of_improvement(first, second), probability_of_improvement(second, first)
    assert forward + backward == pytest.approx(1.0)
    assert 0.0 <= forward <= 1.0
    assert probability_of_improvement(first + 5.0, second) == 1.0


@given(SCORES)
def test_a_profile_falls_from_one_to_zero(scores: Scores) -> None:
    profile = performance_profile(scores, [scores.min() - 0.1, *np.sort(scores, axis=None), scores.max()])
    assert profile[0] == 1.0
    assert profile[-1] == 0.0
    assert (np.diff(profile) <= 0.0).all()


@given(SCORES)
def test_the_gap_counts_what_is_missing_alone(scores: Scores) -> None:
    assert optimality_gap(scores) >= 0.0
    assert optimality_gap(np.minimum(scores, 1.0)) == optimality_gap(scores)
    assert optimality_gap(np.minimum(scores, 1.0) - 0.5) == pytest.approx(optimality_gap(scores) + 0.5)


@given(SCORES)
def test_batches_of_scores_are_those_of_single_ones(scores: Scores) -> None:
    both = np.stack([scores, -scores])
    for statistic in (*STATISTICS, lambda part: performance_profile(part, [0.0, 0.5])):
        assert statistic(both) == pytest.approx(np.stack([statistic(scores), statistic(-scores)]))
    reference = [float(probability_of_improvement(part, scores)) for part in both]
    assert probability_of_improvement(both, scores[None]) == pytest.approx(reference)


@settings(max_examples=20)
@given(arrays(np.float64, 4, elements=NUMBERS))
def test_tasks_are_not_resampled(tasks: Scores) -> None:
    low, high = estimate(interquartile_mean, np.tile(tasks, (3, 1)), resamples=50)[1:]
    assert low == high == pytest.approx(interquartile_mean(tasks[None]))


def test_runs_of_each_task_are_resampled_apart() -> None:
    scores = np.array([[0.0, 1.0], [1.0, 0.0]])  # the mean of whole runs is always a half
    numbers = estimate(lambda part: part.mean((-2, -1)), scores, confidence=0.8)
    assert [float(number) for number in numbers] == [0.5, 0.25, 0.75]


def test_tasks_are_resampled_together_if_that_is_wanted() -> None:
    scores = np.array([[0.0, 1.0]])  # half of the resamples have a task twice
    numbers = estimate(lambda part: part.mean((-2, -1)), scores, tasks=["push", "reach"])
    assert [float(number) for number in numbers] == [0.5, 0.0, 1.0]
    better = estimate(probability_of_improvement, scores + 0.1, scores, tasks=["push", "reach"])
    assert [float(number) for number in better] == [1.0, 1.0, 1.0], "on each task, so in each resample"


def test_columns_of_a_task_are_resampled_together() -> None:
    def mean(part: Scores) -> Scores:
        return np.asarray(part.mean((-2, -1)))

    # The tasks are equal on average, however much their columns differ.
    level = estimate(mean, [[0.0, 0.0, 1.0, 1.0]], tasks=["push", "reach", "push", "reach"])
    assert [float(number) for number in level] == [0.5, 0.5, 0.5]
    # A task that lacks a column: the only means are those of push twice, of both, and of reach twice.
    uneven = estimate(mean, [[0.0, 0.0, 1.0]], tasks=["push", "push", "reach"], confidence=0.4)
    assert [float(number) for number in uneven] == pytest.approx([1 / 3] * 3)
    wide = estimate(mean, [[0.0, 0.0, 1.0]], tasks=["push", "push", "reach"])
    assert [float(number) for number in wide[1:]] == [0.0, 1.0]


def test_more_confidence_is_wider_and_the_seed_determines_it() -> None:
    scores = np.random.default_rng(0).random((5, 3))
    narrow, wide = (estimate(optimality_gap, scores, confidence=level) for level in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high
    assert estimate(optimality_gap, scores, confidence=0.5) == narrow
    assert estimate(optimality_gap, scores, confidence=0.5, seed=1) != narrow


def test_intervals_contain_the_true_value_about_as_often_as_stated() -> None:
    generator = np.random.default_rng(1)
    held = 0
    for seed in range(200):
        low, high = estimate(
            lambda part: part.mean((-2, -1)),
            generator.exponential(1.0, size=(20, 4)),
            resamples=400,
            seed=seed,
        )[1:]
        held += int(low <= 1.0 <= high)
    assert 0.87 < held / 200 <= 0.99


@pytest.mark.parametrize("scores", [np.ones(3), np.ones((0, 3)), np.ones((2, 2, 2)), np.array([[np.nan]])])
def test_scores_of_another_shape_or_without_a_number_are_refused(scores: Scores) -> None:
    with pytest.raises(ValueError, match=r"shape \(runs, tasks\); got shape"):
        estimate(interquartile_mean, scores)


def test_methods_with_other_tasks_are_not_compared() -> None:
    with pytest.raises(ValueError, match="the same tasks: 3 and 2"):
        estimate(probability_of_improvement, np.ones((2, 2)), np.ones((2, 3)))
