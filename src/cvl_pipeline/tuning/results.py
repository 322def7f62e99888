"""Results of a study: its trials, the best one, the worth of the offline numbers, and plots."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
import pandas as pd
from numpy.typing import NDArray
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.study import Study
from optuna.trial import FrozenTrial
from scipy import stats

from cvl_pipeline.errors import InputError
from cvl_pipeline.schema import below
from cvl_pipeline.tuning.objectives import OBJECTIVES
from cvl_pipeline.tuning.parameters import Categorical, Dimension, Float, Int, TuningParameters
from cvl_pipeline.tuning.space import decoded, distribution
from cvl_pipeline.tuning.study import check_readable

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

RESAMPLES = 2000
COLUMN_TYPES = {Float: "float64", Int: "Int64", Categorical: "object"}
"""Pandas types of the columns of a trials table."""


def trials_table(trials: Sequence[FrozenTrial], tuning: TuningParameters) -> pd.DataFrame:
    """One row per trial that has ended.

    Columns: number, state (COMPLETE, PRUNED, FAIL), ``parameter/<full name>`` as sampled,
    ``measure/<objective>`` (NaN if the trial did not reach it), seconds, host, error, defaults (whether the
    trial has them) and retry_of (the number of the interrupted trial that it repeats, if any).
    """
    rows = []
    for trial in trials:
        attributes = trial.user_attrs
        if not trial.state.is_finished() or attributes.get("surplus"):
            continue
        measured = attributes.get("measured", {})
        rows.append(
            {"number": trial.number, "state": trial.state.name}
            | {f"parameter/{name}": _cell(trial, name, dimension) for name, dimension in tuning.space.items()}
            | {f"measure/{name}": measured.get(name, np.nan) for name in tuning.measured}
            | {
                "seconds": attributes.get("seconds", np.nan), "host": attributes.get("host"),
                "error": attributes.get("error"), "defaults": bool(attributes.get("defaults", False)),
                "retry_of": attributes.get("retry_of"),
            }
        )  # fmt: skip
    table = pd.DataFrame(rows)
    types = {f"parameter/{name}": COLUMN_TYPES[type(dimension)] for name, dimension in tuning.space.items()}
    return table.astype({**types, "retry_of": "Int64"})


def _cell(trial: FrozenTrial, name: str, dimension: Dimension) -> Any:
    """The sampled value or None; choices as text, since a Parquet column cannot hold several types."""
    if isinstance(dimension, Categorical) and name in trial.params:
        return repr(trial.params[name])
    return trial.params.get(name)


def study_of(trials: pd.DataFrame, tuning: TuningParameters) -> Study:
    """Rebuild the study of a table in memory, for Optuna's plots.

    Parameters are named by the last part of their names if it is unique, because plots cut long names off.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    laws = {name: distribution(dimension) for name, dimension in tuning.space.items()}
    last = Counter(name.split(".")[-1] for name in laws)
    labels = {name: name.split(".")[-1] if last[name.split(".")[-1]] == 1 else name for name in laws}
    study = optuna.create_study(directions=tuning.directions)  # type: ignore[arg-type]
    for row in trials.to_dict("records"):
        if row["state"] != "COMPLETE":
            continue
        params = _point(row, tuning)
        study.add_trial(
            optuna.create_trial(
                values=[row[f"measure/{name}"] for name in tuning.objectives],
                params={labels[name]: value for name, value in params.items()},
                distributions={labels[name]: laws[name] for name in params},
            )
        )
    return study


def _point(row: dict[Any, Any], tuning: TuningParameters) -> dict[str, Any]:
    """The sampled values of a trial, from its row."""
    point = {}
    for name, dimension in tuning.space.items():
        value = row[f"parameter/{name}"]
        if pd.isna(value):
            continue
        if isinstance(dimension, Categorical):
            law = distribution(dimension)
            assert isinstance(law, optuna.distributions.CategoricalDistribution)
            value = next(choice for choice in law.choices if repr(choice) == value)
        point[name] = value
    return point


