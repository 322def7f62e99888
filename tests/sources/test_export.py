"""Episodes in other formats, read back by our own sources, and by LeRobot's package where it is installed."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import yaml

from cvl_pipeline.episodes.container import Rewards, Transitions
from cvl_pipeline.episodes.parts import Layout, Part
from cvl_pipeline.errors import InputError
from cvl_pipeline.schema import nested
from cvl_pipeline.sources import FORMATS
from cvl_pipeline.sources.base import SOURCES
from cvl_pipeline.sources.export import export_dataset
from cvl_pipeline.testing.builders import make_transitions
from tests.sources.lerobot_sets import FIXTURE, STATE, copied, read, with_info

OUT = {"hdf5": "log.hdf5", "lerobot": "log", "minari": "sets"}
NAME = "mine/log-v0"
PYTHON = os.environ.get("CVL_LEROBOT_PYTHON")
"""The interpreter of an environment with LeRobot's package; see tests/fixtures/lerobot/make.py."""


def _labels(count: int, **changes: Any) -> Rewards:
    generator = torch.Generator().manual_seed(1)
    successes = torch.rand(count, generator=generator) < 0.2
    return replace(Rewards(torch.randn(count, generator=generator), successes), **changes)


def _vectors() -> tuple[Transitions, Rewards]:
    data = make_transitions([4, 1, 3], [False, True, False])
    wide = replace(data, action_low=data.action_low - 0.125, action_high=data.action_high + 1.5)
    return wide, _labels(8)


def _choices() -> tuple[Transitions, Rewards]:
    data = make_transitions([4, 1, 3], [False, True, False])
    actions = torch.eye(4)[torch.tensor([0, 1, 2, 0, 2, 1, 1, 0])]  # the last choice is never taken
    zeros, ones = torch.zeros(4), torch.ones(4)
    discrete = replace(data, actions=actions, action_low=zeros, action_high=ones, discrete=torch.tensor(True))
    silent = _labels(8, successes=torch.zeros(8, dtype=torch.bool), success_reported=torch.tensor(False))
    return discrete, replace(silent, rewards=torch.full((8,), torch.nan))


def _pictures() -> tuple[Transitions, Rewards]:
    data, rewards = _vectors()
    generator = torch.Generator().manual_seed(2)
    pixels = torch.randint(0, 256, (11, 6, 8, 3), generator=generator, dtype=torch.uint8)
    return replace(data, observations=pixels), rewards


def _parts() -> tuple[Transitions, Rewards]:
    pictures, rewards = _pictures()
    layout = Layout((Part("state", (5,), "float32"), Part("images.top", (6, 8, 3), "uint8")))
    state = torch.randn(11, 5, generator=torch.Generator().manual_seed(3))
    packed = layout.pack({"state": state, "images.top": pictures.observations})
    return replace(pictures, observations=packed, parts=layout), rewards


KINDS = {"vectors": _vectors, "choices": _choices, "pictures": _pictures, "parts": _parts}


def _read(parameters: dict[str, str]) -> tuple[Transitions, Rewards]:
    # As the command line reads them.
    values = {name.removeprefix("dataset."): yaml.safe_load(value) for name, value in parameters.items()}
    result: tuple[Transitions, Rewards] = SOURCES.create(SOURCES.validate(nested(values))).load(0, 1)
    return result


def _assert_equal(found: tuple[Any, Any], expected: tuple[Any, Any]) -> None:
    for one, other in zip(found, expected, strict=True):
        for field in fields(one):
            first, second = getattr(one, field.name), getattr(other, field.name)
            if isinstance(first, torch.Tensor):
                assert first.dtype == second.dtype, field.name
                assert torch.equal(first.nan_to_num(7.0), second.nan_to_num(7.0)), field.name
            else:
                assert first == second, field.name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMATS)
def test_episodes_are_read_back_unchanged_by_the_parameters_that_are_returned(
    tmp_path: Path, form: str, kind: str
) -> None:
    data, rewards = KINDS[kind]()
    if form == "minari" and rewards.missing:
        rewards = replace(rewards, rewards=torch.ones(8))  # Minari always has rewards
    _, parameters = export_dataset(data, rewards, form, tmp_path / OUT[form], name=NAME)
    _assert_equal(_read(parameters), (data, rewards))


CAMERA = {
    name: Part(name, (6, 8, 3), "uint8") for name in ("images.corner", "images.wrist", "cam one", "state.top")
}
VECTOR = {name: Part(name, (4,), "float32") for name in ("state", "goal", "my state", "s*")}
LAYOUTS = {
    "one camera": (CAMERA["images.corner"],),
    "two cameras of a folder": (CAMERA["images.corner"], CAMERA["images.wrist"]),
    "one vector": (VECTOR["state"],),
    "two vectors": (VECTOR["state"], VECTOR["goal"]),
    "blanks": (VECTOR["my state"], CAMERA["cam one"]),
    "signs of patterns": (VECTOR["s*"], CAMERA["images.corner"]),
    "a name within another": (VECTOR["state"], CAMERA["state.top"]),
}


