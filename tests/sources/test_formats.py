from __future__ import annotations

import csv as csv_module
import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvl_pipeline.errors import InputError
from cvl_pipeline.sources.files import load_file
from cvl_pipeline.sources.formats import open_contents
from tests.sources.rows import ARRAYS, SMALL, TABLES, Array, Log, mapping, mapping_of, refusal, write


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


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("size", [24, 40, 1 << 22])
def test_quoted_cells_may_have_line_breaks(
    csv: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, size: int, newline: str
) -> None:
    monkeypatch.setattr("cvl_pipeline.sources.formats.CSV_BYTES", size)
    notes = [
        '"one\ntwo"',
        '"a ""quote"",\n1,2,3,0\n"',
        '""',
        '5" pipe',
        '"x,"',
        '"\n"',
        "plain",
        '"""\n"""',
    ] * 4
    rows = [f"{row},{note},0.5,{int(row == 31)}" for row, note in enumerate(notes)]
    path = csv("")
    path.write_bytes(newline.join(["x,note,u,end", *rows]).encode())
    data, _ = load_file(path, mapping(**SMALL))
    assert data.observations.flatten().tolist() == [*range(32), 31]


def test_a_quote_that_is_not_closed_is_one_line(
    csv: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cvl_pipeline.sources.formats.CSV_BYTES", 1 << 10)
    monkeypatch.setattr("cvl_pipeline.sources.formats.QUOTED_BYTES", 1 << 12)
    path = csv("x,note,u,end\n" + "1,a,0.5,0\n" * 300 + '2,"b,0.5,0\n' + "3,c,0.5,0\n" * 3000)
    assert "a quote is not closed within" in refusal(path, mapping(**SMALL))


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


IDS = SMALL | {"terminated": None, "episode": "id"}


def _ids(path: Path, **changes: Any) -> list[int]:
    """Lengths of the episodes of a log whose ends are known from its ids alone."""
    names = IDS | {"next_observations": "x"} | changes
    return load_file(path, mapping(**names))[0].lengths.tolist()


@pytest.mark.parametrize(
    "ids",
    [
        ["7", "07", "007", "7.0", "+7", "7e0"],
        ["1e3", "1000", "1000.0"],
        ["12345678901234567890", "12345678901234567891"],
        ["9007199254740992", "9007199254740993"],
        ["0.1", "0.10", "0.1000000000000000055"],
        ["true", "True", "TRUE", "1"],
        ["0x10", "16"],
        ["2024-01-01", "2024-01-01 00:00:00"],
        ['"NA"', '"null"', '"nan"', '"a, b"', '"a"'],
        ["Infinity", "inf"],
    ],
)
def test_ids_in_a_csv_are_text(csv: Callable[[str], Path], ids: list[str]) -> None:
    assert _ids(csv("x,u,id\n" + "".join(f"0,0,{one}\n" * 2 for one in ids))) == [2] * len(ids)


@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1), min_size=1, unique_by=str.strip
    )
)
def test_every_text_is_an_id_of_its_own(ids: list[str]) -> None:
    ids = [one for one in ids if one.strip()] or ["x"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "log.csv")
        with path.open("w", newline="", encoding="utf-8") as file:
            rows = [[0, 0, one] for one in ids for _ in range(2)]
            csv_module.writer(file, quoting=csv_module.QUOTE_ALL).writerows([["x", "u", "id"], *rows])
        assert _ids(path) == [2] * len(ids)


def test_blanks_around_the_name_of_a_column_of_ids_do_not_matter(csv: Callable[[str], Path]) -> None:
    assert _ids(csv("x, u, id\n0, 0, 07\n0, 0, 07\n0, 0, 7\n0, 0, 7\n")) == [2, 2]


def test_a_column_may_be_an_id_and_a_number(csv: Callable[[str], Path]) -> None:
    path = csv("x,u,id\n0,0,07\n0,0,07\n0,0,8.5\n0,0,8.5\n")
    assert load_file(path, mapping(**IDS | {"observations": ["id", "x"]}))[0].observations[:, 0].tolist() == [
        7,
        7,
        8.5,
        8.5,
    ]


@pytest.mark.parametrize("cell", ["", "NA", "null", "nan", '""', '" "'])
def test_an_id_that_says_nothing_is_refused(csv: Callable[[str], Path], cell: str) -> None:
    text = refusal(csv(f"x,u,id\n0,0,a\n0,0,{cell}\n0,0,b\n"), mapping(**IDS))
    assert "'id' (dataset.columns.episode): " in text
    assert "at row 1" in text


def test_ids_that_differ_only_in_blanks_are_refused(csv: Callable[[str], Path]) -> None:
    text = refusal(csv("x,u,id\n0,0,a\n0,0, a\n0,0,b\n"), mapping(**IDS))
    assert "' a' at row 1 (the first is 0) differs from 'a' only in blanks; write both alike" in text


