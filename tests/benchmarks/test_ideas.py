"""The benchmark of ideas at small size."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from benchmarks import ideas
from cvl_pipeline.parameters import StageParameters

TRAINING = {"steps": 20, "batch_size": 32, "validation_interval": 20}
SMALL = StageParameters.model_validate(
    {
        "dataset": {"episodes": 40, "episode_steps": 60},
        "data_ingestion": {"validation_fraction": 0.4},
        "contrastive_dynamics": {"hidden": [32], "validation_batches": 1, "training": TRAINING},
        "value_readout": {
            "references": 64,
            "regression": {"steps": 20, "members": 1, "value_steps": 20, "hidden": [32]},
        },
        "policy_extraction": {"hidden": [32], "training": TRAINING},
        "evaluation": {"episodes": 2},
    }
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(ideas, "PARAMETERS", SMALL)
    monkeypatch.setattr(ideas, "FOLDER", tmp_path / "ideas")
    monkeypatch.setattr(ideas, "PROJECT", tmp_path)  # no episodes of earlier runs
    monkeypatch.setattr(ideas, "RESULTS", tmp_path)
    return tmp_path


def test_the_command_tabulates_ideas_and_numbers_and_keeps_finished_cells(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = ["other actions as negatives", "V of an action-free critic", "ensemble of 3"]
    command = ["ideas", "--tasks", "reach-v3", "--seeds", "0", "--workers", "1", "--ideas", *chosen]
    monkeypatch.setattr("sys.argv", command)
    ideas.main()
    assert "Rank correlation of each number" in capsys.readouterr().out
    record = json.loads((folder / "ideas.json").read_text())
    assert [row["idea"] for row in record["ideas"]] == ["defaults", *chosen]
    assert record["ideas"][0]["gain"] == 0.0
    assert all(0.0 <= row["success"] <= 1.0 for row in record["records"])
    table = pd.read_parquet(folder / "ideas/reach-v3/seed_0/held_out.parquet")
    advantage = {name: table[f"advantage: {name}"] for name in ("defaults", *chosen)}
    for name in chosen:  # every idea changes the critic or V
        assert not advantage[name].equals(advantage["defaults"])
    # The critic is the same, because the action-free V changes only the advantage.
    assert table["q: V of an action-free critic"].equals(table["q: defaults"])

    def fail(*_: object) -> None:
        raise AssertionError("finished results are kept")

    monkeypatch.setattr(ideas, "study", fail)
    monkeypatch.setattr("sys.argv", [*command, "--keep"])
    ideas.main()


def test_an_ensemble_is_the_mean_of_its_members(folder: Path) -> None:
    data = ideas.collected("reach-v3", 0, workers=1)
    critics = ideas.Critics(data, 0)
    pairs = (data.transitions.states()[:5], data.transitions.actions[:5])
    values, _ = critics.q(ideas.Idea(members=2)).in_batches(*pairs)
    members = [critics(ideas.Idea(), member).in_batches(*pairs)[0] for member in range(2)]
    assert not torch.equal(members[0], members[1])
    torch.testing.assert_close(values, (members[0] + members[1]) / 2)


def test_training_against_other_actions_identifies_the_logged_action_more_often(folder: Path) -> None:
    data = ideas.collected("reach-v3", 0, workers=1)
    critics = ideas.Critics(data, 0)
    with_it = critics(ideas.Idea(module=ideas.OtherActions))
    without = critics(ideas.Idea())
    assert ideas.telling_actions(with_it, data.transitions) > ideas.telling_actions(without, data.transitions)


def test_residuals_vary_less_than_returns(folder: Path) -> None:
    data = ideas.collected("reach-v3", 0, workers=1)
    table = ideas.held_out_table(data, 0)
    known = table[table["left"] > ideas.STEPS_LEFT]
    # So few episodes are not enough for longer horizons.
    assert known["residual 0.9"].std() < 0.9 * known["return 0.9"].std()


def test_a_policy_is_judged_by_all_critics_but_its_own() -> None:
    """Also by those of ideas whose names contain that of its own."""
    name = "without regression"
    numbers = range(40)
    columns = [
        "left",
        *(f"{kind} {discount}" for kind in ("return", "residual") for discount in ideas.DISCOUNTS),
    ]
    columns += [f"{kind}: {name}" for kind in ("q", "advantage", "log_prob")]
    table = pd.DataFrame(
        {column: [ideas.STEPS_LEFT + 1.0 + place for place in numbers] for column in columns}
    )
    judges = {name: 100.0, f"exact readout, {name}": 1.0, f"ensemble of 3, {name}": 3.0, "defaults": 5.0}
    record = {"idea": name, "telling actions": 0.5} | {f"judged by: {key}": judges[key] for key in judges}
    assert ideas.numbers(table, record)["its policy's actions, judged by the other critics"] == 3.0