def _packed(*parts: Part) -> tuple[Transitions, Rewards]:
    data, rewards = _vectors()
    layout = Layout(parts)
    generator = torch.Generator().manual_seed(5)
    values = {
        part.name: torch.randint(0, 256, (11, *part.shape), generator=generator).to(
            torch.uint8 if part.image else torch.float32
        )
        for part in parts
    }
    return replace(data, observations=layout.pack(values), parts=layout), rewards


@pytest.mark.parametrize("parts", LAYOUTS)
@pytest.mark.parametrize("form", FORMATS)
def test_parts_keep_their_names(tmp_path: Path, form: str, parts: str) -> None:
    data = _packed(*LAYOUTS[parts])
    _, parameters = export_dataset(*data, form, tmp_path / OUT[form], name=NAME)
    assert "," not in str(parameters.get("dataset.columns.observations"))  # it would end the parameter
    _assert_equal(_read(parameters), data)


def test_names_that_are_paths_are_refused_by_minari(tmp_path: Path) -> None:
    data = _packed(VECTOR["state"], Part("x/b", (2,), "float32"))
    with pytest.raises(
        InputError, match=r"cannot store the part 'x/b' .* its name is a path; export to hdf5 or lerobot"
    ):
        export_dataset(*data, "minari", tmp_path / "sets", name=NAME)
    assert list(tmp_path.iterdir()) == []
    for form in ("hdf5", "lerobot"):
        _, parameters = export_dataset(*data, form, tmp_path / OUT[form])
        _assert_equal(_read(parameters), data)


@pytest.mark.parametrize("form", FORMATS)
def test_held_out_episodes_stay_held_out(tmp_path: Path, form: str) -> None:
    data, rewards = _vectors()
    held_out = replace(data, held_out=torch.tensor(1))
    _, parameters = export_dataset(held_out, rewards, form, tmp_path / OUT[form], name=NAME)
    _assert_equal(_read(parameters), (held_out, rewards))


@pytest.mark.parametrize(("added", "warning"), [(["demo_4"], None), ([], "all groups have one")])
def test_the_mark_of_a_group_of_hdf5_holds_wherever_the_group_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, added: list[str], warning: str | None
) -> None:
    data, rewards = _vectors()
    _, parameters = export_dataset(
        replace(data, held_out=torch.tensor(1)), rewards, "hdf5", tmp_path / "x.h5"
    )
    with h5py.File(tmp_path / "x.h5", "a") as file:
        groups = file["data"]
        marked = next(name for name in groups if "cvl_held_out" in groups[name].attrs)
        for name in added:
            first = next(other for other in groups if other != marked)
            groups.copy(first, name)
        if not added:
            for name in groups:
                groups[name].attrs["cvl_held_out"] = groups[marked].attrs["cvl_held_out"]
        last = groups[marked]["actions"][:]
    read_again, _ = _read(parameters)
    assert (warning is None) == (int(read_again.held_out) == 1)
    assert any(warning in message for message in caplog.messages) if warning else not caplog.messages
    if warning is None:
        np.testing.assert_allclose(read_again.actions[-len(last) :], last, rtol=1e-6)


@pytest.mark.parametrize(
    ("splits", "held_out"),
    [
        ({"train": "0:2", "val": "2:4"}, 2),
        ({"train": "0:4"}, 0),
        ({"train": "0:3", "val": "3:5"}, 0),
        ({"train": "0:2", "val": "2:3", "test": "3:4"}, 0),
        ({"train": "0:x", "val": "x:4"}, 0),
        ({"train": 2, "val": ["2:4"]}, 0),
        ("train", 0),
    ],
)
def test_splits_of_lerobot_hold_out_the_last_episodes(tmp_path: Path, splits: Any, held_out: int) -> None:
    root = copied(tmp_path)
    with_info(root, lambda info: info.update(splits=splits))
    assert int(read(root, observations=STATE)[0].held_out) == held_out


def test_tasks_are_written_as_texts_and_become_a_part_again(tmp_path: Path) -> None:
    before = read(FIXTURE / "v30", terminated="done")
    tasks = ("move to the left side", "move to the right side")
    folder, parameters = export_dataset(*before, "lerobot", tmp_path / "log", tasks=tasks, rate=10)
    _assert_equal(_read(parameters), before)
    assert read(folder, instruction=tasks[1])[0].episodes == 2


