from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from cvl_pipeline.readout.diagnostics import value_report, value_table
from cvl_pipeline.readout.exact import build_readout, state_action_values
from cvl_pipeline.readout.parameters import ReadoutParameters
from cvl_pipeline.trajectories.container import Split
from tests.builders import slices
from benchmarks.finite_mdp import ExactCritic, grid_world, sampler_marginal


def _table(
    terminal: bool, discount: float = 0.9, episodes: int = 120, references: int = 4000
) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """The table of an exact critic, and the same columns written out episode by episode."""
    mdp = grid_world(terminal=terminal, discount=discount)
    transitions, rewards = mdp.log_episodes(episodes, 60, seed=0)
    split = Split(train=torch.arange(0, episodes // 2), validation=torch.arange(episodes // 2, episodes))
    marginal = sampler_marginal(mdp, transitions)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(marginal > 0.0, np.log(mdp.p_gamma()) - np.log(marginal), 0.0)
    critic = ExactCritic(ratio, 1.0, mdp.discount)
    parameters = ReadoutParameters(references=references)
    readout = build_readout(critic, transitions, rewards, split, parameters, seed=0)
    table = value_table(critic, readout, transitions, rewards, split)
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
    held_out = transitions.select(split.validation)
    q, sizes = state_action_values(critic, readout, held_out.states(), held_out.actions)
    columns = {name: np.array(values) for name, values in expected.items()}
    return table, columns | {"q": q.numpy(), "effective_sample_size": sizes.numpy()}


@pytest.mark.parametrize("terminal", [False, True])
def test_value_table_lays_q_beside_the_return_of_every_held_out_transition(terminal: bool) -> None:
    table, expected = _table(terminal)
    assert set(table.columns) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(table[name], values, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("terminal", [False, True])
def test_exact_values_are_calibrated_against_the_returns_of_the_table(terminal: bool) -> None:
    """The returns are normalised so that they estimate what the readout estimates: slope one, no offset."""
    table, _ = _table(terminal, discount=0.8, episodes=1200 if terminal else 300, references=10_000)
    early = table[table["step"] < 30] if not terminal else table
    line = stats.linregress(early["q"], early["return"])
    assert abs(line.slope - 1.0) < 0.1
    assert abs(early["q"].mean() - early["return"].mean()) < 0.1 * early["return"].std()


def _values(q: list[float], returns: list[float]) -> pd.DataFrame:
    sizes = [float(10 * (i + 1)) for i in range(len(q))]
    return pd.DataFrame({"q": q, "return": returns, "effective_sample_size": sizes})


def test_report_of_numbers_made_by_hand() -> None:
    report = value_report(_values([1.0, 2.0, 3.0, 4.0], [3.0, 5.0, 7.0, 9.0]), references=50)
    assert report["slope"] == pytest.approx(2.0)
    assert report["intercept"] == pytest.approx(1.0)
    assert report["pearson"] == pytest.approx(1.0)
    assert report["spearman"] == pytest.approx(1.0)
    assert report["q_mean"] == pytest.approx(2.5)
    assert report["return_mean"] == pytest.approx(6.0)
    assert report["effective_sample_size_median"] == pytest.approx(25.0)
    assert report["effective_sample_size_p10"] == pytest.approx(13.0)
    assert report["references"] == 50.0
    assert report["transitions"] == 4.0


def test_spearman_looks_at_ranks_and_pearson_at_lines() -> None:
    report = value_report(_values([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 1000.0]), references=5)
    assert report["spearman"] == pytest.approx(1.0)
    assert report["pearson"] is not None
    assert report["pearson"] < 0.9
    assert value_report(_values([1.0, 2.0, 3.0], [3.0, 2.0, 1.0]), 5)["spearman"] == pytest.approx(-1.0)


@pytest.mark.parametrize(("q", "returns"), [([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]), ([1.0, 2.0, 3.0], [0.0] * 3)])
def test_a_correlation_with_a_constant_is_none_and_warns_of_nothing(
    q: list[float], returns: list[float]
) -> None:
    report = value_report(_values(q, returns), references=5)
    for name in ("spearman", "pearson", "slope", "intercept"):
        assert report[name] is None
    assert report["q_mean"] == pytest.approx(np.mean(q))
