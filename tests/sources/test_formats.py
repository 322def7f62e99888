from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from cvl_pipeline.errors import InputError
from cvl_pipeline.sources.files import load_file
from tests.sources.rows import ARRAYS, SMALL, TABLES, Log, mapping, mapping_of, refusal, write


def test_names_in_a_csv_header_may_have_blanks_around_and_within(csv: Callable[[str], Path]) -> None:
    data, _ = load_file(
        csv("joint 1, x, u, end\n1, 2.5, 0, 0\n3, 4, 0, 1\n"),
        mapping(**SMALL | {"observations": ["joint 1", "x"]}),
    )
    assert data.observations[0].tolist() == [1, 2.5]


def test_a_csv_column_may_turn_from_integers_to_fractions_late(csv: Callable[[str], Path]) -> None:
    rows = 300_000
    path = csv("x,u,end\n" + "1,0,0\n" * rows + "0.5,0,1\n")
    data, _ = load_file(path, mapping(**SMALL))
    assert (len(data), float(data.observations[rows])) == (rows + 1, 0.5)


def test_a_missing_file_a_folder_and_an_unknown_suffix_are_refused(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "log.npz")
    (tmp_path / "log.h5").mkdir()
    assert "is a folder" in refusal(tmp_path / "log.h5")
    (tmp_path / "log.pkl").write_bytes(b"x")
    assert ".hdf5, .h5, .npz, .parquet, .csv, .csv.gz" in refusal(tmp_path / "log.pkl")


@pytest.mark.parametrize("name", ARRAYS + TABLES)
def test_empty_files_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    assert "is empty" in refusal(tmp_path / name)


@pytest.mark.parametrize("name", ARRAYS + TABLES)
def test_files_of_another_kind_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(bytes(range(256)) * 8)
    text = refusal(tmp_path / name)
    assert "cannot be read" in text
    assert "unpickle" not in text


@pytest.mark.parametrize("name", ["log.hdf5", "log.npz", "log.parquet", "log.csv.gz"])
def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path, log: Log, name: str) -> None:
    whole = write(tmp_path / name, log).read_bytes()
    for cut in {1, 10, *range(50, len(whole), len(whole) // 40), len(whole) - 1}:
        (tmp_path / name).write_bytes(whole[:cut])
        assert "cannot be read" in refusal(tmp_path / name)


@pytest.mark.parametrize("name", ["log.npz", "log.parquet", "log.csv.gz"])
def test_a_file_damaged_anywhere_never_gives_another_error(tmp_path: Path, log: Log, name: str) -> None:
    whole = write(tmp_path / name, log).read_bytes()
    refused = 0
    for start in range(0, len(whole) - 8, len(whole) // 60):
        (tmp_path / name).write_bytes(
            whole[:start] + b"\xff\x00\xa5\x5a\x80\x7f\x01\xfe" + whole[start + 8 :]
        )
        try:
            load_file(tmp_path / name, mapping_of(name))
        except InputError:
            refused += 1
    assert refused > 20


def test_damaged_hdf5_data_is_refused_with_the_name_of_the_array(tmp_path: Path, log: Log) -> None:
    path = write(tmp_path / "log.h5", {name: log[name] for name in log if name != "observation"})
    with h5py.File(path, "a") as file:
        file.create_dataset("observation", data=log["observation"], compression="gzip", fletcher32=True)
        start = file["observation"].id.get_chunk_info(0).byte_offset
    content = bytearray(path.read_bytes())
    content[start + 20] ^= 255
    path.write_bytes(content)
    text = refusal(path)
    assert "'observation': cannot be read" in text


class _Trap:
    """An object that creates a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


def test_objects_in_an_npz_are_refused_and_never_unpickled(tmp_path: Path, npz: Callable[..., Path]) -> None:
    objects = np.array([_Trap(tmp_path / "trace")] * 4, dtype=object)
    text = refusal(npz(action=objects))
    assert "'action': holds Python objects, which are never unpickled; save an array of numbers" in text
    assert not (tmp_path / "trace").exists()


def test_an_hdf5_name_that_is_no_text_is_ignored(tmp_path: Path, log: Log) -> None:
    path = write(tmp_path / "log.h5", log)
    with h5py.File(path, "a") as file:
        file[b"\xff\xfe"] = np.zeros(3)
    load_file(path, mapping())
    assert "did you mean 'reward'?" in refusal(path, mapping(rewards="rewards"))
