"""The examples with groups in docs/own-data.md work."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import yaml

from cvl_pipeline.api import ingest
from cvl_pipeline.episodes.container import Rewards, Transitions
from cvl_pipeline.errors import InputError
from cvl_pipeline.sources.files import Files

SECTION = re.split(r"## One group .*", (Path(__file__).parents[2] / "docs/own-data.md").read_text())[1]
LENGTHS = [3, 1] + [2] * 9
"""Steps per episode; eleven episodes, so that the alphabetical order of their names differs."""


def _example(language: str) -> str:
    example = re.search(rf"```{language}\n(.*?)```", SECTION, re.DOTALL)
    assert example is not None
    return example[1]


def _load(example: dict[str, Any], path: Path) -> tuple[Transitions, Rewards]:
    return ingest(Files.Parameters(**example | {"path": str(path)}), seed=0)


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
            group["dones"] = np.arange(length) == length - 1
    example = yaml.safe_load(_example("yaml"))["dataset"]
    transitions, rewards = _load(example, tmp_path / "demos.hdf5")
    assert transitions.lengths.tolist() == LENGTHS
    assert transitions.observations.shape == (sum(LENGTHS) + len(LENGTHS), 15)
    order = transitions.actions[transitions.episode_starts[:-1], 0] * 20
    assert order.round().tolist() == list(range(len(LENGTHS)))
    assert transitions.terminated.all()
    assert int(rewards.successes.sum()) == len(LENGTHS)
    assert rewards.reports_success


def _demos(path: Path) -> Path:
    """Demonstrations without a last observation, whose only reward is in the last row."""
    with h5py.File(path, "w") as file:
        for number, length in enumerate(LENGTHS):
            group = file.create_group(f"data/demo_{number}")
            for name, size in {"robot0_eef_pos": 3, "robot0_gripper_qpos": 2, "object": 10}.items():
                group[f"obs/{name}"] = np.full((length, size), number / 20)
            group["actions"] = np.zeros((length, 7))
            group["rewards"] = np.append(np.zeros(length - 1), 1.0)
            group["dones"] = np.append(np.zeros(length - 1, np.int64), 1)
    return path


def test_the_example_keeps_a_reward_that_is_only_in_the_last_row(tmp_path: Path) -> None:
    example = yaml.safe_load(_example("yaml"))["dataset"]
    transitions, rewards = _load(example, _demos(tmp_path / "demos.hdf5"))
    assert rewards.rewards.sum() == rewards.successes.sum() == len(LENGTHS)
    assert transitions.lengths.tolist() == LENGTHS
    assert int(rewards.dropped_steps) == 0


def test_without_a_flag_such_a_file_is_refused_with_the_fields_that_help(tmp_path: Path) -> None:
    example = yaml.safe_load(_example("yaml"))["dataset"]
    example["columns"]["terminated"] = None
    with pytest.raises(InputError) as caught:
        _load(example, _demos(tmp_path / "demos.hdf5"))
    for part in (
        "demos.hdf5: all 11 rewards other than 0 (dataset.columns.rewards) and all 11 successes",
        "give dataset.columns.next_observations", "as dataset.columns.terminated",
    ):  # fmt: skip
        assert part in str(caught.value)


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
    transitions, _ = _load(example, tmp_path / "episodes.hdf5")
    # The state after the last action of an episode is unknown.
    assert transitions.lengths.tolist() == [length - 1 for length in LENGTHS if length > 1]
    found = list(dict.fromkeys(transitions.observations[:, 0].tolist()))
    assert found == [number for number, length in enumerate(LENGTHS) if length > 1]
