from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvl_pipeline.errors import InputError
from cvl_pipeline.io import pieces
from cvl_pipeline.io.pieces import Column, block_rows, by_block, first_where, scratch, slices


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "IN_MEMORY", 64)
    monkeypatch.setattr(pieces, "BLOCK_BYTES", 48)


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=6),
    dtypes=st.lists(st.sampled_from(["?", "u1", "i4", "i8", "f4", "f8"]), min_size=6, max_size=6),
    limit=st.sampled_from([0, 40, 10**6]),
)
def test_a_column_is_what_numpy_concatenates(lengths: list[int], dtypes: list[str], limit: int) -> None:
    blocks = [np.arange(3 * n).reshape(n, 3).astype(t) for n, t in zip(lengths, dtypes, strict=False)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "IN_MEMORY", limit)
        column = Column()
        for block in blocks:
            column.append(block)
        found = column.array()
    expected = np.concatenate(blocks)
    assert found.dtype == expected.dtype
    assert len(column) == len(expected)
    np.testing.assert_array_equal(found, expected)


def test_a_large_column_is_a_file_without_a_name_that_closes_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: None
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    gc.collect()  # what earlier tests left open
    before = _open_files()
    column = Column()
    for first in range(0, 100, 10):
        column.append(np.arange(first, first + 10))
    array = column.array()
    assert _open_files() > before
    assert not list(tmp_path.iterdir())
    del column
    gc.collect()
    assert array.tolist() == list(range(100))
    array[3] = -1  # a copy of the page
    assert array[:5].tolist() == [0, 1, 2, -1, 4]
    del array
    gc.collect()
    assert _open_files() == before


def test_rows_are_copied_and_of_one_shape() -> None:
    rows = np.ones((2, 3))
    column = Column()
    column.append(rows)
    rows[:] = 0
    assert column.array().sum() == 6
    with pytest.raises(ValueError, match=r"rows of shape \(4,\) after rows of shape \(3,\)"):
        column.append(np.ones((1, 4)))


def test_a_full_disk_is_one_line(monkeypatch: pytest.MonkeyPatch, small: None) -> None:
    class Full:
        def write(self, data: Any) -> None:
            raise OSError(28, "No space left on device")

        def close(self) -> None:
            pass

    monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: Full())
    with pytest.raises(InputError, match=r"temporary files to .* \(set TMPDIR .*\): the disk is full"):
        Column().append(np.ones(100))


def test_temporary_files_go_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TMPDIR", raising=False)
    assert scratch() == Path("/var/tmp")
    monkeypatch.setattr("os.access", lambda *_: False)
    assert scratch() != Path("/var/tmp")


def test_blocks_are_small_and_cover_all_rows(small: None) -> None:
    values = np.arange(50.0).reshape(25, 2)
    assert block_rows(values.shape, 8) == 3
    assert block_rows((10, 1000), 8) == 1
    assert [rows for part in slices(values) for rows in range(part.start, part.stop)] == list(range(25))
    np.testing.assert_array_equal(by_block(lambda part: part * 2, values), values * 2)
    assert first_where(lambda part: part == 31, values) == (15, 1)
    assert first_where(lambda part: part < 0, values) is None
