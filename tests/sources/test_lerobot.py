"""LeRobot's format, read from a dataset that its own package wrote."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from pydantic import ValidationError

from cvl_pipeline.episodes.container import Transitions
from cvl_pipeline.errors import InputError
from cvl_pipeline.sources.base import SOURCES
from cvl_pipeline.sources.lerobot_frames import Filler
from tests.sources.lerobot_sets import (
    DATA,
    FIXTURE,
    STATE,
    TOP,
    WRIST,
    copied,
    read,
    source,
    with_column,
    with_feature,
    with_info,
    with_table,
)

TASKS = ("move to the left side", "move to the right side")


def frames_of(transitions: Transitions, lengths: np.ndarray) -> torch.Tensor:
    """Rows of the observations that are frames of the log: without the repeated last ones of terminated episodes."""
    kept = transitions.lengths.numpy() + 1
    starts = np.concatenate([[0], kept.cumsum()[:-1]])
    return torch.from_numpy(
        np.concatenate([np.arange(first, first + n) for first, n in zip(starts, lengths, strict=True)])
    )


@pytest.mark.parametrize("version", ["v30", "v21"])
def test_numbers_and_frames_are_those_that_the_package_reads(version: str) -> None:
    expected = np.load(FIXTURE / f"{version}.npz")
    transitions, rewards = read(FIXTURE / version)
    lengths = np.bincount(expected["episode_index"])
    rows = frames_of(transitions, lengths)
    assert transitions.parts is not None
    assert transitions.parts.names == ("state", "task", "images.top", "images.wrist")
    parts = transitions.unpacked(transitions.observations[rows])
    np.testing.assert_array_equal(parts["state"], expected[STATE])
    assert [TASKS[number] for number in parts["task"].argmax(1)] == expected["task"].tolist()
    for name in ("images.top", "images.wrist"):
        pixels = parts[name].numpy()
        np.testing.assert_array_equal(pixels[:, ::8, ::8], expected[f"observation.{name}/pixels"])
        sums = [hashlib.sha256(frame.tobytes()).hexdigest() for frame in pixels]
        assert (
            sums == expected[f"observation.{name}/sha256"].tolist()
        )  # another PyAV may round in another way
    # The last episode was not solved, so nothing says where its last step led.
    assert transitions.terminated.tolist() == [True, True, True, False]
    assert transitions.truncated.tolist() == [False, False, False, True]
    assert transitions.lengths.tolist() == [*lengths[:-1], lengths[-1] - 1]
    kept = np.arange(len(expected["next.reward"]) - 1)
    np.testing.assert_array_equal(transitions.actions, expected["action"][kept])
    np.testing.assert_array_equal(rewards.rewards, expected["next.reward"].reshape(-1)[kept])
    np.testing.assert_array_equal(rewards.successes, expected["next.success"].reshape(-1)[kept])
    assert rewards.reports_success
    assert int(rewards.dropped_steps) == 1
    last = transitions.episode_starts[1] + torch.tensor([0, -1])  # the solved state follows itself
    assert torch.equal(*transitions.observations[last])


def test_one_feature_alone_has_no_parts() -> None:
    expected = np.load(FIXTURE / "v30.npz")
    numbers, _ = read(FIXTURE / "v30", observations=STATE, tasks="ignore")
    assert (numbers.parts, numbers.observations.dtype, numbers.observations.shape[1]) == (
        None,
        torch.float32,
        4,
    )
    pictures, _ = read(FIXTURE / "v21", observations=WRIST, tasks="ignore", image_size=16)
    assert (pictures.parts, pictures.observations.dtype) == (None, torch.uint8)
    assert pictures.observations.shape == (69, 16, 16, 3)
    assert len(numbers.observations) == len(expected[STATE]) + 3


def test_pictures_are_averaged_to_the_size_asked_for() -> None:
    whole, _ = read(FIXTURE / "v30", observations=TOP, tasks="ignore")
    small, _ = read(FIXTURE / "v30", observations=TOP, tasks="ignore", image_size="24 32")
    blocks = whole.observations.double().reshape(-1, 24, 4, 32, 4, 3).mean((2, 4))
    assert (small.observations.double() - blocks).abs().max() <= 0.5


def test_one_task_is_chosen_by_its_text_or_its_number() -> None:
    for chosen in (TASKS[1], "1", 1):
        log = source(FIXTURE / "v30", observations=TOP, instruction=chosen, image_size=8)
        transitions, _ = log.load(0, 1)
        assert transitions.episodes == 2
        assert log.tasks == ()
    everything, _ = read(FIXTURE / "v30", observations=TOP, tasks="ignore", image_size=8)
    assert torch.equal(everything.select(torch.tensor([1, 3])).observations, transitions.observations)
    assert source(FIXTURE / "v30").tasks == TASKS


def test_texts_are_utf8_and_end_at_line_feeds_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = copied(tmp_path, "v21")
    text = "ramasse le d\u00e9\u2028\u0085"
    lines = [json.loads(line) for line in (root / "meta/tasks.jsonl").read_bytes().split(b"\n") if line]
    lines[0]["task"] = text
    content = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    (root / "meta/tasks.jsonl").write_bytes(content.encode())
    monkeypatch.setattr(Path, "read_text", None)  # whose encoding is the machine's
    assert source(root).tasks[0] == text


def test_a_feature_that_is_not_read_may_be_odd(tmp_path: Path) -> None:
    root = copied(tmp_path)
    with_info(
        root, lambda info: info["features"].update(odd={"dtype": "float32", "shape": None}, is_last=[1])
    )
    assert torch.equal(read(root)[0].actions, read(FIXTURE / "v30")[0].actions)
    with pytest.raises(InputError, match=r"feature 'odd' is not described .* others in dataset\.rewards"):
        read(root, rewards="odd")


def test_blocks_of_any_size_give_the_same_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    expected, labels = read(FIXTURE / "v21")
    monkeypatch.setattr("cvl_pipeline.sources.lerobot.BLOCK_BYTES", 5 * (96 * 128 + 64 * 64) * 3)
    found, others = read(FIXTURE / "v21")
    assert torch.equal(found.observations, expected.observations)
    assert torch.equal(found.actions, expected.actions)
    assert torch.equal(others.rewards, labels.rewards)


@pytest.mark.parametrize(
    ("rule", "terminated"),
    [("success", [True, True, True, False]), ("done", [True] * 4), ("never", [False] * 4)],
)
def test_the_parameter_says_what_ends_an_episode(rule: str, terminated: list[bool]) -> None:
    settings = {"successes": None} if rule == "never" else {}
    transitions, rewards = read(FIXTURE / "v30", observations=STATE, terminated=rule, **settings)
    assert transitions.terminated.tolist() == terminated
    assert int(rewards.dropped_steps) == terminated.count(False)


def test_without_successes_no_episode_ended_unless_the_parameter_says_so(tmp_path: Path) -> None:
    root = copied(tmp_path)
    with_info(root, lambda info: info["features"].pop("next.success"))
    for path, settings in ((root, {}), (FIXTURE / "v30", {"successes": None})):
        transitions, _ = read(path, observations=STATE, **settings)
        assert not transitions.terminated.any()
        with pytest.raises(
            InputError, match=r"terminated is success, but no feature .* name one in"
        ) as caught:
            read(path, observations=STATE, terminated="success", **settings)
        assert "\n" not in str(caught.value)


def test_a_log_that_would_lose_all_its_successes_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"all 3 successes \(dataset.successes\) .* set dataset.terminated to done or"
    ):
        read(FIXTURE / "v30", observations=STATE, terminated="never")


def test_next_truncated_says_which_episodes_did_not_end(tmp_path: Path) -> None:
    root = copied(tmp_path)
    flags = np.zeros(66, dtype=bool)
    flags[[-1, 11]] = True
    with_feature(root, "next.truncated", flags)
    transitions, _ = read(root, observations=STATE)
    ends = np.cumsum(np.bincount(np.load(FIXTURE / "v30.npz")["episode_index"])) - 1
    assert transitions.truncated.tolist() == flags[ends].tolist()


def test_rewards_and_successes_are_optional(tmp_path: Path) -> None:
    log = source(FIXTURE / "v30", observations=STATE, rewards=None, successes=None)
    _, rewards = log.load(0, 1)
    assert rewards.missing
    assert not rewards.reports_success
    assert not log.has_rewards
    root = copied(tmp_path)
    with_info(root, lambda info: [info["features"].pop(name) for name in ("next.reward", "next.success")])
    assert not source(root).has_rewards
    assert read(root, observations=STATE)[1].missing


def test_whole_numbers_are_discrete_actions(tmp_path: Path) -> None:
    root = copied(tmp_path)
    codes = np.arange(66) % 3
    with_info(
        root, lambda info: info["features"].update(action={"dtype": "int64", "shape": [1], "names": None})
    )
    with_column(root, "action", codes)
    transitions, _ = read(root, observations=STATE)
    assert bool(transitions.discrete)
    assert transitions.actions.argmax(1).tolist() == codes[:65].tolist()
    assert read(root, observations=STATE, action_count=5)[0].actions.shape == (65, 5)
    with pytest.raises(InputError, match=r"frame 2 .* 2 is not an action, 0 to 1"):
        read(root, observations=STATE, action_count=2)
    for side in ("action_low", "action_high"):
        with pytest.raises(
            InputError, match=r"'action' is int64 of shape \[1\] .* have no bounds; set both to null"
        ):
            read(root, observations=STATE, **{side: "0"})


@pytest.mark.parametrize(
    ("kind", "shown"), [(np.float64, "0.0 is stored as float64"), (np.bool_, "False is stored as bool")]
)
def test_discrete_actions_that_are_not_stored_as_integers_are_refused(
    tmp_path: Path, kind: type, shown: str
) -> None:
    root = copied(tmp_path)
    with_info(
        root, lambda info: info["features"].update(action={"dtype": "int64", "shape": [1], "names": None})
    )
    with_column(root, "action", (np.arange(66) % 4 / 2).astype(kind))  # fractions were cut off
    with pytest.raises(
        InputError, match=rf"'action' in episode 0, frame 0 .* {shown}, .* as integers from 0"
    ):
        read(root, observations=STATE)


def test_numbers_of_several_axes_are_flattened(tmp_path: Path) -> None:
    root = copied(tmp_path)
    with_info(root, lambda info: info["features"][STATE].update(shape=[2, 2]))
    with_column(
        root,
        STATE,
        lambda values: pa.array(values.reshape(66, 2, 2).tolist(), pa.list_(pa.list_(pa.float32()))),
    )
    assert torch.equal(read(root)[0].observations, read(FIXTURE / "v30")[0].observations)


def test_a_repository_is_downloaded_without_videos_that_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def snapshot_download(repository: str, **options: Any) -> str:
        asked.append((repository, options["revision"], options["allow_patterns"]))
        if repository == "no/body":
            raise OSError("404 not found")
        return str(FIXTURE / "v30")

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download))
    chosen = SOURCES.validate(
        {"source": "lerobot", "task": "me/point", "revision": "v3.0", "observations": WRIST, "image_size": 8}
    )
    assert chosen.folder == "me-point"  # type: ignore[attr-defined]
    SOURCES.create(chosen).load(0, 1)
    assert asked[0] == ("me/point", "v3.0", ["meta/*"])
    assert asked[-1][2] == ["meta/*", "data/*", f"videos/*{WRIST}/*"]
    of_task = chosen.model_copy(update={"instruction": "1"})
    SOURCES.create(of_task).load(0, 1)
    data, videos = "data/chunk-000/file-000.parquet", f"videos/{WRIST}/chunk-000/file-000.mp4"
    assert asked[-1][2] == ["meta/*", data, videos]
    monkeypatch.setattr("cvl_pipeline.sources.lerobot.MOST_PATTERNS", 1)
    SOURCES.create(of_task).load(0, 1)
    assert asked[-1][2] == ["meta/*", "data/*", f"videos/*{WRIST}/*"]
    with pytest.raises(
        InputError, match=r"'no/body' could not be downloaded .*404.* give its folder as dataset.path"
    ):
        SOURCES.create(SOURCES.validate({"source": "lerobot", "task": "no/body"})).load(0, 1)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r"pip install 'cvl-pipeline\[lerobot\]'"):
        SOURCES.create(SOURCES.validate({"source": "lerobot", "task": "me/point"})).load(0, 1)


def test_without_pyav_cameras_are_refused_and_numbers_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    read(FIXTURE / "v30", observations=STATE)
    with pytest.raises(InputError, match=r"lerobot needs av: pip install 'cvl-pipeline\[lerobot\]'"):
        read(FIXTURE / "v30")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"observations": "observation.images.left"},
            "dataset.observations: unknown feature .*did you mean obs",
        ),
        ({"observations": "next.bogus"}, "unknown feature 'next.bogus'"),
        ({"actions": "actoin"}, "dataset.actions: unknown feature 'actoin': did you mean action"),
        ({"actions": TOP}, "not a feature of numbers"),
        ({"rewards": "reward"}, "dataset.rewards: unknown feature 'reward'"),
        ({"rewards": "action"}, "'action' has 2 numbers per frame; name one reward"),
        ({"successes": "action"}, "'action' in episode 0, frame 0 .* is not a flag"),
        ({"successes": "succes"}, "dataset.successes: unknown feature"),
        (
            {"instruction": "move up"},
            "'move up', which is no task; .* 0: move to the left side; 1: move to the right",
        ),
        ({"instruction": "2"}, "which is no task"),
        ({"instruction": "9" * 5000}, "which is no task"),
        ({"action_low": "0 0 0"}, "dataset.action_low: 3 numbers, but the actions of .* have 2 dimensions"),
        ({"action_low": "0 0"}, "is outside .* dataset.actions_out_of_bounds"),
        (
            {"action_count": 4},
            "action_count is for discrete actions, but 'action' is float32 of shape .2. .* set it to null",
        ),
        ({"path": "/nowhere/at/all"}, "does not exist; name the folder of a LeRobot dataset"),
        ({"path": str(FIXTURE / "make.py")}, "is a file; name the folder"),
        ({"path": str(FIXTURE)}, "meta/info.json does not exist; name a folder with a whole LeRobot dataset"),
    ],
)
def test_wrong_parameters_are_one_line(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        read(**{"path": FIXTURE / "v30", "observations": STATE, **settings})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "needs the folder of a dataset, or dataset.task"),
        ({"task": "pusht"}, "a repository has an owner, such as lerobot/pusht"),
        ({"path": "x", "image_size": "8 8 8"}, "height and width"),
        ({"path": "x", "image_size": 0}, "image_size"),
        ({"path": "x", "image_size": "big"}, "image_size"),
        ({"path": "x", "tasks": "one-hot"}, "one_hot"),
        ({"path": "x", "observation": STATE}, "Extra inputs"),
    ],
)
def test_parameters_are_checked_before_anything_is_read(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        SOURCES.validate({"source": "lerobot", **settings})


def _rows(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    return lambda root: with_table(root, change)


def _cut(name: str, share: float) -> Callable[[Path], None]:
    def cut(root: Path) -> None:
        data = (root / name).read_bytes()
        (root / name).write_bytes(data[: int(len(data) * share)])

    return cut


def _info(**values: Any) -> Callable[[Path], None]:
    return lambda root: with_info(root, lambda info: info.update(values))


def _feature(name: str, **values: Any) -> Callable[[Path], None]:
    return lambda root: with_info(root, lambda info: info["features"][name].update(values))


def _entry(column: str, row: int, value: Any) -> Callable[[Path], None]:
    def change(values: np.ndarray) -> np.ndarray:
        values = values.astype(np.float32) if isinstance(value, float) else values
        values[row] = value
        return values

    return lambda root: with_column(root, column, change)


VIDEO = f"videos/{TOP}/chunk-000/file-000.mp4"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"
FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no description": (lambda root: (root / "meta/info.json").unlink(), "info.json does not exist"),
    "half a description": (_cut("meta/info.json", 0.5), "info.json: is not JSON"),
    "a list": (lambda root: (root / "meta/info.json").write_text("[]"), "does not describe a dataset"),
    "old version": (_info(codebase_version="v2.0"), "codebase_version is v2.0; only v3.0 and v2.1 are read"),
    "no version": (lambda root: with_info(root, lambda info: info.pop("codebase_version")), "codebase_version is None"),
    "no rate": (_info(fps=0), "fps is 0; it must be a positive number"),
    "features": (_info(features=[1]), "features are not described"),
    "a shape": (_feature(STATE, shape="4"), "feature 'observation.state' is not described"),
    "a huge shape": (_feature(STATE, shape=[2**62, 4]), "feature 'observation.state' is not described"),
    "info": (_feature(STATE, info="x"), "feature 'observation.state' is not described"),
    "info of pictures": (_feature(STATE, video_info=[1]), "feature 'observation.state' is not described"),
    "chunks": (_info(chunks_size="many"), "chunks_size is 'many'; it must be a positive number"),
    "a list of chunks": (_info(chunks_size=[1000]), "chunks_size is .1000.; it must be a positive number"),
    "numbers of tasks": (
        lambda root: with_column(root, "tasks", [1, 2, 3, 4], EPISODES), "meta/episodes: 'tasks' is '1', not a list"
    ),
    "texts of tasks": (
        lambda root: with_column(root, "tasks", list("abcd"), EPISODES), "'tasks' is 'a', not a list of texts"
    ),
    "uneven rewards": (
        lambda root: with_column(root, "next.reward", pa.array([[7.0, 8.0], [], *[[0.0]] * 64])),
        "'next.reward' has other numbers of values per frame than 1",
    ),
    "depth": (_feature(WRIST, info={"is_depth_map": True}), "is a depth map, which is not read"),
    "text": (_feature(STATE, dtype="string"), "is string, which is not read"),
    "no tasks": (lambda root: (root / "meta/tasks.parquet").unlink(), "tasks.parquet does not exist"),
    "tasks": (_cut("meta/tasks.parquet", 0.5), "tasks.parquet: cannot be read"),
    "no episodes": (lambda root: (root / EPISODES).unlink(), "meta/episodes: has no Parquet file"),
    "half of the episodes": (
        lambda root: with_table(root, lambda table: table.slice(0, 2), EPISODES),
        "lists 2 episodes with 26 frames, but info.json says 4 with 66",
    ),
    "the order of episodes": (
        lambda root: with_table(root, lambda table: table.take([1, 0, 2, 3]), EPISODES), "episodes are not in order"
    ),
    "no place of videos": (
        lambda root: with_table(root, lambda table: table.drop_columns([f"videos/{TOP}/file_index"]), EPISODES),
        "no column videos",
    ),
    "a negative place": (lambda root: with_column(root, "data/file_index", [-1, 0, 0, 0], EPISODES), "from 0 on"),
    "a way out": (_info(data_path="../{chunk_index}{file_index}.parquet"), "no place in the dataset's folder"),
    "no way": (_info(data_path=None), "data_path is None"),
    "another template": (_info(data_path="{episode}.parquet"), "data_path is '{episode}.parquet'"),
    "no data": (lambda root: (root / DATA).unlink(), "file-000.parquet does not exist"),
    "half of the data": (_cut(DATA, 0.5), "file-000.parquet: cannot be read"),
    "fewer rows": (_rows(lambda table: table.slice(0, 60)), "ends within episode 3: the metadata say 66 frames"),
    "a missing row": (
        _rows(lambda table: table.take([*range(5), *range(6, 66)])),
        "has frame 6 of episode 0 where .* expect frame 5",
    ),
    "rows of another episode": (_entry("episode_index", 20, 7), "rows of episode 7, which meta does not list"),
    "no action": (_rows(lambda table: table.drop_columns(["action"])), "has no column 'action'"),
    "no numbers": (lambda root: with_column(root, STATE, ["x"] * 66), "must be numbers without gaps"),
    "gaps": (lambda root: with_column(root, "next.reward", [None, *[0.0] * 65]), "without gaps"),
    "NaN": (_entry("next.reward", 30, float("nan")), r"'next.reward' in episode 2, frame 4 .* nan at entry 0 is not a"),
    "infinity": (_entry("action", 3, float("inf")), "'action' in episode 0, frame 3 .* inf at entry 0"),
    "another width": (_feature(STATE, shape=[5]), "other numbers of values per frame than 5"),
    "ragged rows": (
        lambda root: with_column(root, STATE, pa.array([[0.0] * 3, [0.0] * 5, *[[0.0] * 4] * 64])),
        "other numbers of values per frame than 4",
    ),
    "no flag": (_entry("next.success", 20, 2.0), "2.0. is not a flag; record one 0 or 1 per frame"),
    "unknown task": (lambda root: with_column(root, "task_index", [5] * 66), "5 is no task's number"),
    "no video": (lambda root: (root / VIDEO).unlink(), "file-000.mp4 does not exist"),
    "half a video": (_cut(VIDEO, 0.5), "cannot be decoded|ends at"),
    "no video at all": (lambda root: (root / VIDEO).write_bytes(b"ffconcat version 1.0\nfile x.mp4"), "cannot be"),
    "another rate": (lambda root: with_column(root, "timestamp", np.arange(66) * 0.137), "no picture at|ends at"),
    "a later start": (
        lambda root: with_column(root, f"videos/{TOP}/from_timestamp", lambda values: values + 100, EPISODES), "ends at"
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_dataset_is_one_line_with_file_and_fix(tmp_path: Path, fault: str) -> None:
    root = copied(tmp_path)
    spoil, words = FAULTS[fault]
    spoil(root)
    # Pictures are decoded only where they matter.
    pictures = any(word in fault for word in ("video", "rate", "start", "depth"))
    with pytest.raises(InputError, match=words) as caught:
        read(root, **({} if pictures else {"observations": STATE}))
    assert "\n" not in str(caught.value)
    assert str(root) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not contain the image; save the dataset with embedded images"),
        (b"GIF89a", "image 0 .* is no PNG or JPEG image"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "image 0 .* cannot be decoded"),
    ],
)
def test_a_faulty_image_is_one_line(tmp_path: Path, content: bytes | None, words: str) -> None:
    root = copied(tmp_path, "v21")
    cells = pa.array(
        [{"bytes": content, "path": "x.png"}] * 24, pa.struct({"bytes": pa.binary(), "path": pa.string()})
    )
    name = "data/chunk-000/episode_000000.parquet"
    with_table(
        root,
        lambda table: table.set_column(table.column_names.index(WRIST), WRIST, cells[: len(table)]),
        name,
    )
    with pytest.raises(InputError, match=words):
        read(root, observations=WRIST)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no episode"),
        ('{"episode_index": 0}\n', "lacks a number or a length"),
        ("[1]\n", "not a JSON object"),
        ("{", "cannot be read"),
    ],
)
def test_faulty_lists_of_version_2_are_one_line(tmp_path: Path, text: str, words: str) -> None:
    root = copied(tmp_path, "v21")
    (root / "meta/episodes.jsonl").write_text(text)
    with pytest.raises(InputError, match=words):
        read(root, observations=STATE)


@pytest.mark.parametrize("number", ["[0]", '"0"', "null"])
def test_tasks_of_version_2_without_a_number_are_one_line(tmp_path: Path, number: str) -> None:
    root = copied(tmp_path, "v21")
    (root / "meta/tasks.jsonl").write_text(f'{{"task_index": {number}, "task": "move"}}\n')
    with pytest.raises(InputError, match=r"tasks.jsonl: does not number the texts of tasks from 0"):
        read(root, observations=STATE)


@pytest.mark.parametrize("name", ["timestamp", "task_index"])
def test_columns_of_the_format_need_no_description(tmp_path: Path, name: str) -> None:
    root = copied(tmp_path)
    with_info(root, lambda info: info["features"].pop(name))
    assert torch.equal(read(root)[0].observations, read(FIXTURE / "v30")[0].observations)


@contextmanager
def _noting(lines: list[str]) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        lines.append(str(error))


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        ("length", pa.int32()),
        ("tasks", pa.large_list(pa.large_string())),
        ("data/chunk_index", pa.float64()),
        (f"videos/{TOP}/from_timestamp", pa.float32()),
    ],
)
def test_files_of_episodes_may_differ_in_their_types(tmp_path: Path, column: str, kind: Any) -> None:
    root = copied(tmp_path)
    table = pyarrow.parquet.read_table(root / EPISODES)
    place = table.column_names.index(column)
    second = table.slice(2).set_column(place, column, table.slice(2).column(column).cast(kind))
    pyarrow.parquet.write_table(table.slice(0, 2), root / EPISODES)
    pyarrow.parquet.write_table(second, root / "meta/episodes/chunk-000/file-001.parquet")
    assert torch.equal(read(root)[0].observations, read(FIXTURE / "v30")[0].observations)


@pytest.mark.parametrize("version", ["v30", "v21"])
def test_a_damaged_file_is_one_line_or_changes_no_shape(tmp_path: Path, version: str) -> None:
    """Cut files anywhere, and change bytes anywhere: a hundred inputs for each version."""
    root = copied(tmp_path, version)
    expected, _ = read(root)
    rng = np.random.default_rng(7)
    files = [path for path in sorted(root.rglob("*")) if path.is_file() and "stats" not in path.name]
    lines: list[str] = []
    for case in range(100):
        path = files[case % len(files)]
        content = path.read_bytes()
        damaged = bytearray(content[: int(rng.integers(0, len(content)))] if case % 2 else content)
        for place in rng.integers(0, max(1, len(damaged)), 3 * (1 - case % 2)):
            damaged[place] = int(rng.integers(0, 256))
        path.write_bytes(bytes(damaged))
        observed = STATE if path.suffix != ".mp4" else TOP
        with _noting(lines):
            transitions, _ = read(root, observations=observed, tasks="ignore", actions_out_of_bounds="widen")
            assert transitions.actions.shape[1] == expected.actions.shape[1]
        path.write_bytes(content)
    assert len(lines) > 60
    assert all("\n" not in line and str(root) in line for line in lines)


def test_is_last_of_other_datasets_marks_the_last_action(tmp_path: Path) -> None:
    root = copied(tmp_path)
    plain = read(root, observations=STATE)
    episodes = pa.parquet.read_table(root / DATA)["episode_index"].to_numpy()
    with_feature(root, "is_last", np.append(np.diff(episodes) != 0, True))
    before: Any
    for before, after in zip(plain, read(root, observations=STATE), strict=True):
        for field in fields(before):
            first, second = getattr(before, field.name), getattr(after, field.name)
            assert first == second if field.name == "parts" else torch.equal(first, second), field.name


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"low": [10**400, 0]},
            "features.action.low in meta/info.json is .* not numbers of single precision",
        ),
        ({"low": [math.nan, 0.0]}, "features.action.low in meta/info.json is .nan, 0.0., not numbers"),
        ({"high": [1.0, "x"]}, "features.action.high in meta/info.json"),
        ({"low": [5.0, 0.0], "high": [1.0, 1.0]}, "low in meta/info.json is .5.0, 0.0., in part above high"),
    ],
)
def test_bounds_of_the_dataset_are_checked_before_anything_is_read(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    root = copied(tmp_path)
    with_info(root, lambda info: info["features"]["action"].update(changes))
    with pytest.raises(InputError, match=words):
        read(root, observations=STATE)


def test_whole_numbers_that_merge_are_refused_in_every_block() -> None:
    filler = Filler.__new__(Filler)
    filler._converted = set()
    filler._single(np.arange(100.0), "state")
    np.testing.assert_array_equal(filler._single(np.arange(3.0) + 0.5, "state"), np.arange(3.0) + 0.5)
    with pytest.raises(InputError, match=r"state: .* become"):
        filler._single(1e9 + np.arange(100.0), "state")
