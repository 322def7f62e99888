from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from benchmarks.references import Cell

from benchmarks import references


class FakeCell(Cell):
    """Returns that depend on method and seed alone; ``cql`` fails."""

    calls: list[dict[str, Any]] = []  # noqa: RUF012

    def run(self, digest: str) -> dict[str, Any]:
        self.calls.append(self.place)
        if self.method == "cql":
            raise RuntimeError("no memory")
        ours = [100.0 + self.seed, 102.0 + self.seed]
        return {
            **self.place, "settings": self.settings(digest), "device": self.device,
            "ours": ours, "reference": [value + 1.0 for value in ours], "trained": {},
        }  # fmt: skip


def write_log(path: Path, values: np.ndarray, **options: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_dataset("observations", data=values, **options)


def fake_cells(data: Path, methods: tuple[str, ...], steps: int) -> list[Cell]:
    return [
        FakeCell(method, "medium", seed, steps, 2, data, "cpu") for method in methods for seed in (0, 1, 2)
    ]


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(references, "ProcessPoolExecutor", lambda jobs, _: ThreadPoolExecutor(jobs))
    monkeypatch.setattr(references, "python_of", lambda _: Path("python"))
    monkeypatch.setattr(references, "ONE_CORE", {})
    monkeypatch.setattr(FakeCell, "calls", [])


@pytest.mark.usefixtures("threads")
def test_cells_at_hand_are_not_run_again_and_failures_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_log(tmp_path / "logs/medium.hdf5", np.ones(3))
    path = tmp_path / "record.json"
    record = references.run_cells(fake_cells(tmp_path, ("bc", "cql"), 10), path, 2)
    assert record == json.loads(path.read_text())
    (row,) = record["summary"]
    assert (row["method"], row["seeds"], row["steps"]) == ("bc", [0, 1, 2], 10)
    assert row["difference"]["mean"] == -1.0
    assert "'cql', 'seed': 2}: failed" in capsys.readouterr().out

    FakeCell.calls.clear()
    record = references.run_cells(fake_cells(tmp_path, ("bc", "iql"), 10), path, 1)
    assert [call["method"] for call in FakeCell.calls] == ["iql"] * 3
    assert [row["method"] for row in record["summary"]] == ["bc", "iql"]


@pytest.mark.usefixtures("threads")
def test_cells_are_run_again_with_other_steps_or_another_log(tmp_path: Path) -> None:
    write_log(tmp_path / "logs/medium.hdf5", np.ones(3))
    path = tmp_path / "record.json"
    references.run_cells(fake_cells(tmp_path, ("bc",), 10), path, 1)
    references.run_cells(fake_cells(tmp_path, ("bc",), 20), path, 1)
    write_log(tmp_path / "logs/medium.hdf5", np.zeros(3))
    record = references.run_cells(fake_cells(tmp_path, ("bc",), 20), path, 1)
    assert len(FakeCell.calls) == 9
    assert len(record["cells"]) == 3  # the newest


def test_the_digest_of_a_log_is_of_its_numbers(tmp_path: Path) -> None:
    digests = []
    for number, (values, options) in enumerate(
        [(np.ones(9), {}), (np.ones(9), {"compression": "gzip"}), (np.arange(9.0), {})]
    ):
        write_log(tmp_path / f"{number}/log.hdf5", values, **options)
        digests.append(references.log_digest(tmp_path / f"{number}/log.hdf5"))
    assert digests[0] == digests[1] != digests[2]


def test_steps_are_given_for_all_methods_or_for_one() -> None:
    assert references.steps_of(["20000", "cql=5", "10"]) == {"bc": 10, "iql": 10, "td3_bc": 10, "cql": 5}
    for text in ("x", "0", "sac=5", "cql="):
        with pytest.raises(SystemExit, match=f"--steps: {text}"):
            references.steps_of([text])


def test_a_difference_has_an_interval_and_a_verdict() -> None:
    far = references.difference([1.0, 2.0, 3.0], [11.0, 12.0, 13.0])
    # Welch: standard error sqrt(1/3 + 1/3), 4 degrees of freedom, t = 2.776
    assert far == {"mean": -10.0, "ci": pytest.approx(2.267, abs=1e-3), "contains_zero": False}
    assert references.difference([1.0, 2.0], [1.5, 2.5])["contains_zero"] is True
    assert references.difference([1.0], [2.0])["contains_zero"] is None


def test_the_table_has_a_row_per_dataset_and_method() -> None:
    cells = [
        {
            "dataset": "medium", "method": "bc", "seed": seed, "settings": {"steps": 10},
            "ours": [100.0 + seed], "reference": [200.0 + seed],
        }
        for seed in range(2)
    ]  # fmt: skip
    lines = references.table(references.summarise(cells)).splitlines()
    assert lines[2] == "| medium | bc | 2 | 10 | 100 ± 6 | 200 ± 6 | -100 ± 3 | no |"


def test_both_sides_get_the_same_settings(tmp_path: Path) -> None:
    cell = Cell("td3_bc", "medium", 3, 10, 2, tmp_path, "gpu")
    parameters = cell.parameters().split(",")
    for name, value in references.SETTINGS["td3_bc"].items():
        assert f"baselines.td3_bc.{name}={value}" in parameters
    assert {"baselines.td3_bc.training.accelerator=gpu", "baselines.td3_bc.hidden=256 256"} <= set(parameters)
    assert f"data.root={cell.folder}" in parameters
    other = Cell("td3_bc", "medium", 4, 10, 2, tmp_path, "gpu")
    assert other.folder != cell.folder
