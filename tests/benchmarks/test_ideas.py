"""The benchmark of ideas at small size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from benchmarks.common import defaults

from benchmarks import ideas


def small(stage: str) -> dict[str, Any]:
    """The defaults, at a size that takes seconds."""
    values = defaults(stage)
    if "training" in values:
        values["training"] |= {"steps": 20, "batch_size": 32, "validation_interval": 20}
    sizes: dict[str, dict[str, Any]] = {
        "dataset": {"episodes": 40, "episode_steps": 60},
        "data_ingestion": {"validation_fraction": 0.4},
        "contrastive_dynamics": {"hidden": [32], "validation_batches": 1},
        "value_readout": {"references": 64},
        "policy_extraction": {"hidden": [32]},
        "evaluation": {"episodes": 2},
    }
    return values | sizes[stage]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(ideas, "defaults", small)
    monkeypatch.setattr(ideas, "FOLDER", tmp_path / "ideas")
    monkeypatch.setattr(ideas, "RESULTS", tmp_path)
    return tmp_path


def test_the_command_tabulates_ideas_and_numbers_and_keeps_what_has_finished(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = ["other actions as negatives", "V of an action-free critic", "ensemble of 3"]
    command = ["ideas", "--tasks", "reach-v3", "--seeds", "0", "--workers", "1", "--ideas", *chosen]
    monkeypatch.setattr("sys.argv", command)
    ideas.main()
    assert "Rank correlation of each number" in capsys.readouterr().out
    found = json.loads((folder / "ideas.json").read_text())
    assert [row["idea"] for row in found["ideas"]] == ["defaults", *chosen]
    assert found["ideas"][0]["gain"] == 0.0
    assert all(0.0 <= row["success"] <= 1.0 for row in found["records"])
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
    log = ideas.collected("reach-v3", 0, workers=1)
    critics = ideas.Critics(log, 0)
    pairs = (log.transitions.states()[:5], log.transitions.actions[:5])
    values, _ = critics.q(ideas.Idea(members=2)).in_batches(*pairs)
    members = [critics(ideas.Idea(), member).in_batches(*pairs)[0] for member in range(2)]
    assert not torch.equal(members[0], members[1])
    torch.testing.assert_close(values, (members[0] + members[1]) / 2)


def test_other_actions_are_told_from_the_logged_one(folder: Path) -> None:
    log = ideas.collected("reach-v3", 0, workers=1)
    critics = ideas.Critics(log, 0)
    with_it = critics(ideas.Idea(module=ideas.OtherActions))
    without = critics(ideas.Idea())
    data = log.transitions
    assert ideas.telling_actions(with_it, data) > ideas.telling_actions(without, data)


def test_residuals_take_out_what_a_state_alone_is_worth(folder: Path) -> None:
    log = ideas.collected("reach-v3", 0, workers=1)
    table = ideas.held_out_table(log, 0)
    known = table[table["left"] > ideas.STEPS_LEFT]
    # So few episodes are not enough for longer horizons.
    assert known["residual 0.9"].std() < 0.9 * known["return 0.9"].std()
