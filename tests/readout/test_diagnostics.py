from __future__ import annotations

import json
import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats

from cvl_pipeline.episodes.container import Rewards, Split, Transitions
from cvl_pipeline.episodes.preparation import observed_returns
from cvl_pipeline.networks.critic import ContrastiveCritic, CriticShape
from cvl_pipeline.readout.build import build_readout
from cvl_pipeline.readout.diagnostics import check_ranked_steps, readout_error, value_report, value_table
from cvl_pipeline.readout.parameters import ValueReportParameters
from cvl_pipeline.readout.q_function import QFunction
from cvl_pipeline.testing.builders import (
    make_rewards,
    make_transitions,
    readout_parameters,
    slices,
    split_first,
)
from cvl_pipeline.testing.finite_mdp import FiniteMDP, grid_world
from tests.readout.critics import small_critic
from tests.readout.laws import critic_of, log_law

LOGGER = "cvl_pipeline.readout.diagnostics"
LABELS = Rewards(torch.tensor([0.0, 1.0, 1.0, 0.0]), torch.tensor([False, True, True, False]))


def _logged(
    terminal: bool, discount: float, episodes: int
) -> tuple[FiniteMDP, Transitions, Rewards, Split, ContrastiveCritic]:
    """A log with half of its episodes held out, and the critic that fits it exactly."""
    mdp = replace(grid_world(terminal=terminal), discount=discount)
    transitions, rewards = mdp.log_episodes(episodes, 60, seed=0)
    split = Split(train=torch.arange(0, episodes // 2), validation=torch.arange(episodes // 2, episodes))
    return mdp, transitions, rewards, split, critic_of(log_law(mdp, transitions), discount)


def _table(
    terminal: bool,
    discount: float = 0.9,
    episodes: int = 60,
    compared_transitions: int = 2000,
    **changes: Any,
) -> pd.DataFrame:
    _, transitions, rewards, split, critic = _logged(terminal, discount, episodes)
    readout = build_readout(critic, transitions, rewards, split, readout_parameters(**changes), seed=0)
    parameters = ValueReportParameters(compared_transitions=compared_transitions)
    return value_table(QFunction(critic, readout), transitions, rewards, split, parameters, seed=0)


def _expected(terminal: bool, discount: float = 0.9, episodes: int = 60) -> dict[str, NDArray[np.float64]]:
    """Episode, step and return of the table, computed episode by episode."""
    _, transitions, rewards, split, _ = _logged(terminal, discount, episodes)
    expected: dict[str, list[float]] = {"episode": [], "step": [], "return": []}
    whole = slices(transitions)
    for e in split.validation.tolist():
        labels = rewards.rewards[whole[e]["index"]].double().numpy()
        for t in range(len(labels)):
            left = len(labels) - t
            total = float((labels[t:] * discount ** np.arange(left)).sum())
            if not whole[e]["terminated"]:
                total /= 1.0 - discount**left
            expected["episode"].append(e)
            expected["step"].append(t)
            expected["return"].append(total)
    return {name: np.array(values) for name, values in expected.items()}


@pytest.mark.parametrize("terminal", [False, True])
def test_the_value_table_has_q_and_return_of_every_held_out_transition(terminal: bool) -> None:
    _, transitions, rewards, split, critic = _logged(terminal, 0.9, 60)
    table, held_out = _table(terminal, references=500), transitions.select(split.validation)
    for name, values in _expected(terminal).items():
        np.testing.assert_allclose(table[name], values, rtol=1e-5, err_msg=name)
    readout = build_readout(critic, transitions, rewards, split, readout_parameters(references=500), seed=0)
    q, sizes = QFunction(critic, readout).in_batches(held_out.states(), held_out.actions)
    np.testing.assert_array_equal(table["q"], q)
    np.testing.assert_array_equal(table["effective_sample_size"], sizes)
    assert list(table.columns) == [
        "episode", "step", "q", "return", "share", "effective_sample_size", "q_alone", "q_exact",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [{"references": 300}, {"prototypes": 4}, {"self_normalised": False, "references": 300}],
    ids=str,
)
def test_some_transitions_also_have_the_value_of_the_exact_readout(changes: dict[str, Any]) -> None:
    exact, table = _table(False), _table(False, compared_transitions=50, **changes)
    compared = table["q_exact"].notna()
    assert compared.sum() == 50
    np.testing.assert_allclose(table["q_exact"][compared], exact["q"][compared], rtol=1e-5)
    assert (table["q"] - exact["q"]).abs().mean() > 1e-2, "the readout itself is another"
    # Not the first ones, which would all belong to one episode.
    assert table["episode"][compared].nunique() > 5


def test_the_same_transitions_have_the_value_of_the_readout_without_regression() -> None:
    regression = {"steps": 200, "value_steps": 100, "hidden": (32,)}
    settings: dict[str, Any] = {"compared_transitions": 50, "references": 300}
    alone, both = _table(False, **settings), _table(False, **settings, regression=regression)
    compared = both["q_exact"].notna()
    assert both["q_alone"].notna().equals(compared)
    np.testing.assert_allclose(both["q_alone"][compared], alone["q"][compared], rtol=1e-5)
    np.testing.assert_array_equal(both["q_exact"], alone["q_exact"])
    np.testing.assert_array_equal(both["effective_sample_size"], alone["effective_sample_size"])
    assert (both["q"] - alone["q"]).abs().mean() > 1e-2, "the network counts"


@pytest.mark.parametrize("conditioned", [False, True])
def test_exact_values_and_returns_have_the_discount_of_the_values(conditioned: bool) -> None:
    data = make_transitions([30] * 8, [False, True] * 4)
    split, rewards = split_first(data, 6), make_rewards(data)
    critic = small_critic(horizon_conditioning=conditioned)
    parameters = readout_parameters(discount=0.97, horizons=5)
    q = QFunction(critic, build_readout(critic, data, rewards, split, parameters, seed=0))
    table = value_table(q, data, rewards, split, ValueReportParameters(), seed=0)
    np.testing.assert_allclose(table["q_exact"], table["q"], rtol=1e-5)
    index = data.transition_index(split.validation)
    np.testing.assert_allclose(
        table["return"], observed_returns(rewards.rewards, data, 0.97)[index], rtol=1e-12
    )


def test_few_held_out_transitions_are_all_compared() -> None:
    table = _table(False, episodes=4, compared_transitions=10_000)
    assert len(table) == 120
    np.testing.assert_allclose(table["q_exact"], table["q"], rtol=1e-5)


def test_features_have_the_sample_size_of_the_exact_readout() -> None:
    exact = _table(True)
    table = _table(True, method="positive_random", compared_transitions=50)
    compared = table["q_exact"].notna()
    sizes = table["effective_sample_size"]
    np.testing.assert_allclose(sizes[compared], exact["effective_sample_size"][compared], rtol=1e-5)
    assert sizes[~compared].isna().all()


@pytest.mark.parametrize("terminal", [False, True])
def test_exact_values_are_calibrated_against_the_returns_of_the_table(terminal: bool) -> None:
    """Normalised returns estimate the same quantity as the readout, with slope one and no offset."""
    table = _table(terminal, discount=0.8, episodes=1200 if terminal else 160)
    early = table[table["step"] < 30] if not terminal else table
    line = stats.linregress(early["q"], early["return"])
    assert abs(line.slope - 1.0) < 0.1
    assert abs(early["q"].mean() - early["return"].mean()) < 0.1 * early["return"].std()


# The report.


def _values(q: list[float], returns: list[float], exact: list[float] | None = None) -> pd.DataFrame:
    sizes = [float(10 * (i + 1)) for i in range(len(q))]
    return pd.DataFrame(
        {
            "q": q,
            "return": returns,
            "effective_sample_size": sizes,
            "q_alone": q,
            "q_exact": q if exact is None else exact,
        }
    )


def test_the_report_of_small_numbers() -> None:
    values = _values([1.0, 2.0, 3.0, 4.0], [3.0, 5.0, 7.0, 9.0], exact=[0.0, np.nan, 4.0, 5.0])
    report = value_report(values, LABELS, readout_parameters())
    assert report["slope"] == pytest.approx(2.0)
    assert report["intercept"] == pytest.approx(1.0)
    assert report["pearson"] == pytest.approx(1.0)
    assert report["spearman"] == pytest.approx(1.0)
    assert report["q_mean"] == pytest.approx(2.5)
    assert report["return_mean"] == pytest.approx(6.0)
    assert report["effective_sample_size_median"] == pytest.approx(25.0)
    assert report["effective_sample_size_p10"] == pytest.approx(13.0)
    # Each of the three values is off by one; the standard deviation of 0, 4, 5 is sqrt(14/3).
    assert report["readout_error"] == pytest.approx(np.sqrt(3.0 / 14.0))
    assert report["readout_rank_correlation"] == pytest.approx(1.0)
    counts = {name: report[name] for name in ("transitions", "logged_states", "success_states")}
    assert json.dumps(counts) == '{"transitions": 4, "logged_states": 4, "success_states": 2}'


def test_the_error_of_the_readout_is_that_without_regression() -> None:
    values = _values([9.0, -3.0, 4.0], [1.0, 2.0, 3.0]).assign(
        q_alone=[1.0, 2.0, np.nan], q_exact=[1.0, 2.0, np.nan]
    )
    report = value_report(values, LABELS, readout_parameters())
    assert report["readout_error"] == 0.0
    assert report["readout_rank_correlation"] == pytest.approx(1.0)
    assert report["q_mean"] == pytest.approx(10.0 / 3.0)


def test_a_table_of_an_older_version_is_reported() -> None:
    values = _values([1.0, 2.0, 3.0, 4.0], [3.0, 5.0, 7.0, 9.0], exact=[0.0, np.nan, 4.0, 5.0])
    older = values.drop(columns="q_alone")
    assert value_report(older, LABELS, readout_parameters()) == value_report(
        values, LABELS, readout_parameters()
    )
    assert "q_alone" not in older


def test_success_states_are_missing_where_nothing_reports_success() -> None:
    values = _values([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    nothing = torch.zeros(4, dtype=torch.bool)
    unreported = Rewards(LABELS.rewards, nothing, torch.tensor(False))
    assert value_report(values, unreported, readout_parameters())["success_states"] is None
    never = Rewards(LABELS.rewards, nothing)
    assert value_report(values, never, readout_parameters())["success_states"] == 0.0


def test_spearman_compares_ranks_and_pearson_values() -> None:
    report = value_report(
        _values([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 1000.0]), LABELS, readout_parameters()
    )
    assert report["spearman"] == pytest.approx(1.0)
    assert report["pearson"] is not None
    assert report["pearson"] < 0.9
    falling = value_report(_values([1.0, 2.0, 3.0], [3.0, 2.0, 1.0]), LABELS, readout_parameters())
    assert falling["spearman"] == pytest.approx(-1.0)


@pytest.mark.parametrize(("q", "returns"), [([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]), ([1.0, 2.0, 3.0], [0.0] * 3)])
def test_a_correlation_with_a_constant_is_none_without_a_warning(
    q: list[float], returns: list[float]
) -> None:
    report = value_report(_values(q, returns), LABELS, readout_parameters())
    for name in ("spearman", "pearson", "slope", "intercept"):
        assert report[name] is None
    assert report["q_mean"] == pytest.approx(np.mean(q))


def test_the_readout_error_is_in_standard_deviations_of_the_exact_values() -> None:
    exact = np.array([1.0, 2.0, 3.0, 4.0])
    for shift in (0.0, 1.0, -2.5):
        error, rank = readout_error(exact + shift * exact.std(), exact)
        assert error == pytest.approx(abs(shift))
        assert rank == pytest.approx(1.0)
    assert readout_error(-exact, exact)[1] == pytest.approx(-1.0)


@pytest.mark.parametrize(
    ("values", "exact"),
    [([1.0, 1.0], [1.0, 2.0]), ([1.0, 2.0], [3.0, 3.0]), ([7.0, 7.000001], [7.000001, 7.0])],
)
def test_a_constant_readout_has_no_error(values: list[float], exact: list[float]) -> None:
    assert readout_error(np.array(values), np.array(exact)) == (None, None)
    report = value_report(_values(values, [1.0, 2.0], exact), LABELS, readout_parameters())
    assert report["readout_error"] is None
    assert report["readout_rank_correlation"] is None


# The warning.


def _report(temperature: float, **changes: Any) -> dict[str, float | None]:
    """Report for an untrained critic on the unit sphere, whose values depend on the actions."""
    data = make_transitions([30] * 8, [False] * 8)
    split, rewards = split_first(data, 6), make_rewards(data)
    torch.manual_seed(0)
    critic = ContrastiveCritic(CriticShape((3,), 2, (32,), 16, "unit_norm", temperature, False, 0.9, False))
    parameters = readout_parameters(**changes)
    readout = build_readout(critic, data, rewards, split, parameters, seed=0)
    q = QFunction(critic, readout)
    table = value_table(q, data, rewards, split, ValueReportParameters(), seed=0)
    return value_report(table, rewards, parameters)


def test_too_few_features_for_the_temperature_give_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger=LOGGER):
        report = _report(0.1, method="random_fourier", features=64)
    assert report["readout_rank_correlation"] is not None
    assert report["readout_rank_correlation"] < 0.9
    (message,) = caplog.messages
    assert message.startswith(
        "value_readout: random_fourier with 64 features differs from the exact values by "
    )
    assert f"(rank correlation {report['readout_rank_correlation']:.2f})" in message
    assert message.endswith("use more of them, method exact, or a higher temperature")


@pytest.mark.parametrize(
    ("length", "terminal", "discount", "few"),
    [(30, False, 0.99, True), (30, False, 0.9, False), (30, True, 0.99, False), (300, False, 0.99, False)],
)
def test_few_ranked_steps_give_a_warning(
    caplog: pytest.LogCaptureFixture, length: int, terminal: bool, discount: float, few: bool
) -> None:
    data = make_transitions([length] * 10, [terminal] * 10)
    with caplog.at_level(logging.WARNING, logger=LOGGER):
        check_ranked_steps(data, split_first(data, 5), discount)
    assert ("ranks only 10 of 150 held-out steps" in caplog.text) == few
    assert bool(caplog.messages) == few


def test_values_that_are_no_numbers_give_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    table = _values([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    with caplog.at_level(logging.WARNING, logger=LOGGER):
        value_report(table.assign(q_alone=np.nan), LABELS, readout_parameters())
    assert "differs from the exact values by nan" in caplog.text


@pytest.mark.parametrize(
    ("temperature", "changes"),
    [(0.1, {}), (0.1, {"references": 5000}), (1.0, {"method": "random_fourier", "features": 65536})],
    ids=str,
)
def test_a_readout_that_keeps_the_exact_order_gives_no_warning(
    caplog: pytest.LogCaptureFixture, temperature: float, changes: dict[str, Any]
) -> None:
    with caplog.at_level(logging.WARNING, logger=LOGGER):
        report = _report(temperature, **changes)
    assert report["readout_rank_correlation"] is not None
    assert report["readout_rank_correlation"] > 0.95
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"references": 50}, "exact with 50 references differs"),
        ({"prototypes": 7}, "exact with 7 prototypes differs"),
        ({"method": "positive_random", "references": 50}, "positive_random with 64 features differs"),
        ({"self_normalised": False}, "exact with all references differs"),
        ({"self_normalised": False}, "use self_normalised=true, more of them, method exact"),
    ],
)
def test_the_warning_names_the_readout_and_its_size(
    caplog: pytest.LogCaptureFixture, changes: dict[str, Any], words: str
) -> None:
    values = _values([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], exact=[3.0, 1.0, 2.0])
    with caplog.at_level(logging.WARNING, logger=LOGGER):
        value_report(values, LABELS, readout_parameters(**changes))
    (message,) = caplog.messages
    assert words in message
