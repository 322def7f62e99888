from __future__ import annotations

import dataclasses
import errno
import json
import os
import time
from pathlib import Path
from typing import Any

import h5py
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvl_pipeline.errors import InputError
from cvl_pipeline.kedro.provenance import records
from cvl_pipeline.kedro.provenance.records import (
    Checksums,
    Recipe,
    Record,
    changes,
    read_record,
    record_path,
    write_record,
)
from cvl_pipeline.sources.files import Files
from cvl_pipeline.testing.builders import names_in

RECIPE = Recipe(
    "stage.node",
    {"seed": 0, "a.b": None, "a.c": "x"},
    {"dataset.path": "1"},
    {"m": "1"},
    {"torch": "2"},
    {"in": "3"},
)
RECORD = Record(RECIPE, {"in": "4"}, {"out": "5", "beside": "6"}, [["data/x", 1, 2, 3, "7"]])
PARTS = [field.name for field in dataclasses.fields(Recipe)][1:]

mappings = st.dictionaries(st.sampled_from("abc"), st.sampled_from("xyz"), max_size=3)
recipes = st.builds(Recipe, st.sampled_from("nm"), *(mappings for _ in PARTS))


def test_a_record_is_beside_its_artifact_and_read_as_it_was_written(tmp_path: Path) -> None:
    artifact = tmp_path / "x.json"
    assert read_record(artifact) is None
    write_record(artifact, RECORD)
    assert names_in(tmp_path) == [".x.json.made.json"]
    assert read_record(artifact) == RECORD


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "3",
        "{}",
        '{"format": 1}',
        '{"format": 1, "recipe": 3}',
        "not json",
        '{"format": 1, "recipe": {}}',
    ],
)
def test_a_file_that_is_no_record_is_read_as_none(tmp_path: Path, text: str) -> None:
    record_path(tmp_path / "x").write_text(text)
    assert read_record(tmp_path / "x") is None


@pytest.mark.parametrize("part", ["recipe", "contents", "outputs", "seen", "format"])
@pytest.mark.parametrize("value", [None, 3, "x"])
def test_a_record_with_a_part_of_another_type_is_none(tmp_path: Path, part: str, value: Any) -> None:
    write_record(tmp_path / "x", RECORD)
    text = record_path(tmp_path / "x").read_text()
    record_path(tmp_path / "x").write_text(json.dumps({**json.loads(text), part: value}))
    assert read_record(tmp_path / "x") is None


def test_a_record_cut_short_anywhere_is_none(tmp_path: Path) -> None:
    write_record(tmp_path / "x", RECORD)
    text = record_path(tmp_path / "x").read_text()
    for length in range(len(text)):
        record_path(tmp_path / "x").write_text(text[:length])
        assert read_record(tmp_path / "x") is None


@given(recipes, recipes)
def test_fingerprints_are_equal_if_and_only_if_recipes_are(one: Recipe, other: Recipe) -> None:
    assert (one.fingerprint == other.fingerprint) == (one == other)


@given(recipes, recipes)
def test_changes_are_all_that_differs_but_the_node_and_its_inputs(one: Recipe, other: Recipe) -> None:
    same = dataclasses.replace(one, node=other.node, inputs=other.inputs) == other
    assert (changes(one, other) == []) == same


def test_changes_are_described_with_the_old_and_the_new_value() -> None:
    other = Recipe(
        "stage.node", {"seed": 1, "a.b": "x"}, {"dataset.path": "2"}, {"n": "1"}, {"torch": "3"}, {"in": "9"}
    )
    assert changes(RECIPE, other) == [
        "parameter a.b: null -> x",
        "parameter a.c removed",
        "parameter seed: 0 -> 1",
        "source dataset.path changed",
        "code of m removed",
        "code of n added",
        "package torch: 2 -> 3",
    ]
    marks = Recipe("stage.node", {}, {"mine": "edited 1"}, {"helper": "edited 1"}, {}, {})
    assert changes(marks, other)[1:] == [
        "parameter seed added",
        "source dataset.path added",
        "source mine was edited while it was made",
        "code of helper was edited while it was made",
        "code of n added",
        "package torch added",
    ]


def test_checksums_are_of_the_bytes(tmp_path: Path) -> None:
    path, checksums = tmp_path / "x", Checksums()
    assert checksums.of(path) is None
    path.write_text("one")
    first = checksums.of(path)
    path.write_text("two")
    assert checksums.of(path) != first
    path.write_text("one")
    assert checksums.of(path) == first
    assert checksums.of(tmp_path) is None
    assert checksums.seen([path, tmp_path]) == []


def test_a_large_file_is_read_once_and_its_record_keeps_the_checksum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "CHECKED_ONCE", 4)
    path = tmp_path / "x"
    path.write_text("large")
    first = Checksums()
    right = first.of(path)
    (entry,) = first.seen([path])
    second = Checksums()
    second.learn([[*entry[:-1], "what the record says"]])
    assert second.of(path) == "what the record says"
    os.utime(path, ns=(0, 0))
    assert second.of(path) == right


