"""The benchmark of the judgement at small size."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks import judging
from cvl_pipeline.testing.linear_gaussian import LinearGaussian


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    few = {name: replace(setting, episodes=12, steps=8) for name, setting in judging.settings().items()}
    monkeypatch.setattr(judging, "settings", lambda: few)
    monkeypatch.setattr(judging, "RESULTS", tmp_path)
    return tmp_path


def test_the_command_tabulates_and_records_what_it_judged(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["judging", "--worlds", "linear", "--steps", "10"])
    judging.main()
    assert "fitted Q evaluation" in capsys.readouterr().out
    record = json.loads((small / "judging_part.json").read_text())
    rows = pd.DataFrame(record["policies"]["linear"])
    assert len(rows) == 12
    assert rows["true"].is_unique
    (correlations,) = record["correlations"]
    assert all(-1.0 <= correlations[name] <= 1.0 for name in judging.MEASURES)


def test_true_values_of_a_linear_world_are_those_of_its_equation() -> None:
    world = judging.settings()["linear"].world
    assert isinstance(world, LinearGaussian)
    starts = np.random.default_rng(1).standard_normal((40, world.size))
    policy = replace(world, spread=0.0)
    exact = policy.q(starts, starts @ world.gain.T).mean()
    simulated = judging.true_values(world, judging.Gain(world.gain), torch.from_numpy(starts).float())
    assert simulated == pytest.approx(float(exact), abs=0.25)
