from __future__ import annotations

import io
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from cvl_pipeline.reports import figures, plots
from cvl_pipeline.reports.series import edges

METRICS: dict[str, Any] = {
    "dataset": "reach-v3",
    "seed": 3,
    "episodes": 50,
    "confidence": 0.9,
    "reward": "dataset",
    "methods": {"cvl": "CVL", "bc": "BC"},
    **{
        f"{name}.{metric}{end}": value + shift
        for name, value in (("cvl", 0.8), ("bc", 0.5), ("behaviour", 0.6))
        for metric, scale in (("success_rate", 1.0), ("return_mean", 1.0))
        for end, shift in (("", 0.0), ("_ci_low", -0.1), ("_ci_high", 0.05))
    },
}


TITLES = {"cvl": "CVL", "bc": "BC", "iql": "IQL", "own": "own"}
COLOURS = {name: figures.colour(name) for name in TITLES}


def _draw(figure: Figure) -> None:
    """Matplotlib finds many faults only when it draws; its warnings are errors here."""
    figure.savefig(io.BytesIO(), format="png")


def _lines(figure: Figure, axis: int) -> dict[str, np.ndarray]:
    return {str(line.get_label()): np.asarray(line.get_ydata()) for line in figure.axes[axis].lines}


PLACES = pd.DataFrame({"first": [0.0, 1.0, 1.0], "second": [0.0, 2.0, -2.0]})


def test_histograms_show_solved_and_unsolved_episodes() -> None:
    table = pd.DataFrame(
        {"return": [1.0, 2.0, 2.5, 9.0], "length": [3, 3, 4, 5], "success": [False, False, True, True]}
    )
    figure = plots.behaviour_data(table, PLACES)
    _draw(figure)
    for axis in figure.axes[:2]:
        assert sum(patch.get_height() for patch in axis.patches) == 4  # type: ignore[attr-defined]
    _, labels = figure.axes[0].get_legend_handles_labels()
    assert labels == ["solved (2)", "not solved (2)"]
    counts = figure.axes[2].collections[0].get_array()
    assert counts is not None
    assert counts.sum() == len(PLACES)


@pytest.mark.parametrize("spread", [0.0, 1.0, 3.0, 1e6])
def test_a_histogram_of_returns_that_differ_in_their_last_bits_has_one_bar(spread: float) -> None:
    values = 1000.0 + np.spacing(1000.0) * np.array([0.0, spread, 0.0])
    bounds = edges(pd.DataFrame({"return": values}), "return")
    counts, _ = np.histogram(values, bounds)
    assert counts.sum() == 3
    assert (counts.max() == 3) == (spread < 1e6)


def test_histograms_show_all_episodes_together_where_nothing_reports_success() -> None:
    table = pd.DataFrame(
        {"return": [1.0, 2.0, 2.5], "length": [3, 3, 4], "success": pd.array([pd.NA] * 3, dtype="boolean")}
    )
    figure = plots.behaviour_data(table, PLACES)
    _draw(figure)
    for axis in figure.axes[:2]:
        assert sum(patch.get_height() for patch in axis.patches) == 3  # type: ignore[attr-defined]
        _, labels = axis.get_legend_handles_labels()
        assert labels == ["all episodes (3)"]


@pytest.mark.parametrize("success", [[True, True], pd.array([pd.NA, pd.NA], dtype="boolean")])
@pytest.mark.parametrize("returns", [[1.0, 1.0], [np.nan, np.nan]])
def test_equal_and_missing_returns_can_be_drawn(returns: list[float], success: Any) -> None:
    table = pd.DataFrame({"return": returns, "length": [2, 2], "success": success})
    figure = plots.behaviour_data(table, PLACES)
    _draw(figure)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == (["the log has no rewards"] if np.isnan(returns).all() else [])


def test_dynamics_history_shows_the_columns_of_the_history() -> None:
    history = pd.DataFrame(
        {
            "step": [10, 20],
            "train/loss": [3.0, 2.0],
            "validation/loss": [3.5, 2.5],
            "validation/categorical_accuracy_future": [0.1, 0.2],
            "validation/categorical_accuracy_anchor": [0.3, 0.4],
            "validation/mutual_information_bound": [0.5, 0.6],
        }
    )
    figure = plots.dynamics_history(history)
    _draw(figure)
    assert _lines(figure, 0)["training"].tolist() == [3.0, 2.0]
    assert _lines(figure, 0)["held out"].tolist() == [3.5, 2.5]
    assert _lines(figure, 1)["which future?"].tolist() == [0.1, 0.2]
    assert _lines(figure, 1)["which anchor?"].tolist() == [0.3, 0.4]
    assert figure.axes[2].lines[0].get_ydata().tolist() == [0.5, 0.6]  # type: ignore[union-attr]


def _values(episodes: int) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"episode": e + 10, "step": t, "q": 1.0 + e + 0.1 * t, "return": 2.0 * e + 0.2 * t}
            for e in range(episodes)
            for t in range(4)
        ]
    )


def test_values_are_drawn_with_the_fitted_line_and_the_worst_and_best_episode() -> None:
    report = {"slope": 2.0, "intercept": -1.0, "spearman": 0.9, "pearson": 0.8}
    figure = plots.values_against_returns(_values(5), report)
    _draw(figure)
    line = next(x for x in figure.axes[0].lines if str(x.get_label()).startswith("fitted"))
    assert np.asarray(line.get_ydata()).tolist() == pytest.approx([2.0 * 1.0 - 1.0, 2.0 * 5.3 - 1.0])
    episodes = [label for label in _lines(figure, 1) if label.startswith("episode")]
    assert episodes == ["episode 10", "episode 12", "episode 14"]


