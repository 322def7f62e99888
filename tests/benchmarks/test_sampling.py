from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import sampling


def test_a_log_is_the_artifact_that_its_size_says(tmp_path: Path) -> None:
    sampling.write_log(tmp_path / "log.safetensors", 3000)
    assert [path.name for path in tmp_path.iterdir()] == ["log.safetensors"]
    log = sampling.make_sampler(tmp_path / "log.safetensors").transitions
    assert (len(log), log.episodes, len(log.observations)) == (3000, 3, 3003)
    assert float(log.observations.std()) == pytest.approx(3**-0.5, rel=0.02)


def test_items_follow_the_same_law_as_segments(tmp_path: Path) -> None:
    sampling.write_log(tmp_path / "log.safetensors", 2000)
    sampler = sampling.make_sampler(tmp_path / "log.safetensors")
    log = sampler.transitions
    items = sampling.Items(log, sampler.discount)
    places = {tuple(row.tolist()): n for n, row in enumerate(log.observations)}
    offsets = []
    for _ in range(2000):
        observation, action, future = items[500]
        assert torch.equal(observation, log.observations[500])
        assert torch.equal(action, log.actions[500])
        offsets.append(places[tuple(future.tolist())] - 500)
    assert min(offsets) == 1
    # A geometric distribution, hardly truncated by the 500 remaining steps; four deviations of its mean.
    deviation = sampler.discount**0.5 / (1 - sampler.discount)
    assert sum(offsets) / 2000 == pytest.approx(1 / (1 - sampler.discount), abs=4 * deviation / 2000**0.5)


def test_the_command_records_every_size_and_ends_with_the_flatness(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sampling, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(sampling, "ROUNDS", 2)
    monkeypatch.setattr("sys.argv", ["sampling", "--sizes", "2e3", "2e4", "--folder", str(tmp_path)])
    sampling.main()
    record = json.loads((tmp_path / "results/sampling_part.json").read_text())
    assert [row["transitions"] for row in record["rows"]] == [2000, 20000]
    rates = [row["segments_per_second"] for row in record["rows"]]
    assert record["flatness"] == pytest.approx(min(rates) / max(rates))
    assert all(row["items_per_second"] > 0 for row in record["rows"])
    assert capsys.readouterr().out.splitlines()[-1] == f"flatness={record['flatness']:.2f}"
    assert [path.name for path in tmp_path.iterdir()] == ["results"]  # the logs are deleted


def test_sampling_holds_no_part_of_the_log_in_memory(tmp_path: Path) -> None:
    sampling.write_log(tmp_path / "small.safetensors", 2000)
    sampling.write_log(tmp_path / "log.safetensors", 1_000_000)
    size = (tmp_path / "log.safetensors").stat().st_size / 2**20
    assert size > 50.0
    assert sampling.added_memory(tmp_path / "log.safetensors", 256, 4) < 0.2 * size
