from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import optuna
import pytest
import torch
from optuna.trial import TrialState

from cvl_pipeline.errors import TERMINATED, InputError
from cvl_pipeline.io.owner import owner
from cvl_pipeline.tuning import worker
from cvl_pipeline.tuning.study import SUCCESS_UNKNOWN, open_study
from cvl_pipeline.tuning.trial import Bench
from cvl_pipeline.tuning.worker import Specification, work
from tests.tuning.studies import make_specification, make_tuning


def trials_of(specification: Specification) -> list[optuna.trial.FrozenTrial]:
    return open_study(specification.location, "name", specification.tuning, 0).trials


def test_number_of_trials_is_a_target_over_all_runs(tmp_path: Path) -> None:
    specification = make_specification(tmp_path, make_tuning(trials=2))
    work(specification)
    trials = trials_of(specification)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 2
    assert trials[0].params["contrastive_dynamics.temperature"] == 0.25  # the defaults come first
    work(specification)
    assert len(trials_of(specification)) == 2
    more = make_specification(tmp_path, make_tuning(trials=3))
    work(more)
    assert len(trials_of(more)) == 3


def test_one_worker_gives_the_same_trials_every_time(tmp_path: Path) -> None:
    found = []
    for name in ("one", "other"):
        specification = make_specification(tmp_path / name, make_tuning(trials=4))
        work(specification)
        found.append([(trial.params, trial.values) for trial in trials_of(specification)])
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), FloatingPointError("nan")]
)
def test_failed_trial_is_recorded_and_skipped(tmp_path: Path, error: Exception) -> None:
    measure, calls = Bench.measure, []

    def sometimes(self: Bench, *arguments: Any) -> dict[str, float]:
        calls.append(arguments)
        if len(calls) == 2:
            raise error
        return measure(self, *arguments)

    specification = make_specification(tmp_path, make_tuning(trials=3))
    with patch.object(Bench, "measure", sometimes):
        work(specification)
    trials = trials_of(specification)
    assert [trial.state.name for trial in trials] == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert trials[1].user_attrs["error"].startswith(type(error).__name__)


def test_trial_that_an_unforeseen_error_ends_keeps_its_reason(tmp_path: Path) -> None:
    specification = make_specification(tmp_path, make_tuning())
    full = OSError(28, "No space left on device")
    with patch.object(Bench, "measure", side_effect=full), pytest.raises(OSError, match="No space"):
        work(specification)
    assert "No space left on device" in trials_of(specification)[0].user_attrs["error"]


def test_trial_whose_objective_is_not_a_number_fails_and_says_so(tmp_path: Path) -> None:
    numbers = iter([0.5, float("nan"), 0.25])
    specification = make_specification(tmp_path, make_tuning(trials=2, measures=("contrastive_loss",)))

    def measure(self: Bench, *_: Any) -> dict[str, float]:
        return {"returns_correlation": next(numbers), "contrastive_loss": float("nan")}

    with patch.object(Bench, "measure", measure):
        work(specification)
    trials = trials_of(specification)
    assert [trial.state.name for trial in trials] == ["COMPLETE", "FAIL", "COMPLETE"]
    assert trials[1].user_attrs["error"] == (
        "FloatingPointError: returns_correlation is nan, which cannot be compared with other trials"
    )
    assert len(list(specification.records.iterdir())) == 2


def measure_successes(monkeypatch: pytest.MonkeyPatch, *successes: float) -> None:
    """Let trainings of trials have these success rates, one after another; NaN: the environment never said."""
    numbers = iter(successes)
    monkeypatch.setattr(Bench, "measure", lambda *_: {"success_rate": next(numbers)})


NEVER = float("nan")


def test_trial_to_which_success_is_never_mentioned_has_not_succeeded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    specification = make_specification(
        tmp_path, make_tuning(trials=3, seeds=2, max_failures=1, objectives=("success_rate",))
    )
    measure_successes(monkeypatch, NEVER, NEVER, NEVER, 0.5, 1.0, 0.5)
    work(specification)
    trials = trials_of(specification)
    assert [trial.values for trial in trials] == [[0.0], [0.25], [0.75]]
    assert [SUCCESS_UNKNOWN in trial.user_attrs for trial in trials] == [True, False, False]
    specification.location.journal.unlink()
    make_specification(tmp_path, specification.tuning)  # restores the trials
    assert [SUCCESS_UNKNOWN in trial.user_attrs for trial in trials_of(specification)] == [True, False, False]