def test_a_changed_byte_of_a_large_file_shows_although_its_time_was_set_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "CHECKED_ONCE", 4)
    path, checksums = tmp_path / "x", Checksums()
    path.write_text("large")
    before, right = path.stat(), checksums.of(path)
    while path.stat().st_ctime_ns == before.st_ctime_ns:  # until the file system's clock ticks
        path.write_text("larGe")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert checksums.of(path) not in (None, right)


def test_a_file_that_is_written_while_it_is_read_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "CHECKED_ONCE", 4)
    path, checksums, opened = tmp_path / "x", Checksums(), Path.open
    path.write_text("large")

    def late(path: Path, mode: str) -> Any:
        file = opened(path, mode)
        monkeypatch.setattr(Path, "open", opened)
        os.utime(path, ns=(0, 0))  # written by another process
        return file

    monkeypatch.setattr(Path, "open", late)
    checksums.of(path)
    assert checksums.seen([path]) == []


def test_an_old_file_is_read_once_per_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, checksums = tmp_path / "x", Checksums()
    path.write_text("old")
    monkeypatch.setattr(time, "time", lambda: path.stat().st_ctime + 60.0)
    first = checksums.of(path)
    monkeypatch.setattr(Path, "open", lambda *_: pytest.fail("it is read again"))
    assert checksums.of(path) == first
    assert checksums.seen([path]) == []


def test_a_folder_counts_by_its_files_names_and_bytes(tmp_path: Path) -> None:
    def checksum(**files: str) -> str | None:
        for path in tmp_path.rglob("*.txt"):
            path.unlink()
        for name, text in files.items():
            path = tmp_path / f"{name.replace('__', '/')}.txt"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        return Checksums().of_folder(tmp_path)

    assert checksum(a="1", sub__b="2") == checksum(a="1", sub__b="2")
    assert len({checksum(a="1"), checksum(a="2"), checksum(b="1"), checksum(a="1", sub__b="2")}) == 4
    assert Checksums().of_folder(tmp_path / "nowhere") is None
    assert Checksums().of_folder(tmp_path / "a.txt") == Checksums().of(tmp_path / "a.txt")


def test_folders_behind_links_count_and_links_in_a_circle_end(tmp_path: Path) -> None:
    folder, disk = tmp_path / "folder", tmp_path / "disk"
    for place in (folder, disk):
        place.mkdir()
    (folder / "data").symlink_to(disk)
    (disk / "up").symlink_to(folder)
    (disk / "nowhere").symlink_to("gone")
    (disk / "x").write_text("1")
    before = Checksums().of_folder(folder)
    assert Checksums().of_folder(folder) == before
    (disk / "x").write_text("2")
    assert Checksums().of_folder(folder) != before


def test_what_may_never_end_is_refused_by_name_and_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe is a pipe, not a file; delete or move it"):
        Checksums().of(tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe is a pipe, not a file"):
        Checksums().of_folder(tmp_path)
    with pytest.raises(InputError, match="/dev/zero is a device, not a file"):
        Checksums().of(Path("/dev/zero"))
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(InputError, match=r"cannot read .*loop: .*; its links lead back to themselves"):
        Checksums().of(tmp_path / "loop")
    os.mkfifo(record_path(tmp_path / "x"))
    assert read_record(tmp_path / "x") is None


def test_a_file_or_folder_without_permission_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *_: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    (tmp_path / "x").write_text("1")
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputError, match=r"cannot read .*x: Permission denied; make it readable for you"):
        Checksums().of(tmp_path / "x")
    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match=r"cannot read .*: Permission denied"):
        Checksums().of_folder(tmp_path)


def test_several_files_are_one_checksum_and_a_single_one_its_own(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("1")
    assert Checksums().of_all([]) is None
    assert Checksums().of_all([one]) == Checksums().of(one)
    missing = Checksums().of_all([one, two])
    two.write_text("2")
    both = Checksums().of_all([one, two])
    two.write_text("3")
    assert len({missing, both, Checksums().of_all([one, two])}) == 3


def test_a_change_behind_an_external_link_is_a_change_of_the_log(tmp_path: Path) -> None:
    path = tmp_path / "log.h5"
    source = Files(Files.Parameters(path=str(path)))
    with h5py.File(path, "w") as file:
        file["observations"] = h5py.ExternalLink("raw.h5", "/x")
    checksums = [Checksums().of_all(source.files())]
    for value in (1, 2):
        with h5py.File(tmp_path / "raw.h5", "w") as file:
            file["x"] = value
        checksums.append(Checksums().of_all(source.files()))
    assert len(set(checksums)) == 3
