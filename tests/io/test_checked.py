from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from cvl_pipeline.errors import InputError
from cvl_pipeline.io.checked import read_checkpoint, read_table, write_checkpoint, write_table
from cvl_pipeline.testing.builders import names_in

TABLE = pd.DataFrame({"episode": [0, 1, 2], "part": ["a", "b", "c"], "return": [0.5, np.nan, 1e9]})
STATE = {"step": 7, "weights": {"layer": torch.arange(100.0)}, "history": [{"loss": 0.5}], "moment": None}


def test_a_table_is_read_as_it_was_written_and_its_bytes_follow_from_its_content(tmp_path: Path) -> None:
    for name in ("one", "other"):
        write_table(tmp_path / name / "x.parquet", TABLE)
        pd.testing.assert_frame_equal(read_table(tmp_path / name / "x.parquet"), TABLE)
    assert (tmp_path / "one/x.parquet").read_bytes() == (tmp_path / "other/x.parquet").read_bytes()
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "one/x.parquet"), TABLE)  # to everyone


def test_a_table_may_contain_the_marker_of_its_checksum(tmp_path: Path) -> None:
    words = "cvl-pipeline version 1 sha256 " + "0" * 64
    table = pd.DataFrame({words: [words, "sha256"]})
    write_table(tmp_path / "x", table)
    pd.testing.assert_frame_equal(read_table(tmp_path / "x"), table)


def test_a_table_of_another_name_is_not_taken_for_it(tmp_path: Path) -> None:
    write_table(tmp_path / "returns.parquet", TABLE)
    (tmp_path / "returns.parquet").rename(tmp_path / "values.parquet")
    with pytest.raises(InputError, match=r"values\.parquet contains returns, not values"):
        read_table(tmp_path / "values.parquet")


def test_a_checkpoint_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "x" / "last.ckpt", STATE)
    state = read_checkpoint(tmp_path / "x" / "last.ckpt")
    assert torch.equal(state.pop("weights")["layer"], torch.arange(100.0))
    assert state == {name: value for name, value in STATE.items() if name != "weights"}


@pytest.mark.parametrize(("kind", "stride"), [("table", 3), ("checkpoint", 7)])
def test_a_table_or_checkpoint_changed_or_cut_anywhere_is_refused(
    tmp_path: Path, kind: str, stride: int
) -> None:
    write, read, content = {
        "table": (write_table, read_table, TABLE), "checkpoint": (write_checkpoint, read_checkpoint, STATE)
    }[kind]  # fmt: skip
    path = tmp_path / "x"
    write(path, content)  # type: ignore[operator]
    whole = path.read_bytes()
    for offset in range(0, len(whole), stride):
        changed = bytearray(whole)
        changed[offset] ^= 0x01
        others = (whole[:offset], whole[:offset] + whole[offset + 1 :], b"\0" * offset)
        for damaged in (bytes(changed), *(others if offset % 21 == 0 else ())):
            path.write_bytes(damaged)
            with pytest.raises(
                InputError, match=r"x (is damaged|was not written by cvl-pipeline|has format version)"
            ):
                read(path)  # type: ignore[operator]


@pytest.mark.parametrize("read", [read_table, read_checkpoint])
def test_a_missing_table_or_checkpoint_is_reported(tmp_path: Path, read: Callable[[Path], Any]) -> None:
    with pytest.raises(InputError, match=r"x does not exist"):
        read(tmp_path / "x")
    (tmp_path / "x").mkdir()
    with pytest.raises(InputError, match=r"x is a folder, not a file; delete it"):
        read(tmp_path / "x")


def test_tables_and_checkpoints_of_another_program_or_version_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "x"
    TABLE.to_parquet(path)
    with pytest.raises(InputError, match=r"x was not written by cvl-pipeline"):
        read_table(path)
    torch.save(STATE, path)
    with pytest.raises(InputError, match=r"x was not written by cvl-pipeline"):
        read_checkpoint(path)
    write_table(path, TABLE)
    path.write_bytes(path.read_bytes().replace(b"version 1 ", b"version 2 "))
    with pytest.raises(InputError, match=r"x has format version 2, this program reads 1"):
        read_table(path)
    write_checkpoint(path, STATE)
    path.write_bytes(path.read_bytes().replace(b"checkpoint 1 ", b"checkpoint 2 ", 1))
    with pytest.raises(InputError, match=r"x has format version 2, this program reads 1"):
        read_checkpoint(path)


class _Runs:
    """Unpickled, it would make a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self._path,))


def test_a_checkpoint_that_contains_code_is_refused_and_not_run(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "last.ckpt", {"step": _Runs(tmp_path / "ran")})
    with pytest.raises(InputError, match=r"last\.ckpt contains more than tensors and plain values"):
        read_checkpoint(tmp_path / "last.ckpt")
    assert names_in(tmp_path) == ["last.ckpt"]
