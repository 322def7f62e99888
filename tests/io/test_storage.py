from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from cvl_pipeline.errors import InputError
from cvl_pipeline.io import storage
from cvl_pipeline.io.checked import read_checkpoint, read_table, write_checkpoint, write_table
from cvl_pipeline.io.owner import namespace
from cvl_pipeline.io.storage import (
    HOST,
    SCOPE,
    fingerprint,
    read_tensors,
    shown,
    write_atomically,
    write_tensors,
)
from cvl_pipeline.testing.builders import names_in

TENSORS = {
    "floats": torch.arange(12, dtype=torch.float32).reshape(3, 4) / 7.0,
    "counts": torch.tensor([3, -1, 2**40]),
    "flags": torch.tensor([True, False, True]),
    "scalar": torch.tensor(0.25),
    "empty": torch.zeros(0, 3),
}
CONFIG: dict[str, Any] = {"hidden": [16, 8], "name": 'ä "quoted"', "rate": 0.1, "learned": False}


def _write(path: Path) -> bytes:
    write_tensors(path, "thing", TENSORS, CONFIG)
    return path.read_bytes()


def _header() -> dict[str, Any]:
    return {
        "version": 2,
        "kind": "thing",
        "config": CONFIG,
        "checksum": fingerprint(TENSORS, {"version": 2, "kind": "thing", "config": CONFIG}),
    }


def _same(kind: str, tensors: dict[str, Tensor], config: dict[str, Any]) -> bool:
    return (
        kind == "thing"
        and config == CONFIG
        and tensors.keys() == TENSORS.keys()
        and all(
            tensors[name].dtype == value.dtype and torch.equal(tensors[name], value)
            for name, value in TENSORS.items()
        )
    )


def _assert_refused_or_unharmed(path: Path, content: bytes, kind: str | None = "thing") -> None:
    """Whatever happened to the file: the right content, or one error that names it."""
    path.write_bytes(content)
    try:
        read = read_tensors(path, kind)
    except InputError as error:
        message = str(error)
        assert str(path) in message
        assert "rerun its stage" in message
    else:
        assert _same(*read)


def test_tensors_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "x.safetensors"
    _write(path)
    assert _same(*read_tensors(path, "thing"))
    assert names_in(path.parent) == ["x.safetensors"]


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    # So that two runs can be compared with sha256sum.
    files = {_write(tmp_path / f"{n}.safetensors") for n in range(5)}
    write_tensors(tmp_path / "reversed.safetensors", "thing", dict(reversed(TENSORS.items())), CONFIG)
    assert {(tmp_path / "reversed.safetensors").read_bytes()} == files


def test_tensors_are_written_with_any_memory_layout(tmp_path: Path) -> None:
    whole = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    tensors = {
        "transposed": whole.T,
        "column": whole[:, 2],
        "rows": whole[1:3],
        "broadcast": torch.tensor([1.0]).expand(5),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "twice": whole,
        "again": whole,
    }
    write_tensors(tmp_path / "x.safetensors", "thing", tensors, {})
    _, read, _ = read_tensors(tmp_path / "x.safetensors", "thing")
    for name, value in tensors.items():
        assert torch.equal(read[name], value), name


