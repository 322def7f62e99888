"""The examples with groups in docs/own-data.md work."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import yaml

from cvl_pipeline.sources.load import load
from cvl_pipeline.sources.parameters import DatasetParameters
from cvl_pipeline.testing.builders import DATASET

SECTION = (Path(__file__).parents[2] / "docs/own-data.md").read_text().split("## One group an episode")[1]
LENGTHS = [3, 1] + [2] * 9
"""Steps per episode; eleven episodes, so that the alphabetical order of their names differs."""


def _example(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", SECTION, re.DOTALL)
    assert found is not None
    return found[1]


def _dataset(example: dict[str, Any], path: Path) -> DatasetParameters:
    columns = DATASET["columns"] | example["columns"]
    return DatasetParameters(**DATASET | example | {"columns": columns, "path": str(path)})


def test_the_example_reads_a_file_laid_out_as_robomimic_does(tmp_path: Path) -> None:
    sizes = {"obs/robot0_eef_pos": 3, "obs/robot0_gripper_qpos": 2, "obs/object": 10, "actions": 7}
    with h5py.File(tmp_path / "demos.hdf5", "w") as file:
        file["mask/train"] = np.array([b"demo_0"])
        for number, length in enumerate(LENGTHS):
            group = file.create_group(f"data/demo_{number}")
            group.attrs["num_samples"] = length
            for name, size in sizes.items():
                group[name] = np.full((length + name.startswith("obs/"), size), number / 20)
            group["obs/agentview_image"] = np.zeros((length + 1, 4, 4, 3), dtype=np.uint8)
            group["states"] = np.zeros((length, 5))
            group["rewards"] = np.append(np.zeros(length - 1), 1.0)
            group["dones"] = np.ones(length, dtype=np.int64)
    example = yaml.safe_load(_example("yaml"))["dataset"]
    transitions, rewards = load(_dataset(example, tmp_path / "demos.hdf5"), seed=0, workers=1)
    assert transitions.lengths.tolist() == LENGTHS
    assert transitions.observations.shape == (sum(LENGTHS) + len(LENGTHS), 15)
    order = transitions.actions[transitions.episode_starts[:-1], 0] * 20
    assert order.round().tolist() == list(range(len(LENGTHS)))
    assert transitions.truncated.all()
    assert int(rewards.successes.sum()) == len(LENGTHS)


def test_files_of_one_episode_become_groups_of_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recorded").mkdir()
    for number, length in enumerate(LENGTHS):
        with h5py.File(tmp_path / f"recorded/episode_{number}.hdf5", "w") as file:
            file["observations/qpos"] = np.full((length, 14), float(number))
            file["action"] = np.zeros((length, 14))
    monkeypatch.chdir(tmp_path)
    exec(_example("python"), {})
    fields = dict(re.findall(r'`(groups|observations|actions): "?([^`"]+)"?`', SECTION))
    columns = fields | {"rewards": None, "terminated": None, "truncated": None}
    example = {"source": "files", "columns": columns}
    transitions, _ = load(_dataset(example, tmp_path / "episodes.hdf5"), seed=0, workers=1)
    # The state after the last action of an episode is unknown.
    assert transitions.lengths.tolist() == [length - 1 for length in LENGTHS if length > 1]
    found = list(dict.fromkeys(transitions.observations[:, 0].tolist()))
    assert found == [number for number, length in enumerate(LENGTHS) if length > 1]