def test_a_one_hot_vector_at_the_end_stays_in_the_state(tmp_path: Path) -> None:
    data, rewards = _vectors()
    one_hot = torch.eye(2)[torch.tensor([0] * 5 + [1] * 6)]
    multitask = replace(data, observations=torch.cat([data.observations, one_hot], dim=1))
    folder, parameters = export_dataset(
        multitask, rewards, "lerobot", tmp_path / "log", tasks=("reach", "push")
    )
    assert parameters["dataset.tasks"] == "ignore"
    _assert_equal(_read(parameters), (multitask, rewards))
    assert read(folder, instruction="push", tasks="ignore")[0].episodes == 2


def _policies() -> set[int]:
    """How Linux schedules the threads of this process."""
    return {os.sched_getscheduler(int(task.name)) for task in Path("/proc/self/task").iterdir()}


def test_videos_change_pictures_a_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, rewards = read(FIXTURE / "v30", terminated="done")
    monkeypatch.setattr("cvl_pipeline.sources.lerobot_writer.FILE_BYTES", 1)  # a file per episode
    folder, _ = export_dataset(
        before, rewards, "lerobot", tmp_path / "log", tasks=("left", "right"), videos=True
    )
    assert len(list(folder.glob("videos/*/chunk-000/file-001.mp4"))) == 2
    if sys.platform == "linux":  # the encoder takes real-time priority if the user is root
        assert os.SCHED_FIFO not in _policies()
    assert len(list(folder.glob("data/chunk-000/*.parquet"))) == 4
    after, _ = read(folder)
    assert after.parts is not None
    assert before.parts is not None
    for name in ("images.top", "images.wrist"):
        gap = (
            after.parts.part(after.observations, name).int()
            - before.parts.part(before.observations, name).int()
        )
        assert gap.abs().float().mean() < 3.0
    assert torch.equal(
        after.parts.part(after.observations, "state"), before.parts.part(before.observations, "state")
    )


@pytest.mark.skipif(PYTHON is None, reason="CVL_LEROBOT_PYTHON names no interpreter with LeRobot's package")
@pytest.mark.parametrize("videos", [False, True])
def test_the_package_reads_what_is_exported(tmp_path: Path, videos: bool) -> None:
    before, rewards = read(FIXTURE / "v30", terminated="done")
    tasks = ("move to the left side", "move to the right side")
    folder, _ = export_dataset(
        before, rewards, "lerobot", tmp_path / "log", tasks=tasks, rate=10, videos=videos
    )
    after, _ = read(folder)
    command = [str(PYTHON), str(FIXTURE / "make.py"), "--read", str(folder), str(tmp_path / "read.npz")]
    surroundings = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    surroundings.pop("PYTHONPATH", None)
    subprocess.run(command, check=True, env=surroundings, timeout=500)
    found = np.load(tmp_path / "read.npz")
    assert after.parts is not None
    np.testing.assert_array_equal(found["observation.state"], after.parts.part(after.observations, "state"))
    for name in ("images.top", "images.wrist"):
        pixels = after.parts.part(after.observations, name).numpy()
        sums = [hashlib.sha256(frame.tobytes()).hexdigest() for frame in pixels]
        assert found[f"observation.{name}/sha256"].tolist() == sums
    real = np.ones(len(found["action"]), dtype=bool)
    real[before.episode_starts[1:].numpy() + np.arange(before.episodes)] = False
    np.testing.assert_array_equal(found["action"][real], before.actions)
    np.testing.assert_array_equal(found["next.reward"].reshape(-1)[real], rewards.rewards)
    np.testing.assert_array_equal(found["next.success"].reshape(-1)[real], rewards.successes)
    assert set(found["task"].tolist()) == set(tasks)


@pytest.mark.parametrize(
    ("form", "out", "kind", "words"),
    [
        ("hdf6", "log.hdf5", "vectors", "unknown format 'hdf6': did you mean hdf5"),
        ("hdf5", "log.npz", "vectors", r"must end in .hdf5 or .h5"),
        ("hdf5", ".", "vectors", "exists already; delete it first, or give another --out"),
        ("lerobot", ".", "vectors", "exists already"),
        ("minari", "sets", "vectors", "an id has the form"),
    ],
)
def test_what_cannot_be_written_is_one_line(
    tmp_path: Path, form: str, out: str, kind: str, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        export_dataset(*KINDS[kind](), form, tmp_path / out)
    assert list(tmp_path.iterdir()) == []


def test_pictures_that_are_not_rgb_are_refused_by_lerobot(tmp_path: Path) -> None:
    data, rewards = _pictures()
    with pytest.raises(
        InputError, match="1 channels, but those of LeRobot are RGB; export to minari or hdf5"
    ):
        export_dataset(
            replace(data, observations=data.observations[..., :1]), rewards, "lerobot", tmp_path / "log"
        )
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_minari_may_be_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = _vectors()
    folder, parameters = export_dataset(*data, "minari", "sets", name=NAME)
    assert (folder, parameters["dataset.path"]) == (tmp_path / "sets" / NAME, "sets")
    _assert_equal(_read(parameters), data)