@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_files_of_tensors_have_the_mode_of_other_files(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        _write(tmp_path / "x.safetensors")
    finally:
        os.umask(before)
    assert (tmp_path / "x.safetensors").stat().st_mode & 0o777 == 0o666 & ~umask
    assert names_in(tmp_path) == ["x.safetensors"]


def test_a_file_cut_at_any_length_is_refused(tmp_path: Path) -> None:
    content = _write(tmp_path / "whole.safetensors")
    path = tmp_path / "cut.safetensors"
    for length in [*range(0, len(content), 3), len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(InputError, match=r"cut\.safetensors"):
            read_tensors(path, "thing")


@pytest.mark.parametrize("mask", [0x01, 0x20])
def test_a_byte_changed_anywhere_is_refused_or_does_no_harm(tmp_path: Path, mask: int) -> None:
    content = _write(tmp_path / "whole.safetensors")
    path = tmp_path / "changed.safetensors"
    for offset in range(len(content)):
        changed = bytearray(content)
        changed[offset] ^= mask
        _assert_refused_or_unharmed(path, bytes(changed))


def test_the_kind_that_a_file_claims_is_protected_like_its_content(tmp_path: Path) -> None:
    content = _write(tmp_path / "whole.safetensors")
    start = content.index(b"thing")
    for offset in range(start, start + len("thing")):
        changed = bytearray(content)
        changed[offset] ^= 0x01
        _assert_refused_or_unharmed(tmp_path / "changed.safetensors", bytes(changed), kind=None)


@given(places=st.lists(st.tuples(st.floats(0.0, 1.0, exclude_max=True), st.integers(0, 255)), min_size=1))
def test_several_bytes_changed_anywhere_are_refused_or_do_no_harm(
    tmp_path_factory: pytest.TempPathFactory, places: list[tuple[float, int]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "changed.safetensors"
    content = bytearray(_write(path))
    for place, value in places:
        content[int(place * len(content))] = value
    _assert_refused_or_unharmed(path, bytes(content))


@given(content=st.binary(max_size=300))
def test_a_file_of_anything_else_is_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "other.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"other\.safetensors"):
        read_tensors(path, "thing")


def test_files_of_another_kind_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"

    def refused(part: str) -> None:
        with pytest.raises(InputError) as caught:
            read_tensors(path, "thing")
        assert part in str(caught.value)
        assert str(path) in str(caught.value)

    refused("does not exist; run the stage that makes it")
    save_file(TENSORS, path)
    refused("was not written by cvl-pipeline")
    save_file(TENSORS, path, metadata={"format": "pt"})
    refused("was not written by cvl-pipeline")
    write_tensors(path, "another", TENSORS, CONFIG)
    refused("contains a another, not a thing")
    save_file(TENSORS, path, metadata={"cvl-pipeline": json.dumps(_header() | {"version": 3})})
    refused("has format version 3, this program reads 2")
    for foreign in ("", "{", "[]", "null", '"text"', "3"):
        save_file(TENSORS, path, metadata={"cvl-pipeline": foreign})
        refused("was not written by cvl-pipeline")
    path.unlink()
    path.mkdir()
    refused("is a folder, not a file")


@pytest.mark.parametrize("missing", ["config", "checksum", "kind", "version"])
def test_a_header_that_lacks_an_entry_is_refused(tmp_path: Path, missing: str) -> None:
    header = _header()
    path = tmp_path / "x.safetensors"
    save_file(TENSORS, path, metadata={"cvl-pipeline": json.dumps(header)})
    assert _same(*read_tensors(path, "thing"))
    del header[missing]
    save_file(TENSORS, path, metadata={"cvl-pipeline": json.dumps(header)})
    with pytest.raises(InputError, match=r"x\.safetensors"):
        read_tensors(path, "thing")


def test_paths_are_reported_relative_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert shown(tmp_path / "data" / "x.json") == "data/x.json"
    assert shown(Path("data/x.json")) == "data/x.json"
    assert shown(tmp_path.parent / "x.json") == str(tmp_path.parent / "x.json")


def test_an_altered_number_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    content = bytearray(_write(path))
    content[-3] ^= 0x01
    path.write_bytes(content)
    with pytest.raises(InputError, match="does not match its checksum"):
        read_tensors(path, "thing")


def test_a_failed_write_leaves_only_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    content = _write(path)

    def fails(partial: Path) -> None:
        partial.write_bytes(b"half of it")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fails)
    assert path.read_bytes() == content
    assert names_in(tmp_path) == ["x.safetensors"]


def test_a_write_is_not_seen_until_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(b"old")
    seen = []

    def write(partial: Path) -> None:
        partial.write_bytes(b"new and longer")
        seen.append(path.read_bytes())
        assert partial.parent.parent == path.parent  # renaming across file systems is not atomic

    write_atomically(path, write)
    assert seen == [b"old"]
    assert path.read_bytes() == b"new and longer"
    assert names_in(tmp_path) == ["x.bin"]


def _dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_the_next_write_removes_partial_files_of_killed_processes(
    tmp_path: Path,
) -> None:
    dead = _dead_process()
    left = {
        f".partial-{dead}@{SCOPE}@x.bin": False,
        f".partial-{dead}@{SCOPE}@y@1@z.bin": False,
        f".partial-{os.getppid()}@{SCOPE}@x.bin": True,  # somebody is writing it
        f".partial-{dead}@{SCOPE}-2@x.bin": True,  # likewise, as far as this machine can know
        f".partial-{dead}@{HOST}-{int(namespace()) + 1}@x.bin": True,  # in another container
        ".partial-1@old@x.bin": False,
        ".partial-x.bin": True,  # none of ours
    }
    for name in left:
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.bin").write_bytes(b"half of it")
    os.utime(tmp_path / ".partial-1@old@x.bin", (0, 0))
    write_atomically(tmp_path / "x.bin", lambda partial: partial.write_bytes(b"whole"))
    assert names_in(tmp_path) == sorted(["x.bin", *(name for name, stays in left.items() if stays)])


def test_a_folder_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    def write(partial: Path) -> None:
        partial.mkdir()
        (partial / "part").write_text("a")

    write_atomically(tmp_path / "folder", write)
    assert names_in(tmp_path) == ["folder"]
    assert names_in(tmp_path / "folder") == ["part"]
    with pytest.raises(InputError, match=r"cannot write .*folder: .*not empty"):
        write_atomically(tmp_path / "folder", write)


def test_a_link_is_replaced_and_its_target_unchanged(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"precious")
    (tmp_path / "x.bin").symlink_to(tmp_path / "elsewhere")
    write_atomically(tmp_path / "x.bin", lambda partial: partial.write_bytes(b"new"))
    assert (tmp_path / "elsewhere").read_bytes() == b"precious"
    assert not (tmp_path / "x.bin").is_symlink()


@pytest.fixture
def small_disk() -> Iterator[None]:
    """Files end at 8 KiB, in whatever language they are written."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.usefixtures("small_disk")
@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_tensors(path, "thing", {"zeros": torch.zeros(10_000)}, {}),
        lambda path: write_table(path, pd.DataFrame({"noise": np.random.default_rng(0).random(10_000)})),
        lambda path: write_checkpoint(path, {"zeros": torch.zeros(10_000)}),
    ],
    ids=["tensors", "table", "checkpoint"],
)
def test_a_full_disk_gives_a_one_line_error_and_keeps_the_old_file(
    tmp_path: Path, write: Callable[[Path], None]
) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old")
    with pytest.raises(
        InputError, match=r"^cannot write .*x: the disk is full \(File too large\); free some"
    ):
        write(path)
    assert path.read_bytes() == b"old"
    assert names_in(tmp_path) == ["x"]


def test_the_disk_holds_content_and_name_before_a_write_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    flush, replace = os.fsync, Path.replace

    def noted_flush(descriptor: int) -> None:
        done.append(f"flush {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        flush(descriptor)

    def noted_replace(self: Path, target: Path) -> Path:
        done.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", noted_flush)
    monkeypatch.setattr(Path, "replace", noted_replace)
    write_atomically(tmp_path / "made" / "x.bin", lambda partial: partial.write_bytes(b"whole"))
    assert done == [f"flush {tmp_path.name}", "flush x.bin", "rename", "flush made"]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_file_systems_that_cannot_flush_a_folder_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    flush = os.fsync

    def flush_files(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink().is_dir():
            raise OSError(number, os.strerror(number))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", flush_files)
    write_atomically(tmp_path / "made" / "x.bin", lambda partial: partial.write_bytes(b"whole"))
    assert (tmp_path / "made" / "x.bin").read_bytes() == b"whole"
    number = errno.EIO
    with pytest.raises(InputError, match=r"cannot write .*x\.bin: Input/output error"):
        write_atomically(tmp_path / "x.bin", lambda partial: partial.write_bytes(b"whole"))


def test_only_the_disk_makes_a_folder_unwritable(tmp_path: Path) -> None:
    def refuse(partial: Path) -> None:
        raise PermissionError(errno.EACCES, "Forbidden")  # as S3 and firewalls do

    with pytest.raises(PermissionError, match="Forbidden"):
        write_atomically(tmp_path / "x.bin", refuse)

    def write(partial: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(partial))

    with pytest.raises(
        InputError, match=r"cannot write .*x\.bin: Permission denied; make the folder writable"
    ):
        write_atomically(tmp_path / "x.bin", write)


def test_a_tensor_that_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    content = _write(path)
    with pytest.raises(TypeError):
        write_tensors(path, "thing", TENSORS, {"not": object()})
    assert path.read_bytes() == content
    assert names_in(tmp_path) == ["x.safetensors"]


@pytest.mark.parametrize(
    "change",
    [
        {"floats": TENSORS["floats"] + 1e-7},
        {"floats": TENSORS["floats"].reshape(4, 3)},
        {"counts": TENSORS["counts"].double()},
        {"more": torch.ones(1)},
        {"empty": torch.zeros(3, 0)},
    ],
)
def test_fingerprint_sees_names_types_shapes_and_values(change: dict[str, Tensor]) -> None:
    base = fingerprint(TENSORS, CONFIG)
    assert fingerprint(dict(reversed(TENSORS.items())), dict(reversed(CONFIG.items()))) == base
    assert fingerprint(TENSORS | change, CONFIG) != base
    assert fingerprint(TENSORS, CONFIG | {"rate": 0.2}) != base
    renamed = {("floats2" if name == "floats" else name): value for name, value in TENSORS.items()}
    assert fingerprint(renamed, CONFIG) != base


def test_tensors_are_the_file_and_writing_to_them_leaves_it_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, "thing", TENSORS, CONFIG)
    before = path.read_bytes()
    _, tensors, _ = read_tensors(path, "thing")
    assert str(path) in Path("/proc/self/maps").read_text()
    for tensor in tensors.values():
        tensor.zero_()
    assert path.read_bytes() == before
    assert _same(*read_tensors(path, "thing"))


def test_a_large_file_is_checked_once_and_again_when_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cvl_pipeline.io.storage.CHECKED_ONCE", 1)
    path = tmp_path / "x.safetensors"
    write_tensors(path, "thing", TENSORS, CONFIG)
    checks: list[str] = []
    checksum = storage._checksum

    def counted(kind: str, *content: Any) -> str:
        checks.append(kind)
        return checksum(kind, *content)

    monkeypatch.setattr(storage, "_checksum", counted)
    read_tensors(path, "thing")
    read_tensors(path, "thing")
    assert len(checks) == 2, "a file so young may change without its time telling"
    monkeypatch.setattr(time, "time", lambda: path.stat().st_ctime + 10.0)
    for _ in range(3):
        assert _same(*read_tensors(path, "thing"))
    assert len(checks) == 3
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    before = path.stat()
    while path.stat().st_ctime_ns == before.st_ctime_ns:  # until the file system's clock ticks
        path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(InputError, match="does not match its checksum"):
        read_tensors(path, "thing")


def test_an_artifact_that_is_no_file_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    os.mkfifo(path)
    for read in (lambda: read_tensors(path, None), lambda: read_table(path), lambda: read_checkpoint(path)):
        with pytest.raises(
            InputError, match=r"x\.safetensors is a pipe, not a file; delete it and rerun its stage"
        ):
            read()


def test_a_file_that_may_not_be_read_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    path = tmp_path / "x.safetensors"
    path.touch()
    monkeypatch.setattr(storage, "safe_open", refuse)
    monkeypatch.setattr(Path, "read_bytes", refuse)
    for read in (lambda: read_tensors(path, None), lambda: read_table(path)):
        with pytest.raises(InputError, match=r"cannot read .*: Permission denied; make it readable for you"):
            read()


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(
        InputError, match=r"cannot write .*x: a folder has its name; delete or move the folder"
    ):
        write_atomically(tmp_path / "x", lambda partial: partial.write_text("1"))


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_folder_that_is_moved_during_a_write_is_one_line(tmp_path: Path, moment: str) -> None:
    folder = tmp_path / "data"

    def write(partial: Path) -> None:
        if moment == "after":
            partial.write_bytes(b"x")
        folder.rename(tmp_path / "moved")
        if moment == "before":
            partial.write_bytes(b"x")

    with pytest.raises(InputError, match=r"cannot write .*data/a\.json: its folder was moved or deleted"):
        write_atomically(folder / "a.json", write)
    assert not folder.exists()
