"""The truth benchmark at small size, with the same requirements."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from benchmarks.worlds import EARLIER, FINAL, STUDY, Family, queries

from benchmarks import truth
from cvl_pipeline.testing.finite_mdp import FiniteMDP
from tests.readout.laws import log_law


def finite(name: str) -> FiniteMDP:
    """One of the four first worlds."""
    world = EARLIER[name].world(0)
    assert isinstance(world, FiniteMDP)
    return world


def test_the_default_finds_the_exact_values_of_a_small_mdp() -> None:
    cell = truth.Cell(EARLIER["chain"], 0, 20_000)
    rows = truth.one_cell((cell, [truth.DEFAULT, truth.COUNTING, truth.MODEL], 300, {}))
    by_method = {row["method"]: row for row in rows}
    assert set(by_method) == {truth.DEFAULT, truth.REWARD_FREE, truth.COUNTING, truth.MODEL}
    for method in (truth.DEFAULT, truth.REWARD_FREE, truth.MODEL):
        assert by_method[method]["correlation"] > 0.98
        assert by_method[method]["greedy_agreement"] > 0.9
    assert by_method[truth.MODEL]["clear_states"] > 0.3


def test_counting_recovers_the_exact_values_as_the_log_grows() -> None:
    cells = [truth.Cell(EARLIER["grid"], 0, size) for size in (5_000, 80_000)]
    small, large = (truth.noise_level(cell, cell.data().transitions) for cell in cells)
    assert large < small / 2


def test_the_counted_model_recovers_the_exact_values_of_a_long_log() -> None:
    cell = truth.Cell(STUDY["sparse"], 0)
    world = cell.family.world(0)
    assert isinstance(world, FiniteMDP)
    values = truth.model_values(world, cell.data().transitions)
    assert truth.score(world.q(), values, 0.0)["correlation"] > 0.998


def test_pairs_that_were_never_logged_get_values_all_the_same() -> None:
    """By counting the mean of all pairs; by the model the value of arriving where the log does, as often."""
    cell = truth.Cell(STUDY["500 states"], 0, 300)
    world, log = cell.family.world(0), cell.data().transitions
    assert isinstance(world, FiniteMDP)
    logged = np.zeros((world.states, world.actions), dtype=bool)
    logged[log.states().argmax(1).numpy(), log.actions.argmax(1).numpy()] = True
    assert logged.any(1).sum() < world.states
    law = log_law(world, log)
    reward = np.append(world.reward, 0.0)
    values = truth.tabular_values(world, log)
    np.testing.assert_allclose(values[~logged], (law @ reward).sum() / (1.0 - world.discount))
    assert not np.isclose(values[logged], values[~logged][0]).all()

    modelled = truth.model_values(world, log)
    assert np.isfinite(modelled).all()
    assert np.ptp(modelled[~logged]) < 1e-9
    index = torch.arange(len(log))
    arrivals = log.arrivals(index).argmax(1).numpy()
    of_state = {}
    for state in set(arrivals.tolist()):
        taken = log.actions[log.states().argmax(1) == state].argmax(1).numpy()
        # The policy of a state that was never left is uniform.
        of_state[state] = modelled[state, taken].mean() if len(taken) else modelled[state].mean()
    following = [0.0 if world.terminal[state] else of_state[state] for state in arrivals.tolist()]
    wanted = np.mean(world.reward[arrivals] + world.discount * np.array(following))
    np.testing.assert_allclose(modelled[~logged], wanted)


def ends_scores(name: str, treatments: tuple[str, ...]) -> list[dict[str, float]]:
    mdp, transitions = finite(name), EARLIER[name].log(0, 40_000)[0]
    alive = ~mdp.terminal
    return [
        truth.score(mdp.q()[alive], truth.tabular_values(mdp, transitions, ends)[alive], 0.0)
        for ends in treatments
    ]


def test_without_the_absorbing_state_values_are_visibly_wrong() -> None:
    ours, without = ends_scores("grid with terminal states", ("ours", "no absorbing state"))
    assert ours["error"] < 0.3
    assert ours["correlation"] > 0.95
    assert without["error"] > 3 * ours["error"]
    assert without["correlation"] < 0.6


def test_anchors_by_their_logged_share_beat_uniform_ones_at_timeouts() -> None:
    ours, uniform = ends_scores("grid with timeouts", ("ours", "uniform anchors"))
    assert ours["error"] < 0.85 * uniform["error"]


def test_a_score_forgives_scale_and_nothing_else() -> None:
    exact = finite("grid").q()
    perfect = truth.score(exact, 3.0 * exact, 0.0)
    assert perfect["error"] == pytest.approx(0.0, abs=1e-9)
    assert perfect["correlation"] == pytest.approx(1.0)
    assert perfect["within"] == pytest.approx(1.0)
    assert perfect["greedy_agreement"] == 1.0
    assert truth.score(exact, -exact, 0.0)["correlation"] == pytest.approx(-1.0)
    assert truth.score(exact, np.ones_like(exact), 0.0)["correlation"] == 0.0


def test_the_correlation_within_states_ignores_what_depends_on_the_state_alone() -> None:
    exact = finite("grid").q()
    shifted = exact + np.arange(len(exact))[:, None]
    scores = truth.score(exact, shifted, 0.0)
    assert scores["within"] == pytest.approx(1.0)
    assert scores["correlation"] < 0.9


def test_the_families_of_the_study_are_not_those_of_the_final_table() -> None:
    assert not set(STUDY) & set(FINAL)
    settings = [(family.make, str(family.settings)) for family in FINAL.values()]
    assert not any((family.make, str(family.settings)) in settings for family in STUDY.values())


@pytest.mark.parametrize("family", [*STUDY.values(), *FINAL.values()], ids=lambda family: family.name)
def test_a_seed_draws_a_world_and_its_log_again(family: Family) -> None:
    first, again = (family.log(5, 400) for _ in range(2))
    assert first[0].observations.equal(again[0].observations)
    assert first[1].rewards.equal(again[1].rewards)
    assert np.array_equal(queries(family.world(5)).exact, queries(family.world(5)).exact)
    assert np.isfinite(queries(family.world(5)).exact).all()


def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(truth, "RESULTS", tmp_path)
    monkeypatch.setattr("sys.argv", ["truth", "--workers", "1", "--steps", "5", *arguments])
    truth.main()


@pytest.mark.slow
def test_the_command_prints_the_table_and_ends_with_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {name: FINAL[name] for name in ("chain", "30 states, log of 10^3")}
    monkeypatch.setattr(truth, "FINAL", small)
    run(tmp_path, monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    record = json.loads((tmp_path / "truth_part.json").read_text())
    numbers = record["summary"]["default"]
    assert lines[-1] == truth.last_line(numbers, "default")
    assert lines[-1].startswith("default: correlation=")
    rows = [row for row in record["rows"] if row["method"] == truth.DEFAULT]
    assert len(rows) == 4, "two families, two seeds"
    assert numbers["correlation"] == pytest.approx(np.mean([row["correlation"] for row in rows]))
    worst = min(np.mean([row["correlation"] for row in rows if row["family"] == name]) for name in small)
    assert numbers["worst"] == pytest.approx(worst)
    assert (tmp_path / "truth_part.png").exists()


def test_another_world_of_a_recipe_runs_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = {"states": 8, "actions": 2, "branching": 2, "discount": 0.8, "rewards": "signed"}
    run(tmp_path, monkeypatch, "--garnet", json.dumps(recipe), "--transitions", "1000", "--seeds", "1")
    output = capsys.readouterr().out
    assert "| garnet |" in output
    run(tmp_path, monkeypatch, "--linear", json.dumps({"size": 3, "actions": 1, "discount": 0.8}),
        "--transitions", "1000", "--seeds", "1")  # fmt: skip
    assert "| linear |" in capsys.readouterr().out
    assert not list(tmp_path.iterdir()), "only the final families are recorded"


def test_a_critic_of_every_loss_has_every_readout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(truth, "FEATURES", 64)
    cell = truth.Cell(EARLIER["chain"], 0, 1_000)
    rows = [
        row for loss in ("nce, raw", *list(truth.LOSSES)[:2]) for row in truth.one_critic((cell, loss, 3))
    ]
    assert len({row["readout"] for row in rows}) == 10
    table = truth.over_families(pd.DataFrame(rows), ["loss", "readout"])
    assert len(table) == 3 * 9 + 1


def test_curves_vary_steps_or_the_log_of_every_family_and_nothing_twice() -> None:
    places = [
        (cell.family.name, cell.transitions or cell.family.transitions, steps)
        for cell, _, steps, _ in truth.curve_jobs(0, 3000)
    ]
    assert len(set(places)) == len(places)
    for name in truth.CURVES:
        size = FINAL[name].transitions
        assert {steps for family, log, steps in places if (family, log) == (name, size)} == {
            *truth.CURVE_STEPS,
            3000,
        }
        assert len({log for family, log, steps in places if (family, steps) == (name, 3000)}) >= 3


@pytest.mark.slow
def test_the_command_prints_and_plots_the_curves_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(truth, "CURVES", ("40 states, terminal, log of 10^4",))
    monkeypatch.setattr(truth, "CURVE_STEPS", (10,))
    monkeypatch.setattr(truth, "CURVE_LOGS", (1000,))
    run(tmp_path, monkeypatch, "--curves")
    output = capsys.readouterr().out
    assert "| 40 states, terminal, log of 10^4 | 1000 | 5 |" in output
    assert "| 40 states, terminal, log of 10^4 | 10000 | 10 |" in output
    assert "default:" not in output
    assert len(json.loads((tmp_path / "truth_curves_part.json").read_text())["rows"]) == 3 * 5
    assert (tmp_path / "truth_curves_part.png").stat().st_size > 10_000
    assert not list(tmp_path.glob("truth_part*"))