def test_ids_may_be_any_bytes(tmp_path: Path) -> None:
    ids = [b"\xff", b"\xff", b"\xfe", b"\xfe", b"\xef\xbf\xbd", b"\xef\xbf\xbd"]
    (tmp_path / "log.csv").write_bytes(b"x,u,id\n" + b"".join(b"0,0,%b\n" % one for one in ids))
    with h5py.File(tmp_path / "log.h5", "w") as file:
        file["x"] = file["u"] = np.zeros(6)
        file["id"], file["long"] = np.array(ids), np.array(ids, dtype=h5py.string_dtype())
    np.savez(tmp_path / "log.npz", x=np.zeros(6), u=np.zeros(6), id=np.array(ids))
    pd.DataFrame({"x": np.zeros(6), "u": np.zeros(6), "id": ids}).to_parquet(tmp_path / "log.parquet")
    for name in ("log.csv", "log.h5", "log.npz", "log.parquet"):
        assert _ids(tmp_path / name) == [2, 2, 2], name
    assert _ids(tmp_path / "log.h5", episode="long") == [2, 2, 2]


@pytest.mark.parametrize("name", ["log.h5", "log.npz", "log.parquet"])
def test_ids_that_their_type_cannot_tell_apart_are_refused(tmp_path: Path, name: str) -> None:
    def written(ids: Array) -> Path:
        log = {"x": np.zeros(4, np.float32), "u": np.zeros(4, np.float32), "id": ids}
        if name == "log.parquet":
            pd.DataFrame(log).to_parquet(tmp_path / name)
            return tmp_path / name
        return write(tmp_path / name, log)

    exact = np.array([2**53, 2**53, 2**53 + 1, 2**53 + 1])
    assert _ids(written(exact)) == _ids(written(exact.astype(np.uint64) * 1001)) == [2, 2]
    columns = mapping(**IDS)
    assert "9007199254740992.0 at row 0 (the first is 0) is too large for float64" in refusal(
        written(exact.astype(float)), columns
    )
    small = np.array([2**24 - 2, 2**24 - 2, 2**24 - 1, 2**24 - 1], dtype=np.float32)
    assert _ids(written(small)) == [2, 2]
    assert "at row 0 (the first is 0) is too large for float32" in refusal(written(small + 4), columns)


def test_what_is_not_a_file_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    assert "dataset.path: " in (text := refusal(tmp_path / "pipe.csv"))
    assert "is a pipe; name one file" in text
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s.h5"))
        assert "is a socket; name one file" in refusal(tmp_path / "s.h5")
    (tmp_path / "zero.npz").symlink_to("/dev/zero")
    assert "is a device; name one file" in refusal(tmp_path / "zero.npz")
    (tmp_path / "loop.csv").symlink_to("loop.csv")
    assert "its links lead back to themselves" in refusal(tmp_path / "loop.csv")
    assert "cannot read" in refusal(tmp_path / ("x" * 300 + "loop.csv") / "loop.csv")


@pytest.mark.parametrize("name", ARRAYS + TABLES)
def test_a_file_without_permission_is_not_called_damaged(
    tmp_path: Path, log: Log, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "a long story of a library")

    write(tmp_path / name, log)
    monkeypatch.setattr("h5py.File", refuse)
    monkeypatch.setattr("pathlib.Path.open", refuse)
    monkeypatch.setattr("pyarrow.input_stream", refuse)
    monkeypatch.setattr("pyarrow.parquet.ParquetFile", refuse)
    text = refusal(tmp_path / name)
    assert text.endswith(f"{name}: cannot be read (Permission denied); make it readable for you")


@pytest.mark.parametrize("name", ["x", "id"])
def test_integers_of_a_csv_beyond_64_bits_do_not_merge(csv: Callable[[str], Path], name: str) -> None:
    large = 2**64
    cells = {"x": "0", "u": "0", "id": "1"}
    rows = [cells | {name: str(large + step)} for step in (0, 1)]
    path = csv("x,u,id\n" + "".join(",".join(row.values()) + "\n" for row in rows))
    with open_contents(path, ["id"]) as contents:
        with pytest.raises(
            InputError, match=f"column '{name}': {large} and {large + 1} become the same number"
        ):
            list(contents.blocks(name))
        assert np.concatenate([*contents.blocks("u")]).tolist() == [0, 0]
    others = csv(f"x,u,id\n{large},0,1e300\n{2 * large},0,2e300\n")
    with open_contents(others, ["id"]) as contents:
        assert np.concatenate([*contents.blocks("x")]).tolist() == [float(large), float(2 * large)]
        assert np.concatenate([*contents.blocks("id")]).tolist() == [1e300, 2e300]
