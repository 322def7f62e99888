"""The benchmark in simulators, at small size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from benchmarks.simulators import MAZE, Run

from benchmarks import simulators

TRAINING = {"steps": 2, "accelerator": "cpu"}
SMALL: dict[str, Any] = {
    "dataset": {"source": "metaworld", "task": "reach-v3", "episodes": 4, "episode_steps": 10},
    "contrastive_dynamics": {"discount": 0.5, "training": TRAINING, "hidden": [8], "validation_batches": 1},
    "policy_extraction": {"training": TRAINING, "hidden": [8]},
}


def noisy_returns(states: int, choices: int, rollouts: int, noise: float) -> tuple[Any, Any]:
    """Exact values (N, C) with a large part that depends on the state, and returns (N, C, M)."""
    generator = np.random.default_rng(0)
    exact = generator.normal(size=(states, choices)) + 10.0 * generator.normal(size=(states, 1))
    return exact, exact[..., None] + noise * generator.normal(size=(states, choices, rollouts))


def test_the_right_order_scores_one_and_the_reverse_minus_one() -> None:
    exact, returns = noisy_returns(20, 8, 4, 0.0)
    right = simulators.score(returns, 3.0 * exact + 5.0)
    assert right["correlation"] == pytest.approx(1.0)
    assert right["advantage"] == pytest.approx(1.0)
    assert right["correlation_ci"] == pytest.approx(0.0)
    reverse = simulators.score(returns, -exact)
    assert reverse["correlation"] == pytest.approx(-1.0)
    assert reverse["advantage"] < -0.5
    assert reverse["gain"] < 0.0 < right["gain"]
    assert simulators.ceiling(returns) == pytest.approx(1.0)


def test_values_of_states_alone_earn_nothing() -> None:
    exact, returns = noisy_returns(400, 8, 4, 0.0)
    estimates = exact.mean(1, keepdims=True) + np.random.default_rng(1).normal(size=exact.shape)
    scores = simulators.score(returns, estimates)
    assert abs(scores["correlation"]) < 0.06
    assert abs(scores["advantage"]) < 0.12
    assert abs(scores["correlation"]) < 2 * scores["correlation_ci"]


def test_the_ceiling_is_the_score_of_the_true_values() -> None:
    exact, returns = noisy_returns(400, 16, 4, 2.0)
    true = simulators.score(returns, exact)
    assert simulators.ceiling(returns) == pytest.approx(true["correlation"], abs=0.03)
    assert true["correlation"] < 0.75
    assert true["advantage"] > 1.0  # half of the rollouts choose worse than the truth


def test_without_differences_the_best_advantage_is_not_that_of_the_noise() -> None:
    returns = np.random.default_rng(0).normal(size=(2000, 8, 4))
    chosen, best = simulators.advantages(returns, returns.mean(-1))
    assert chosen.mean() > 0.5  # the same rollouts choose and value
    assert abs(best.mean()) < 0.05
    assert simulators.ceiling(returns) < 0.2


def test_states_without_an_order_are_left_out() -> None:
    exact, returns = noisy_returns(4, 8, 4, 0.0)
    returns[0] = 1.0
    assert simulators.score(returns, exact)["correlation"] == pytest.approx(1.0)
    flat = simulators.score(np.ones((3, 8, 4)), exact[:3])
    assert np.isnan([flat["correlation"], flat["advantage"]]).all()


def test_halves_do_not_overlap() -> None:
    for rollouts in (2, 3, 4, 12):
        pairs = simulators.halves(rollouts)
        assert all(len(a) == len(b) == rollouts // 2 and not set(a) & set(b) for a, b in pairs)
        assert all((b, a) in pairs for a, b in pairs)
        assert len(pairs) <= max(2 * simulators.SPLITS, 12)


def test_the_prediction_is_within_tasks() -> None:
    rows = pd.DataFrame(
        {
            "task": ["a"] * 3 + ["b"] * 3 + ["c"] * 3,
            "seed": 30,
            "success": [0.1, 0.2, 0.3, 0.7, 0.8, 0.9, 1.0, 1.0, 1.0],
            **{name: [5.0, 6.0, 7.0, 1.0, 2.0, 3.0, 1.0, 2.0, 3.0] for name in simulators.SCORES},
        }
    )
    predicted = simulators.prediction(rows)
    assert predicted["score"].tolist() == simulators.SCORES
    assert predicted["mean"].tolist() == pytest.approx([1.0] * 4)
    assert predicted["c, seed 30"].isna().all()  # all policies succeed


def test_the_maze_has_the_settings_of_its_configuration() -> None:
    run = Run(f"{MAZE}Medium-v3", 30)
    assert run.discount == 0.99
    assert (run.rollouts, Run("push-v3", 30).rollouts) == (4, 1)
    assert run.dataset.episodes == 1600
    assert run.section("contrastive_dynamics")["temperature"] == 0.25
    assert run.section("value_readout")["discount"] == run.discount
    assert Run("push-v3", 30).dataset.episode_steps == 200


def test_critics_differ_from_the_default_in_one_setting() -> None:
    maze, push = Run(f"{MAZE}Medium-v3", 30), Run("push-v3", 30)
    default, readout = simulators.settings_of(maze, "default")
    assert (default.discount, default.temperature, readout) == (
        0.99,
        0.25,
        {"discount": 0.99, "references": 4096, "regression": None},
    )
    assert simulators.settings_of(maze, "first version") == (default, readout)
    default, readout = simulators.settings_of(push, "default")
    assert "regression" not in readout
    assert simulators.settings_of(push, "contrastive alone") == (default, readout | {"regression": None})
    assert simulators.settings_of(push, "first version")[1]["references"] is None
    assert simulators.settings_of(maze, "twice the temperature")[0].temperature == 0.5
    assert simulators.settings_of(push, "twice the temperature")[0].temperature == 0.2
    assert simulators.settings_of(push, "discount 0.3")[0].discount == 0.3


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(simulators, "RESULTS", tmp_path)
    monkeypatch.setattr(simulators, "CACHE", tmp_path / "episodes")
    monkeypatch.setattr(simulators, "configuration", lambda _: SMALL)
    monkeypatch.setattr(Run, "discount", 0.6)
    monkeypatch.setattr(simulators, "CRITICS", ("default", simulators.REGRESSION))
    simulators.load_data.cache_clear()
    simulators.make_brancher.cache_clear()
    return tmp_path


def test_the_command_prints_the_tables_and_resumes(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--tasks", "reach-v3", "--seeds", "5", "--states", "2", "--actions", "4"]
    arguments += ["--rollouts", "2", "--episodes", "2", "--workers", "1"]
    monkeypatch.setattr("sys.argv", ["simulators", *arguments])
    simulators.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("prediction of success within tasks: once correlation ")
    record = json.loads((small / "simulators_part.json").read_text())
    assert [row["critic"] for row in record["critics"]] == ["default", "regression"]
    assert [row["after"] for row in record["exact"]] == ["once", "held"]
    assert -1.0 <= record["critics"][0]["held correlation"] <= 1.0
    table = pd.read_parquet(small / "simulators_reach-v3_5.parquet")
    assert len(table) == 2 * 2 * 4
    assert table["step"].max() < 10 * simulators.EARLY

    def refused(_: Any) -> None:
        raise AssertionError("simulated again")

    monkeypatch.setattr(simulators, "branch", refused)
    monkeypatch.setattr("sys.argv", ["simulators", *arguments, "--critics"])
    simulators.main()  # neither simulates nor trains
    assert json.loads((small / "simulators_part.json").read_text())["exact"] == record["exact"]
    monkeypatch.setattr("sys.argv", ["simulators", *arguments, "--critics", "--rollouts", "3"])
    with pytest.raises(AssertionError, match="simulated again"):
        simulators.main()
