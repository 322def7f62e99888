from __future__ import annotations

from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cvl_pipeline.errors import InputError
from cvl_pipeline.tuning.parameters import TuningParameters
from cvl_pipeline.tuning.results import (
    _pareto_front,
    best_parameters,
    history_plot,
    importance_plot,
    parallel_plot,
    report,
    status_lines,
    study_of,
    trials_table,
)
from cvl_pipeline.tuning.space import distribution
from tests.tuning.studies import make_tuning

HIDDEN = "contrastive_dynamics.hidden"
STEPS = "contrastive_dynamics.training.steps"
BETA = "policy_extraction.beta"
SPACE: dict[str, Any] = {
    STEPS: {"type": "int", "low": 1, "high": 9},
    HIDDEN: {"type": "categorical", "choices": [[8], [16, 16], None]},
    BETA: {"type": "float", "low": 1.0, "high": 9.0, "when": {HIDDEN: [[8]]}},
}


def trial(
    tuning: TuningParameters, params: dict[str, Any], state: str = "COMPLETE", **attributes: Any
) -> optuna.trial.FrozenTrial:
    measured = attributes.get("measured", {})
    return optuna.create_trial(
        state=optuna.trial.TrialState[state],
        values=[measured[name] for name in tuning.objectives] if state == "COMPLETE" else None,
        params=params,
        distributions={name: distribution(tuning.space[name]) for name in params},
        user_attrs=attributes,
    )


def studied(tuning: TuningParameters) -> pd.DataFrame:
    rows = [(3, "[8]", 2.5), (5, "[16, 16]", None), (9, None, None), (1, "[8]", 1.5)]
    numbers = [(0.1, 0.2, 3.0), (0.5, 0.9, 1.0), (0.3, 0.4, 2.0), (0.2, 0.3, 2.5)]
    trials = []
    for (steps, hidden, beta), (one, success, loss) in zip(rows, numbers, strict=True):
        params = {STEPS: steps, HIDDEN: hidden} | ({} if beta is None else {BETA: beta})
        measured = {"returns_correlation": one, "success_rate": success, "contrastive_loss": loss}
        measured = {name: measured[name] for name in tuning.measured}
        trials.append(trial(tuning, params, measured=measured, seconds=1.0, defaults=steps == 3))
    trials.append(trial(tuning, {STEPS: 2, HIDDEN: "[8]"}, "FAIL", error="MemoryError: "))
    trials.append(trial(tuning, {STEPS: 2, HIDDEN: "[8]"}, "PRUNED"))
    trials.append(trial(tuning, {STEPS: 2}, "FAIL", surplus=True))
    trials.append(trial(tuning, {}, "RUNNING"))
    study = optuna.create_study(directions=tuning.directions)  # type: ignore[arg-type]
    study.add_trials(trials)
    return trials_table(study.trials, tuning)


@pytest.fixture
def tuning() -> TuningParameters:
    return make_tuning(space=SPACE, measures=("success_rate", "contrastive_loss"))


def test_table_has_every_ended_trial_and_survives_parquet(tuning: TuningParameters, tmp_path: Any) -> None:
    table = studied(tuning)
    assert table["state"].tolist() == ["COMPLETE"] * 4 + ["FAIL", "PRUNED"]
    table.to_parquet(tmp_path / "trials.parquet")
    again = pd.read_parquet(tmp_path / "trials.parquet")
    assert best_parameters(again, tuning) == best_parameters(table, tuning)
    again_params = [t.params for t in study_of(again, tuning).trials]
    assert again_params == [t.params for t in study_of(table, tuning).trials]
    assert again_params[0] == {"steps": 3, "hidden": "[8]", "beta": 2.5}
    assert again_params[2] == {"steps": 9, "hidden": None}


def test_best_parameters_are_ready_for_use(tuning: TuningParameters) -> None:
    best = best_parameters(studied(tuning), tuning)
    assert best["parameters"] == {STEPS: 5, HIDDEN: [16, 16]}
    assert best["trial"] == 1
    assert best["measured"]["success_rate"] == 0.9
    assert not best["online"]
    assert best["finished"] == 5