@pytest.mark.parametrize(("trials", "failures", "enough"), [(4, 1, 2), (3, 9, 3)])
def test_study_ends_if_success_is_mentioned_to_no_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trials: int, failures: int, enough: int
) -> None:
    tuning = make_tuning(trials=trials, max_failures=failures, objectives=("success_rate",))
    specification = make_specification(tmp_path, tuning)
    measure_successes(monkeypatch, *[NEVER] * enough)
    message = rf"reported success in none of {enough} trials, so success cannot be measured; use return_mean"
    for _ in range(2):  # also if the study is continued
        with pytest.raises(InputError, match=message):
            work(specification)


def test_too_many_failures_end_the_study(tmp_path: Path) -> None:
    specification = make_specification(tmp_path, make_tuning(max_failures=2))
    with (
        patch.object(Bench, "measure", side_effect=FloatingPointError("nan")),
        pytest.raises(
            InputError,
            match=r"3 trials failed, more than tuning.max_failures \(2\); the last one: Floating.*nan",
        ),
    ):
        work(specification)


@pytest.mark.parametrize("code", [0, 2, "done"])
def test_own_code_that_ends_python_ends_the_study_with_its_place(tmp_path: Path, code: int | str) -> None:
    specification = make_specification(tmp_path, make_tuning(trials=2))
    place = rf"leave ended Python at .*test_worker\.py:\d+ \(SystemExit: {code}\); raise an error instead$"

    def leave(*_: Any) -> dict[str, float]:
        sys.exit(code)

    with patch.object(Bench, "measure", leave), pytest.raises(InputError, match=place):
        work(specification)
    assert not any(trial.state.is_finished() for trial in trials_of(specification))


def test_worker_that_sigterm_ends_has_no_error(tmp_path: Path) -> None:
    specification = make_specification(tmp_path, make_tuning(trials=2))
    with (
        patch.object(Bench, "measure", side_effect=SystemExit(TERMINATED)),
        pytest.raises(SystemExit) as ended,
    ):
        work(specification)
    assert ended.value.code == TERMINATED


def test_one_of_two_workers_gives_up_the_last_trial(tmp_path: Path) -> None:
    specification = make_specification(tmp_path, make_tuning(trials=2))
    other = open_study(specification.location, "name", specification.tuning, 0)
    may_begin = worker._may_begin
    looks = []

    def look_then_wait(study: optuna.Study, given: Specification) -> bool:
        begin = may_begin(study, given)
        looks.append(begin)
        if len(looks) == 2:  # this worker has seen that one trial is wanted; then another begins it
            trial = other.ask()
            for key, value in owner().items():
                trial.set_user_attr(key, value)
            other.tell(trial, 0.5)
        return begin

    with patch.object(worker, "_may_begin", look_then_wait):
        work(specification)
    trials = trials_of(specification)
    assert sum(trial.state == TrialState.COMPLETE for trial in trials) == 2
    assert [trial.user_attrs.get("surplus", False) for trial in trials] == [False, False, True]


def test_trials_below_the_median_are_pruned(tmp_path: Path) -> None:
    tuning = make_tuning(
        trials=6, startup_trials=1, pruner="median", sampler="random",
        objectives=("mutual_information_bound",),
    )  # fmt: skip
    specification = make_specification(tmp_path, tuning)
    work(specification)
    trials = trials_of(specification)
    pruned = [trial for trial in trials if trial.state == TrialState.PRUNED]
    assert len(trials) == 6
    assert pruned
    for trial in pruned:
        assert max(trial.intermediate_values) <= 12
        assert json.loads((specification.records / f"{trial.user_attrs['id']}.json").read_text())[
            "state"
        ] == ("PRUNED")
    assert not list((tmp_path / "shared").glob("*.unfinished"))
    complete = next(trial for trial in trials if trial.state == TrialState.COMPLETE)
    assert complete.values == [complete.intermediate_values[max(complete.intermediate_values)]]


def test_value_is_the_mean_over_seeds(tmp_path: Path) -> None:
    seeds = []

    def measure(self: Bench, values: Mapping[str, Any], seed: int, *_: Any) -> dict[str, float]:
        seeds.append(seed)
        return {"returns_correlation": float(seed)}

    specification = make_specification(tmp_path, make_tuning(trials=1, seeds=3))
    with patch.object(Bench, "measure", measure):
        work(specification)
    assert seeds == [0, 1, 2]
    assert trials_of(specification)[0].values == [1.0]


def test_specification_survives_json(tmp_path: Path) -> None:
    specification = make_specification(tmp_path, make_tuning())
    assert Specification.from_json(specification.to_json()) == specification
