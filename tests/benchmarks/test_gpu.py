from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from benchmarks.speed import Configuration

from benchmarks import gpu


def test_without_a_gpu_the_smallest_jobs_run_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = (Configuration("critic", (8, 8), 16),)
    monkeypatch.setattr(gpu, "CRITICS", small)
    monkeypatch.setattr(gpu, "POLICIES", (Configuration("policy", (8, 8), 16),))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    record = tmp_path / "gpu.json"
    arguments = ["gpu", "--seconds", "0.1", "--jax", "none", "--record", str(record)]
    monkeypatch.setattr("sys.argv", arguments)
    gpu.main()
    values = json.loads(record.read_text())
    assert [(row[""], row["stage"]) for row in values["rows"]] == [
        ("ours", "critic"), ("without a graph", "critic"), ("ours", "policy"), ("without a graph", "policy")
    ]  # fmt: skip
    assert all(row["steps_per_second"] > 0.0 for row in values["rows"])
    assert values["left_out"] == {}
    assert values["card"] == "no GPU"
    assert capsys.readouterr().out.splitlines()[-1] == "no GPU: critic_8_16=nan policy_8_16=nan"


def test_a_job_that_fails_or_comes_too_late_is_reported(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "CRITICS", (Configuration("critic", (8, 8), 16),))
        patch.setattr(gpu, "POLICIES", ())
        late = gpu.measure(tmp_path, "cpu", 0.1, None, end=-1.0)
        failed = gpu.measure(tmp_path / "no such folder", "cpu", 0.1, None, end=float("inf"))
    title = "ours; critic, hidden (8, 8), batch 16; float32"
    assert late["left_out"][title] == "TimeoutError: no time left"
    assert title in failed["left_out"]
    assert late["rows"] == failed["rows"] == []
