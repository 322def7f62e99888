"""The success benchmark, without running the pipeline."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from benchmarks import success
from cvl_pipeline.methods.iql import IQL
from tests.kedro.sessions import make_loader

RATES = {"cvl": 4, "bc": 0, "iql": 2, "behaviour": 1}
"""Solved episodes of four."""


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Replace ``kedro run`` by writing its tables; return the options it is called with."""
    monkeypatch.setattr(success, "PROJECT", tmp_path)
    monkeypatch.setattr(success, "RESULTS", tmp_path)
    commands: list[tuple[str, ...]] = []

    def kedro_run(*arguments: str, params: str) -> float:
        commands.append((*arguments, params))
        task, seed = (part.split("=")[1] for part in params.split(",")[:2])
        for policy, solved in RATES.items():
            path = success.table_path(policy, task, int(seed))
            path.parent.mkdir(parents=True, exist_ok=True)
            pd.DataFrame({"success": [True] * solved + [False] * (4 - solved)}).to_parquet(path)
        return 2.0

    monkeypatch.setattr(success, "kedro_run", kedro_run)
    return commands


def test_every_method_is_a_baseline_of_the_run(
    commands: list[tuple[str, ...]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["success", "--tasks", "reach-v3", "--seeds", "1", "2"])
    success.main()
    baselines = "baselines.bc.method=bc,baselines.iql.method=iql"
    assert commands == [(f"dataset.task=reach-v3,seed={seed},{baselines}",) for seed in (1, 2)]
    record = json.loads((tmp_path / "success_part.json").read_text())
    assert record["command"] == "python -m benchmarks.success --tasks reach-v3 --seeds 1 2"
    assert record["seconds_per_run"] == {"mean": 2.0, "max": 2.0}
    assert record["success"]["reach-v3"]["iql"]["seeds"] == [0.5, 0.5]
    assert record["success"]["cvl - iql"]["mean"] == 0.5
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "| task | behaviour data | BC | IQL | CVL | CVL, each seed | IQL, each seed |"
    assert lines[3].startswith("| reach-v3 | 0.25 [")
    assert lines[3].endswith("| 1.00 [1.00, 1.00] | 1.00, 1.00 | 0.50, 0.50 |")
    assert lines[-2] == "CVL - BC, mean over tasks: +1.00 [+1.00, +1.00]"
    assert lines[-1].startswith("CVL - IQL, mean over tasks: +0.50 [+")


def test_other_methods_and_environments_and_finished_runs(
    commands: list[tuple[str, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["success", "--env", "pointmaze", "--tasks", "maze", "--seeds", "3"]
    command += ["--methods", "cvl", "bc", "--params", "evaluation.episodes=4", "--keep"]
    monkeypatch.setattr("sys.argv", command)
    success.main()
    params = "dataset.task=maze,seed=3,baselines.bc.method=bc,evaluation.episodes=4"
    assert commands == [("--env", "pointmaze", params)]
    success.main()  # the run has finished
    assert len(commands) == 1
    record = json.loads((tmp_path / "success_pointmaze_part.json").read_text())
    assert record["seconds_per_run"] is None
    assert list(record["success"]["maze"]) == ["cvl", "bc", "behaviour"]


def test_the_command_of_the_page_on_mazes_writes_its_record(
    commands: list[tuple[str, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["success", "--env", "pointmaze", "--tasks", "PointMaze_Medium-v3"])
    success.main()
    assert (tmp_path / "success_pointmaze.json").exists()
    monkeypatch.setattr("sys.argv", ["success", "--env", "smoke"])
    with pytest.raises(SystemExit):
        success.main()


def test_the_interval_covers_the_mean_of_the_seeds(commands: list[tuple[str, ...]]) -> None:
    for seed in (1, 2):
        success.run("reach-v3", seed, ["cvl", "iql"], None, "")
    iql = success.summarise(["reach-v3"], [1, 2], ["cvl", "iql"])["reach-v3"]["iql"]
    low, high = iql["ci"]
    assert 0.0 < low < iql["mean"] == 0.5 < high < 1.0


@pytest.mark.parametrize(("env", "steps"), [("base", 3000 + 2500 + 2000), ("pointmaze", 8000 + 10000)])
def test_iql_has_its_published_settings_and_the_steps_of_all_of_cvl(env: str, steps: int) -> None:
    parameters = make_loader(env=env, baselines={"iql": {"method": "iql"}}).run_parameters()
    assert list(parameters.baselines) == ["bc", "iql"]
    policy = parameters.policy_extraction
    assert parameters.baselines["iql"] == IQL.Parameters(
        discount=0.99, expectile=0.7, beta=3.0, max_weight=100.0, target_rate=0.005, scale_advantage=False,
        hidden=policy.hidden, training=policy.training.model_copy(update={"steps": steps}),
    )  # fmt: skip
