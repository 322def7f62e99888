"""Logs in pieces: blocks do not change what is read, nor which error a fault gives; observations of several parts."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from cvl_pipeline.episodes.container import Rewards, Transitions
from cvl_pipeline.episodes.validation import validate_transitions
from cvl_pipeline.errors import InputError
from cvl_pipeline.io import pieces
from cvl_pipeline.io.artifacts import load_artifact, save_artifact
from cvl_pipeline.sources import formats, precision
from cvl_pipeline.sources.columns import Columns
from cvl_pipeline.sources.d4rl import load_d4rl
from cvl_pipeline.sources.files import load_file
from cvl_pipeline.sources.minari import load_minari
from cvl_pipeline.sources.minari_writer import save_minari
from tests.sources.rows import (
    Log,
    assert_equal,
    groups_of,
    mapping,
    mapping_of,
    write,
    write_groups,
)

Arrays = dict[str, NDArray[Any]]
T = 5
"""Steps of an episode of ``_arrays``."""


@contextmanager
def tiny_blocks(rows: int = 2) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "BLOCK_ROWS", rows)
        patch.setattr(pieces, "IN_MEMORY", 0)
        patch.setattr(formats, "BLOCK_BYTES", 7)
        patch.setattr(formats, "CSV_BYTES", 150)
        patch.setattr(precision, "COUNTED", 3)
        yield


def _both(load: Callable[[], Any]) -> Any:
    """What a function returns, or the text of its error; the same with tiny blocks."""

    def result() -> Any:
        try:
            return load()
        except InputError as error:
            return str(error)

    whole = result()
    with tiny_blocks():
        found = result()
    if isinstance(whole, str) or isinstance(found, str):
        assert found == whole
    else:
        assert found[0].parts == whole[0].parts
        for ours, theirs in zip(found, whole, strict=True):
            arrays = [
                {name: value for name, value in vars(part).items() if isinstance(value, torch.Tensor)}
                for part in (ours, theirs)
            ]
            torch.testing.assert_close(*arrays, rtol=0, atol=0, equal_nan=True)
    return whole


@pytest.mark.parametrize("name", ["log.hdf5", "log.npz", "log.parquet", "log.csv", "log.csv.gz"])
def test_blocks_do_not_change_a_table(
    tmp_path: Path, transitions: Transitions, rewards: Rewards, log: Log, name: str
) -> None:
    path = write(tmp_path / name, log | {"id": np.arange(len(transitions)) * 0})
    for changes in (
        {}, {"next_observations": None},
        {"terminated": None, "truncated": None, "episode": "id", "rewards": None, "successes": None},
    ):  # fmt: skip
        found = _both(partial(load_file, path, mapping_of(name, **changes), (-1.0, -1.0), (1.0, 1.0)))
        if not changes:
            assert_equal(found, (transitions, rewards))


def test_blocks_do_not_change_groups_d4rl_and_minari(
    tmp_path: Path, transitions: Transitions, rewards: Rewards, log: Log
) -> None:
    demos = write_groups(tmp_path / "demos.hdf5", groups_of(transitions, rewards))
    names: dict[str, Any] = {
        "groups": "data/demo_*", "observations": "obs/place obs/rest", "actions": "actions", "rewards": "rewards",
        "terminated": "dones", "truncated": None, "next_observations": None, "successes": None,
    }  # fmt: skip
    assert not isinstance(_both(lambda: load_file(demos, mapping(**names))), str)
    with h5py.File(tmp_path / "d4rl.hdf5", "w") as file:
        for name, of in (("observations", "observation"), ("actions", "action"), ("rewards", "reward")):
            file[name] = log[of]
        file["terminals"], file["timeouts"] = log["terminated"], log["truncated"]
        ant = np.tile(log["observation"][:, :1] * 0, (1, 4))
    found = [
        _both(partial(load_d4rl, tmp_path / "d4rl.hdf5", task))
        for task in ("hopper-medium-v2", "kitchen-mixed-v0", "maze2d-umaze-v1", "antmaze-umaze-v2")
    ]
    assert not isinstance(found[0], str)
    with h5py.File(tmp_path / "d4rl.hdf5", "a") as file:
        file["observations"][...] = ant[:, : log["observation"].shape[1]]
        file["terminals"][...] = True
    assert not isinstance(_both(lambda: load_d4rl(tmp_path / "d4rl.hdf5", "antmaze-umaze-v2")), str)
    save_minari(transitions, rewards, "mine/log-v0", tmp_path)
    assert_equal(_both(lambda: load_minari("mine/log-v0", tmp_path, download=False)), (transitions, rewards))


def test_an_array_by_columns_is_read_like_one_by_rows(tmp_path: Path, log: Log) -> None:
    results = []
    for order in ("C", "F"):
        changed = {name: np.asarray(values, order=order) for name, values in log.items()}
        results.append(_both(partial(load_file, write(tmp_path / "log.npz", changed), mapping())))
    assert_equal(*results)


def test_a_csv_column_may_change_its_type_between_blocks(tmp_path: Path) -> None:
    cells = ["1"] * 60 + ["0.5"] * 60 + ["7"] * 60
    text = "x,u,end,id\n" + "".join(
        f"{cell},0,{flag},{ident}\n"
        for cell, flag, ident in zip(
            cells, ["0"] * 100 + ["false"] * 79 + ["TRUE"], ["007"] * 180, strict=True
        )
    )
    (tmp_path / "log.csv").write_text(text)
    columns = mapping(
        observations="x", actions="u", rewards=None, successes=None, terminated="end", truncated=None,
        next_observations=None, episode="id",
    )  # fmt: skip
    found = _both(lambda: load_file(tmp_path / "log.csv", columns))
    assert found[0].observations[:, 0].tolist()[:180] == [float(cell) for cell in cells]
    (tmp_path / "log.csv").write_text(text.replace("0.5,0,0,007\n", "a,0,0,007\n", 1))
    assert "'a' at row 60" in _both(lambda: load_file(tmp_path / "log.csv", columns))


@pytest.mark.parametrize("name", ["log.hdf5", "log.npz", "log.parquet"])
def test_a_log_is_not_held_in_memory(tmp_path: Path, name: str) -> None:
    rows = 50_000
    arrays = {
        "x": np.random.default_rng(0).normal(size=(rows, 17)).astype(np.float32),
        "u": np.zeros((rows, 6), np.float32), "r": np.zeros(rows, np.float32), "end": np.arange(rows) % 100 == 99,
    }  # fmt: skip
    path = tmp_path / name
    if name == "log.parquet":
        flat = {f"x{i}": arrays["x"][:, i] for i in range(17)} | {
            f"u{i}": arrays["u"][:, i] for i in range(6)
        }
        pd.DataFrame(flat | {"r": arrays["r"], "end": arrays["end"]}).to_parquet(path)
    else:
        write(path, arrays)
    columns = mapping(
        observations="x*", actions="u*", rewards="r", successes=None, terminated="end", truncated=None,
        next_observations=None,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "IN_MEMORY", 1 << 14)
        patch.setattr(pieces, "BLOCK_BYTES", 1 << 16)
        patch.setattr(pieces, "BLOCK_ROWS", 1 << 10)
        tracemalloc.start()
        data, _ = load_file(path, columns)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert len(data) == rows
    assert peak < 3e6  # the arrays take 4.8 MB, and reading them as a whole took three times as much


def _arrays(rng: np.random.Generator, episodes: int = 3) -> dict[str, Arrays]:
    """Episodes of T steps with a state and two cameras, T + 1 rows each."""
    return {
        f"data/demo_{index}": {
            "obs/state": rng.normal(size=(T + 1, 3)),
            "obs/images/wrist": rng.integers(0, 256, (T + 1, 6, 5, 3), dtype=np.uint8),
            "obs/images/top": rng.integers(0, 256, (T + 1, 4, 4, 1), dtype=np.uint8),
            "actions": rng.uniform(-1, 1, (T, 2)),
            "rewards": rng.normal(size=T),
        }
        for index in range(episodes)
    }


def _flat(groups: dict[str, Arrays]) -> Arrays:
    """The same episodes as one table, with next observations."""
    flat = {}
    for name in next(iter(groups.values())):
        whole = [arrays[name] for arrays in groups.values()]
        if name.startswith("obs/"):
            flat[name] = np.concatenate([values[:-1] for values in whole])
            flat[name.replace("obs", "next", 1)] = np.concatenate([values[1:] for values in whole])
        else:
            flat[name] = np.concatenate(whole)
    flat["cut"] = np.tile(np.arange(T) == T - 1, len(groups))
    return flat


GROUPED: dict[str, Any] = {
    "groups": "data/demo_*", "observations": "obs/state obs/images/*", "terminated": None, "truncated": None,
}  # fmt: skip
TABLE: dict[str, Any] = {
    "observations": "obs/state obs/images/*", "next_observations": "next/state next/images/*", "terminated": None,
    "truncated": "cut",
}  # fmt: skip


def _save(path: Path, arrays: Arrays) -> Path:
    if path.suffix == ".npz":
        np.savez(path, **arrays)  # type: ignore[arg-type]
        return path
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name] = values
    return path


def _assert_parts(data: Transitions, groups: dict[str, Arrays]) -> None:
    assert data.parts is not None
    assert {part.name: part.shape for part in data.parts.parts} == {
        "state": (3,), "images.top": (4, 4, 1), "images.wrist": (6, 5, 3)
    }  # fmt: skip
    found = data.unpacked(data.observations)
    for name, values in found.items():
        key = f"obs/{name.replace('.', '/')}"
        expected = np.concatenate([arrays[key] for arrays in groups.values()])
        np.testing.assert_array_equal(values, expected.astype(np.float32 if name == "state" else np.uint8))


@pytest.mark.parametrize("name", ["groups.hdf5", "log.hdf5", "log.npz"])
def test_a_state_and_cameras_become_parts(tmp_path: Path, name: str) -> None:
    groups = _arrays(np.random.default_rng(0))
    if name == "groups.hdf5":
        path, columns = write_groups(tmp_path / name, groups), Columns(**GROUPED)
    else:
        path, columns = _save(tmp_path / name, _flat(groups)), Columns(**TABLE)
    data, rewards = _both(lambda: load_file(path, columns))
    _assert_parts(data, groups)
    validate_transitions(data)
    np.testing.assert_array_equal(
        rewards.rewards,
        np.concatenate([arrays["rewards"] for arrays in groups.values()]).astype(np.float32),
    )
    save_artifact(tmp_path / "t.safetensors", "transitions", data)
    stored = load_artifact(tmp_path / "t.safetensors")
    assert stored.parts == data.parts
    assert torch.equal(stored.observations, data.observations)


def test_the_name_of_a_folder_is_all_that_is_in_it(tmp_path: Path) -> None:
    groups = _arrays(np.random.default_rng(0))
    path = write_groups(tmp_path / "log.hdf5", groups)
    data, _ = load_file(path, Columns(**GROUPED | {"observations": "obs"}))
    _assert_parts(data, groups)
    vectors = {
        name: {key: values for key, values in arrays.items() if "images" not in key}
        for name, arrays in groups.items()
    }
    for name, arrays in vectors.items():
        arrays["obs/more"] = groups[name]["obs/state"][:, :1]
    data, _ = load_file(write_groups(path, vectors), Columns(**GROUPED | {"observations": "obs"}))
    assert data.parts is None
    assert data.observations.shape[1] == 4  # side by side, as before


def test_minari_keeps_parts(tmp_path: Path) -> None:
    groups = _arrays(np.random.default_rng(0))
    data, rewards = load_file(write_groups(tmp_path / "log.hdf5", groups), Columns(**GROUPED))
    save_minari(data, rewards, "mine/parts-v0", tmp_path)
    found, labels = _both(lambda: load_minari("mine/parts-v0", tmp_path, download=False))
    _assert_parts(found, groups)
    assert torch.equal(found.observations, data.observations)
    assert torch.equal(labels.rewards, rewards.rewards)


def test_nested_spaces_of_minari_become_parts(tmp_path: Path) -> None:
    from minari.data_collector import EpisodeBuffer
    from minari.dataset.minari_storage import MinariStorage

    eye = spaces.Box(0, 255, (4, 4, 3), np.uint8)
    box = spaces.Box(-1, 1, (2, 2), np.float64)
    space = spaces.Dict(
        [
            ("robot", spaces.Dict([("eye", eye), ("arm", spaces.Tuple([box, spaces.Discrete(3)]))])),
            ("grip", box),
        ]
    )
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (4, 4, 4, 3), dtype=np.uint8)
    arm, grip, held = rng.uniform(-1, 1, (4, 2, 2)), rng.uniform(-1, 1, (4, 2, 2)), np.array([0, 2, 1, 0])
    observations = {"robot": {"eye": image, "arm": (arm, held)}, "grip": grip}
    (tmp_path / "odd-v0").mkdir()
    storage = MinariStorage.new(
        tmp_path / "odd-v0/data", observation_space=space, action_space=spaces.Box(-1, 1, (1,), np.float32)
    )
    storage.update_metadata({"dataset_id": "odd-v0", "minari_version": "0.5.4"})
    arrays: dict[str, Any] = {
        "observations": observations, "actions": np.zeros((3, 1), np.float32), "rewards": np.zeros(3),
        "terminations": np.zeros(3, bool), "truncations": np.array([False, False, True]),
    }  # fmt: skip
    storage.update_episodes([EpisodeBuffer(**arrays)])
    data, _ = load_minari("odd-v0", tmp_path, download=False)
    assert data.parts is not None
    assert data.parts.names == ("robot.arm", "grip", "robot.eye")
    parts = data.unpacked(data.observations)
    np.testing.assert_array_equal(parts["robot.eye"], image)
    np.testing.assert_array_equal(
        parts["robot.arm"], np.concatenate([arm.reshape(4, 4), np.eye(3)[held]], axis=1).astype(np.float32)
    )


def _group(groups: dict[str, Arrays], rng: np.random.Generator) -> Arrays:
    return groups[str(rng.choice(sorted(groups)))]


def _some(rng: np.random.Generator, *names: str) -> str:
    return str(rng.choice(names))


VECTORS, CAMERAS = ("obs/state", "actions", "rewards"), ("obs/images/wrist", "obs/images/top")


def _spoil(groups: dict[str, Arrays], rng: np.random.Generator, fault: str) -> dict[str, Any]:
    """Put a fault into one episode, and return the columns to change."""
    arrays = _group(groups, rng)
    vector, camera = _some(rng, *VECTORS), _some(rng, *CAMERAS)
    either = _some(rng, vector, camera)
    match fault:
        case "no number":
            arrays[vector][tuple(rng.integers(0, arrays[vector].shape))] = rng.choice(
                [np.nan, np.inf, -np.inf]
            )
        case "too large":
            arrays[vector][tuple(rng.integers(0, arrays[vector].shape))] = rng.choice([1e39, -1e300])
        case "length":
            arrays[either] = arrays[either][: -int(rng.integers(2, T))]
        case "missing":
            del arrays[either]
        case "text":
            arrays[vector] = np.full(len(arrays[vector]), b"one")
        case "type":
            arrays[camera] = arrays[camera].astype(_some(rng, "f4", "i8", "f8"))
        case "rank":
            arrays[either] = arrays[either][..., None, None]
        case "resolution":
            arrays[camera] = arrays[camera][:, 1:]
        case "ids":
            for other in groups.values():
                other["obs/state"] = 2**60 + rng.integers(0, 9, other["obs/state"].shape)
        case "name":
            wrong = _some(rng, "obs/sate", "obs/image", "images/*", "obs/images/*/*")
            return {"observations": f"obs/state {wrong}"}
        case "twice":
            return {"observations": f"{_some(rng, 'obs/state', camera)} obs/*"}
    return {}


FAULTS = (
    "no number", "too large", "length", "missing", "text", "type", "rank", "resolution", "ids", "name", "twice",
)  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", ["groups.hdf5", "log.hdf5", "log.npz"])
def test_a_fault_in_parts_is_one_line_whatever_the_blocks(tmp_path: Path, kind: str, fault: str) -> None:
    """Seven of each; of both layouts, and of tables with and without next observations."""
    for seed in range(7):
        rng = np.random.default_rng([seed, FAULTS.index(fault)])
        groups = _arrays(rng)
        if kind == "groups.hdf5":
            changes = _spoil(groups, rng, fault)
            path, names = write_groups(tmp_path / kind, groups), GROUPED | changes
        else:
            one = {"all": _flat(groups)}
            changes = _spoil(one, rng, fault)
            path, names = _save(tmp_path / kind, one["all"]), TABLE | changes
        text = _both(partial(load_file, path, Columns(**names)))
        assert isinstance(text, str), f"{fault}, seed {seed} is not refused"
        assert kind in text
        assert "\n" not in text
        assert len(text) < 1000


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("next/images/top", r"part 'images.top' at row \d .* is not the image"),
        ("next/state", r"part 'state' is .* at row \d .*, dimension \d"),
    ],
)
def test_parts_that_do_not_follow_each_other_are_refused(tmp_path: Path, name: str, part: str) -> None:
    flat = _flat(_arrays(np.random.default_rng(0)))
    flat[name] = flat[name][::-1]
    with pytest.raises(InputError, match=part):
        load_file(_save(tmp_path / "log.npz", flat), Columns(**TABLE))
    with pytest.raises(InputError, match=r"differ in part 'images.top'"):
        load_file(
            _save(tmp_path / "log.npz", _flat(_arrays(np.random.default_rng(0)))),
            Columns(**TABLE | {"next_observations": "next/state next/images/wrist"}),
        )


def test_damaged_parts_of_minari_are_one_line(tmp_path: Path) -> None:
    groups = _arrays(np.random.default_rng(0), 2)
    data, rewards = load_file(write_groups(tmp_path / "log.hdf5", groups), Columns(**GROUPED))
    for seed in range(6):
        rng = np.random.default_rng(seed)
        root = tmp_path / str(seed)
        save_minari(data, rewards, "mine/parts-v0", root)
        with h5py.File(root / "mine/parts-v0/data/main_data.hdf5", "a") as file:
            name = (
                f"episode_{rng.integers(2)}/observations/{_some(rng, 'state', 'images.top', 'images.wrist')}"
            )
            values = file[name][()]
            del file[name]
            if seed % 3:
                file[name] = values[:-1] if seed % 3 == 1 else values[..., :0]
        text = _both(partial(load_minari, "mine/parts-v0", root, download=False))
        assert isinstance(text, str)
        assert "parts-v0" in text
        assert "\n" not in text