@pytest.mark.parametrize("episodes", [1, 2])
def test_values_of_few_episodes_and_undefined_correlations_can_be_drawn(episodes: int) -> None:
    report = dict.fromkeys(("slope", "intercept", "spearman", "pearson"), float("nan"))
    figure = plots.values_against_returns(_values(episodes), report)
    _draw(figure)
    labels = [str(line.get_label()) for line in figure.axes[1].lines if "episode" in str(line.get_label())]
    assert len(labels) == len(set(labels)), "no episode twice"


def test_policy_histories_show_every_policy() -> None:
    history = pd.DataFrame({"step": [5, 10], "train/loss": [2.0, 1.0], "validation/action_error": [0.4, 0.3]})
    figure = plots.policy_histories({"cvl": history, "bc": history + 1}, TITLES, COLOURS)
    _draw(figure)
    assert _lines(figure, 0)["CVL"].tolist() == [2.0, 1.0]
    assert _lines(figure, 1)["BC"].tolist() == [3.0, 2.0]
    assert _lines(figure, 2)["BC"].tolist() == [1.4, 1.3]


def test_a_method_need_not_measure_the_distance_to_logged_actions() -> None:
    history = pd.DataFrame({"step": [5, 10], "train/loss": [2.0, 1.0], "validation/action_error": [0.4, 0.3]})
    own = history.drop(columns="validation/action_error")
    figure = plots.policy_histories({"cvl": history, "iql": history + 1, "own": own}, TITLES, COLOURS)
    _draw(figure)
    assert [list(_lines(figure, axis)) for axis in range(4)] == [["CVL"], ["IQL"], ["own"], ["CVL", "IQL"]]


def test_comparison_shows_means_and_intervals() -> None:
    figure = plots.comparison(METRICS, COLOURS)
    _draw(figure)
    for axis in figure.axes:
        bars = [patch.get_height() for patch in axis.patches]  # type: ignore[attr-defined]
        assert bars == [0.8, 0.5, 0.6]
        assert [label.get_text() for label in axis.get_xticklabels()] == ["CVL", "BC", "behaviour"]
        spans = [
            tuple(segment[:, 1])
            for collection in axis.collections
            for segment in collection.get_segments()  # type: ignore[attr-defined]
        ]
        expected = [(0.7, 0.85), (0.4, 0.55), (0.5, 0.65)]
        np.testing.assert_allclose(spans, expected, atol=1e-9)
    assert "reach-v3, seed 3: 50 evaluation episodes, 90 % intervals" in figure.get_suptitle()


def _missing(*names: str, metric: str) -> dict[str, None]:
    return {f"{name}.{metric}{end}": None for name in names for end in ("", "_ci_low", "_ci_high")}


def test_comparison_shows_na_where_success_is_not_reported() -> None:
    figure = plots.comparison(METRICS | _missing("cvl", "bc", "behaviour", metric="success_rate"), COLOURS)
    _draw(figure)
    success, returns = figure.axes
    assert [text.get_text() for text in success.texts] == ["n/a"] * 3
    assert [text.get_position()[0] for text in success.texts] == [0, 1, 2]
    assert len(success.patches) == 0
    assert len(returns.patches) == 3
    assert not returns.texts
    labels = [label.get_text() for label in success.get_xticklabels()]
    assert labels == ["CVL", "BC", "behaviour"]


def test_comparison_shows_na_for_the_one_row_that_is_missing() -> None:
    figure = plots.comparison(METRICS | _missing("behaviour", metric="return_mean"), COLOURS)
    _draw(figure)
    success, returns = figure.axes
    assert [patch.get_height() for patch in returns.patches] == [0.8, 0.5]  # type: ignore[attr-defined]
    assert [(text.get_text(), text.get_position()[0]) for text in returns.texts] == [("n/a", 2)]
    assert len(success.patches) == 3


def test_comparison_shows_all_methods_in_their_order() -> None:
    more = {name.replace("bc.", "iql."): value for name, value in METRICS.items() if name.startswith("bc.")}
    titles = {"cvl": "CVL", "iql": "IQL", "bc": "BC (control)"}
    figure = plots.comparison(METRICS | more | {"methods": titles}, COLOURS)
    _draw(figure)
    for axis in figure.axes:
        labels = [label.get_text() for label in axis.get_xticklabels()]
        assert labels == ["CVL", "IQL", "BC (control)", "behaviour"]
        assert len(axis.patches) == 4
        assert len({patch.get_facecolor() for patch in axis.patches}) == 4


def test_the_name_of_a_dataset_is_no_formula() -> None:
    # As a formula, it could not be drawn.
    _draw(plots.comparison(METRICS | {"dataset": r"a$\notmath$"}, COLOURS))


def test_the_name_of_a_method_is_no_formula() -> None:
    titles = dict.fromkeys(METRICS["methods"], r"my $\frac{$")
    _draw(plots.comparison(METRICS | {"methods": titles}, COLOURS))
    history = pd.DataFrame({"step": [5, 10], "train/loss": [2.0, 1.0], "validation/action_error": [0.4, 0.3]})
    _draw(plots.policy_histories({"cvl": history}, titles, COLOURS))
