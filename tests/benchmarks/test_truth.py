"""The truth benchmark at small size, with the same requirements."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import truth


def test_the_default_finds_the_exact_values_of_a_small_mdp() -> None:
    rows = truth.one_critic(("chain", truth.DEFAULT_LOSS, 0, 20_000, 400))
    default = next(row for row in rows if row["readout"] == truth.DEFAULT_READOUT)
    assert default["correlation"] > 0.98
    assert default["greedy_agreement"] > 0.9
    assert default["clear_states"] > 0.3


def test_counting_recovers_the_exact_values_as_the_log_grows() -> None:
    errors = []
    for transitions in (5_000, 80_000):
        case = truth.cases(transitions)["grid"]
        errors.append(truth.noise_level(case.mdp, case.log(0)[0]))
    assert errors[1] < errors[0] / 2


def test_without_the_absorbing_state_values_are_visibly_wrong() -> None:
    case = truth.cases(40_000)["grid with terminal states"]
    log, _ = case.log(0)
    scores = {
        ends: truth.score(case.mdp, truth.tabular_values(case.mdp, log, ends), 0.0)
        for ends in ("ours", "no absorbing state")
    }
    assert scores["ours"]["error"] < 0.3
    assert scores["ours"]["correlation"] > 0.95
    assert scores["no absorbing state"]["error"] > 3 * scores["ours"]["error"]
    assert scores["no absorbing state"]["correlation"] < 0.6


def test_anchors_by_their_logged_share_beat_uniform_ones_at_timeouts() -> None:
    case = truth.cases(40_000)["grid with timeouts"]
    log, _ = case.log(0)
    ours, uniform = (
        truth.score(case.mdp, truth.tabular_values(case.mdp, log, ends), 0.0)["error"]
        for ends in ("ours", "uniform anchors")
    )
    assert ours < 0.85 * uniform


def test_a_score_forgives_scale_and_nothing_else() -> None:
    mdp = truth.cases(1_000)["grid"].mdp
    exact = truth.score(mdp, 3.0 * mdp.q(), 0.0)
    assert exact["error"] == pytest.approx(0.0, abs=1e-9)
    assert exact["correlation"] == pytest.approx(1.0)
    assert exact["greedy_agreement"] == 1.0
    assert truth.score(mdp, -mdp.q(), 0.0)["correlation"] == pytest.approx(-1.0)


def test_the_command_prints_the_tables_and_ends_with_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(truth, "RESULTS", tmp_path)
    monkeypatch.setattr(
        truth, "LOSSES", {name: truth.LOSSES[name] for name in (truth.DEFAULT_LOSS, "nce, raw")}
    )
    monkeypatch.setattr(truth, "FEATURES", 64)
    arguments = ["--seeds", "2", "--steps", "5", "--transitions", "2000", "--workers", "1"]
    monkeypatch.setattr("sys.argv", ["truth", *arguments])
    truth.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("default: correlation=")
    record = json.loads((tmp_path / "truth.json").read_text())
    row = record["table"][0]
    assert f"correlation={row['correlation']:.4f}" in lines[-1]
    assert row["correlation_ci"] > 0
    assert np.isfinite([row["error"] for row in record["table"]]).all()
    assert (tmp_path / "truth.png").exists()