def test_without_a_complete_trial_there_are_no_best_parameters(tuning: TuningParameters) -> None:
    table = studied(tuning)
    with pytest.raises(InputError, match="no trial is complete"):
        best_parameters(table[table["state"] != "COMPLETE"], tuning)


@given(arrays(np.float64, st.tuples(st.integers(1, 8), st.integers(1, 3)), elements=st.integers(0, 3)))
def test_front_dominates_all_other_points_and_no_point_dominates_it(values: Any) -> None:
    front = set(_pareto_front(values))
    assert front
    for place, row in enumerate(values):
        beaten_by = [
            other
            for other in range(len(values))
            if (values[other] >= row).all() and (values[other] > row).any()
        ]
        assert (place in front) == (not beaten_by)
        assert place in front or any(other in front for other in beaten_by)


def test_best_of_several_objectives_is_a_compromise_on_the_front() -> None:
    tuning = make_tuning(
        space={STEPS: SPACE[STEPS]}, objectives=("success_rate", "contrastive_loss"), sampler="nsgaii"
    )
    numbers = [(0.9, 5.0), (0.7, 2.0), (0.1, 1.0), (0.6, 3.0)]
    trials = [
        trial(tuning, {STEPS: n + 1}, measured={"success_rate": success, "contrastive_loss": loss})
        for n, (success, loss) in enumerate(numbers)
    ]
    study = optuna.create_study(directions=tuning.directions)  # type: ignore[arg-type]
    study.add_trials(trials)
    table = trials_table(study.trials, tuning)
    best = best_parameters(table, tuning)
    assert best["front"] == [0, 1, 2]
    assert best["trial"] == 1
    assert best["online"]
    for draw in (history_plot, importance_plot, parallel_plot):
        assert draw(table, tuning).data


def test_report_correlates_offline_with_online_numbers(tuning: TuningParameters) -> None:
    found = report(studied(tuning), tuning)
    assert found["trials"] == {"complete": 4, "pruned": 1, "fail": 1}
    assert found["defaults"]["success_rate"] == 0.2
    by_name = {entry["offline"]: entry for entry in found["correlations"]}
    assert by_name["returns_correlation"]["spearman"] == 1.0
    assert by_name["contrastive_loss"]["spearman"] == 1.0  # lower losses, higher success
    assert by_name["returns_correlation"]["ci_low"] <= 1.0
    other = make_tuning(
        space={"contrastive_dynamics.discount": {"type": "categorical", "choices": [0.9, 0.99]}},
        measures=("success_rate", "contrastive_loss"),
    )
    trials = [
        trial(
            other, {"contrastive_dynamics.discount": 0.9},
            measured={"returns_correlation": n / 4, "success_rate": n / 5, "contrastive_loss": float(n)},
        )
        for n in range(4)
    ]  # fmt: skip
    study = optuna.create_study(direction="maximize")
    study.add_trials(trials)
    by_name = {e["offline"]: e for e in report(trials_table(study.trials, other), other)["correlations"]}
    assert "contrastive_dynamics.discount" in by_name["contrastive_loss"]["why_not"]
    assert by_name["returns_correlation"]["spearman"] == 1.0
    lines = status_lines(study, other)
    assert lines[0].endswith("4 complete")
    assert "  contrastive_dynamics.discount: 0.9" in lines


def test_plots_show_trials_and_parameters(tuning: TuningParameters) -> None:
    table = studied(tuning)
    assert "returns_correlation" in str(history_plot(table, tuning).layout.yaxis.title.text)
    assert importance_plot(table, tuning).data
    lines = [line for line in parallel_plot(table, tuning).data if line.mode == "lines"]
    assert len(lines) == 4
    assert {label for label, _ in lines[0].customdata} == {"returns_correlation", "steps", "hidden", "beta"}
