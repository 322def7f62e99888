"""The comparison of methods that learn Q of the behaviour, at small size."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from benchmarks.worlds import FINAL

from benchmarks import truth, truth_methods
from cvl_pipeline.dynamics.parameters import DynamicsParameters
from cvl_pipeline.objectives.base import PolicyTraining
from cvl_pipeline.readout.parameters import RegressionParameters

RESUMED = "truth_methods.json"


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(truth_methods, "RESULTS", tmp_path)
    return tmp_path


def test_the_steps_are_those_of_a_default_run() -> None:
    critic, policy = DynamicsParameters().training.steps, PolicyTraining().steps
    regression = RegressionParameters()
    assert critic + regression.all_steps + policy == truth_methods.STEPS
    assert round(truth_methods.CRITIC_SHARE * truth_methods.STEPS) == critic
    assert round(truth_methods.REGRESSION_SHARE * truth_methods.STEPS) == regression.all_steps
    assert truth_methods.regression_parameters(regression.all_steps) == regression


def test_every_method_finds_the_values_of_a_small_world(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(truth_methods, "ONE_STEP", ("mc_awr", "sarsa"))  # rollouts of the model take seconds
    rows = {row["method"]: row for row in truth_methods.World("chain", 0, 20_000).rows(750)}
    assert set(rows) == {*truth_methods.METHOD_NAMES, truth.MODEL} - {"one_step_model"}
    for method, row in rows.items():
        assert row["correlation"] > 0.95, method
        assert row["error"] < 0.4, method


def test_a_clone_of_a_finite_world_chooses_among_its_actions() -> None:
    cell = truth.Cell(FINAL["chain"], 0, 500)
    assert bool(truth_methods.discrete(cell.data()).transitions.discrete)
    assert not bool(cell.data().transitions.discrete)


@dataclass(frozen=True)
class Recorded(truth_methods.World):
    """A cell without training, which is interrupted after three methods if its seed is 9."""

    def rows(self, steps: int, done: Collection[str] = ()) -> Iterator[dict[str, Any]]:
        for number, method in enumerate(truth_methods.METHOD_NAMES):
            if self.seed == 9 and number == 3 and not done:
                raise KeyboardInterrupt
            if method not in done:
                scores = dict.fromkeys(truth_methods.SCORES, 0.9 - 0.1 * number * self.seed)
                yield {"method": method, **scores, "seconds": 1.0}


def test_finished_methods_are_kept_and_not_run_again(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells: list[truth_methods.Cell] = [Recorded("chain", seed, 1000) for seed in (1, 9)]
    with pytest.raises(KeyboardInterrupt):
        truth_methods.run_cells(cells, 100)
    assert len(json.loads((results / RESUMED).read_text())["rows"]) == 6 + 3
    capsys.readouterr()
    rows = truth_methods.run_cells(cells, 100)
    assert capsys.readouterr().out == "chain, seed 9, 1000 transitions\n"
    assert [(row["seed"], row["method"]) for row in rows] == [
        (seed, method) for seed in (1, 9) for method in truth_methods.METHOD_NAMES
    ]
    assert len(truth_methods.run_cells(cells[:1], 200)) == 18  # other steps are other rows


def test_methods_that_are_done_are_not_learned() -> None:
    data = truth.Cell(FINAL["chain"], 0, 500).data()
    done = {truth_methods.CVL, truth_methods.READOUT, "mc_awr", "one_step_model"}
    learned = [name for name, *_ in truth_methods.learned_values(data, 0.9, 0, 5, done)]
    assert learned == [truth_methods.REGRESSION, "sarsa"]


def test_large_logs_come_last() -> None:
    small, other, large = (
        truth_methods.World("chain", seed, size) for seed, size in ((0, 10), (1, 10), (0, 10**6))
    )
    task = truth_methods.Simulated("reach-v3", 30)
    assert truth_methods.ordered([large, task, other, small]) == [small, other, task, large]


def test_differences_are_within_worlds() -> None:
    rows = pd.DataFrame(
        {
            "name": "chain",
            "transitions": 1000,
            "seed": [0, 0, 1, 1],
            "method": ["CVL", "sarsa"] * 2,
            "within": [0.9, 0.8, 0.5, 0.4],
        }
    )
    means = truth_methods.over_worlds(rows, "within").set_index("method")
    assert means["value"].to_dict() == pytest.approx({"CVL": 0.7, "sarsa": 0.6})
    assert means["ci"].gt(1.0).all()  # two worlds
    difference = truth_methods.over_worlds(rows, "within", "CVL")
    assert difference["method"].tolist() == ["sarsa"]
    assert difference["value"].item() == pytest.approx(-0.1)
    assert difference["ci"].item() == pytest.approx(0.0, abs=1e-12)


def test_the_report_needs_no_training(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cells: list[truth_methods.Cell] = [
        Recorded(name, seed, size) for name in ("chain", "grid") for seed in (1, 2) for size in (1000, 10_000)
    ]
    truth_methods.run_cells(cells, 100)
    monkeypatch.setattr("sys.argv", ["truth_methods.py", "--report", "--steps", "100"])
    truth_methods.main()
    printed = capsys.readouterr().out
    assert "| chain | 10 000 | 2 | 0.900 ± 0.000 | 0.750 ± 0.635 | 0.600 ± 1.271 |" in printed
    assert "| grid | 1 000 | 2 | -0.150 ± 0.635 | -0.300 ± 1.271 |" in printed
    assert (results / "truth_methods.png").stat().st_size > 10_000