def best_parameters(trials: pd.DataFrame, tuning: TuningParameters) -> dict[str, Any]:
    """The best point of the space, ready for use.

    With several objectives, it is the point of the Pareto front nearest to the best of each, in units of the
    front's extent.

    Returns:
        ``study``, ``trial`` (its number), ``parameters`` by full name, ``measured`` values, ``online``
        (whether an objective uses the environment), ``finished`` (number of finished trials) and ``front``,
        the numbers of all trials that no other dominates.

    Raises:
        InputError: no trial is complete.
    """
    complete = trials[trials["state"] == "COMPLETE"]
    if complete.empty:
        raise InputError("tuning: no trial is complete; see the column error of the trials table")
    signs = np.array([1.0 if direction == "maximize" else -1.0 for direction in tuning.directions])
    values = complete[[f"measure/{name}" for name in tuning.objectives]].to_numpy(np.float64) * signs
    front = _pareto_front(values)
    low, high = values[front].min(0), values[front].max(0)
    short = (high - values[front]) / np.where(high > low, high - low, 1.0)
    best = complete.iloc[front[int(np.argmin(np.square(short).sum(1)))]]
    row = {str(name): value for name, value in best.items()}
    point = _point(row, tuning)
    return {
        "study": tuning.study,
        "trial": int(row["number"]),
        "parameters": {name: _plain(decoded(tuning.space[name], value)) for name, value in point.items()},
        "measured": {name: float(row[f"measure/{name}"]) for name in tuning.measured},
        "online": any(OBJECTIVES[name].online for name in tuning.objectives),
        "finished": int((trials["state"] != "FAIL").sum()),
        "front": [int(number) for number in complete["number"].iloc[front]],
    }


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _pareto_front(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Indices of the rows (N, objectives) that no other row dominates; more is better."""
    beaten = [bool(((values >= row).all(1) & (values > row).any(1)).any()) for row in values]
    return np.flatnonzero(~np.array(beaten))


def report(trials: pd.DataFrame, tuning: TuningParameters) -> dict[str, Any]:
    """Summarise the study: trial counts, best trial and defaults, and which offline number to trust.

    Returns:
        Numbers of trials by state; ``seconds`` of the complete trials; ``best`` and ``defaults``, their
        measurements; ``correlations``, for each pair of an offline and an online number that every trial
        measures: Spearman's correlation over the complete trials with a 95 % bootstrap interval (positive if
        better by the one is better by the other), or why there is none.
    """
    complete = trials[trials["state"] == "COMPLETE"]
    defaults = complete[complete["defaults"]]
    best = best_parameters(trials, tuning)
    return {
        "trials": {
            state.lower(): int((trials["state"] == state).sum()) for state in ("COMPLETE", "PRUNED", "FAIL")
        },
        "seconds": float(complete["seconds"].sum()),
        "best": {"trial": best["trial"], **best["measured"]},
        "defaults": None
        if defaults.empty
        else {name: float(defaults[f"measure/{name}"].iloc[0]) for name in tuning.measured},
        "correlations": _correlations(complete, tuning),
    }


def _correlations(complete: pd.DataFrame, tuning: TuningParameters) -> list[dict[str, Any]]:
    offline = [name for name in tuning.measured if not OBJECTIVES[name].online]
    online = [name for name in tuning.measured if OBJECTIVES[name].online]
    entries: list[dict[str, Any]] = []
    for one, other in product(offline, online):
        differ = [name for name in tuning.space if below(name, OBJECTIVES[one].incomparable)]
        entry: dict[str, Any] = {"offline": one, "online": other, "trials": len(complete)}
        pair = complete[[f"measure/{one}", f"measure/{other}"]].to_numpy(np.float64)
        if differ:
            entry["why_not"] = f"trials that differ in {', '.join(differ)} cannot be compared by {one}"
        elif len(pair) < 3 or (np.ptp(pair, axis=0) == 0.0).any():
            entry["why_not"] = "too few complete trials, or all values are equal"
        else:
            sign = 1.0 if OBJECTIVES[one].direction == OBJECTIVES[other].direction else -1.0
            value, low, high = _rank_correlation(pair[:, 0] * sign, pair[:, 1])
            entry |= {"spearman": value, "ci_low": low, "ci_high": high}
        entries.append(entry)
    return entries


def _rank_correlation(one: NDArray[np.float64], other: NDArray[np.float64]) -> tuple[float, float, float]:
    """Spearman's correlation with its 95 % percentile bootstrap interval over the trials."""
    generator = np.random.default_rng(0)
    resampled = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.ConstantInputWarning)  # a resample may repeat one trial
        for _ in range(RESAMPLES):
            index = generator.integers(len(one), size=len(one))
            resampled.append(stats.spearmanr(one[index], other[index]).statistic)
    low, high = np.nanquantile(resampled, [0.025, 0.975])
    return float(stats.spearmanr(one, other).statistic), float(low), float(high)


def status_lines(study: Study, tuning: TuningParameters) -> list[str]:
    """Lines for a terminal: trials by state, and the best complete trial.

    Raises:
        InputError: the study was started with another space, other objectives or other measures.
    """
    check_readable(study, tuning)
    trials = study.get_trials(deepcopy=False)
    numbers = Counter(trial.state.name.lower() for trial in trials if not trial.user_attrs.get("surplus"))
    lines = [f"{study.study_name}: " + ", ".join(f"{count} {state}" for state, count in numbers.items())]
    if numbers["complete"]:
        best = best_parameters(trials_table(trials, tuning), tuning)
        measured = ", ".join(f"{name} {value:.4g}" for name, value in best["measured"].items())
        lines.append(f"best: trial {best['trial']}, {measured}")
        lines += [f"  {name}: {value}" for name, value in best["parameters"].items()]
    return lines


def history_plot(trials: pd.DataFrame, tuning: TuningParameters) -> Figure:
    """Plot one objective over the trials, or the Pareto front of several."""
    study = study_of(trials, tuning)
    if len(tuning.objectives) > 1:
        names = list(tuning.objectives)[:3]  # a plot has no more dimensions
        return optuna.visualization.plot_pareto_front(
            study, target_names=names, targets=lambda trial: trial.values[: len(names)]
        )
    return optuna.visualization.plot_optimization_history(study, target_name=tuning.objectives[0])


def importance_plot(trials: pd.DataFrame, tuning: TuningParameters) -> Figure:
    """Plot each parameter's importance for the first objective among the better trials (PED-ANOVA)."""
    sign = 1.0 if tuning.directions[0] == "minimize" else -1.0
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="PedAnova")  # it expects lower to be better, as it is here
        return optuna.visualization.plot_param_importances(
            study_of(trials, tuning), evaluator=PedAnovaImportanceEvaluator(),
            target=lambda trial: sign * trial.values[0], target_name=tuning.objectives[0],
        )  # fmt: skip


def parallel_plot(trials: pd.DataFrame, tuning: TuningParameters) -> Figure:
    """Plot every trial as a line through its parameters to the first objective."""
    return optuna.visualization.plot_parallel_coordinate(
        study_of(trials, tuning), target=lambda trial: trial.values[0], target_name=tuning.objectives[0]
    )
