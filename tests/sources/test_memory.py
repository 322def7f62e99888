from __future__ import annotations

import gzip
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest

from cvl_pipeline.errors import InputError
from cvl_pipeline.sources import memory
from cvl_pipeline.sources.d4rl import load_d4rl
from cvl_pipeline.sources.files import load_file
from cvl_pipeline.sources.memory import GIB, array_bytes, check_memory
from cvl_pipeline.sources.minari import load_minari, save_minari
from cvl_pipeline.sources.tables import Table
from cvl_pipeline.testing.builders import make_rewards, make_transitions
from tests.sources.rows import SMALL, mapping, refusal

ROWS = 4_000_000
LIMIT = 0.01


def _hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        for name in ("x", "u", "end"):
            file.create_dataset(name, data=np.zeros(ROWS, dtype="u1"), compression="gzip", chunks=(ROWS,))


def _npz(path: Path) -> None:
    np.savez_compressed(path, **{name: np.zeros(ROWS, dtype="u1") for name in ("x", "u", "end")})  # type: ignore[arg-type]


def _parquet(path: Path) -> None:
    pd.DataFrame(np.zeros((ROWS, 3), dtype="u1"), columns=["x", "u", "end"]).to_parquet(path)


def _csv_gz(path: Path) -> None:
    path.write_bytes(gzip.compress(b"x,u,end\n" + b"0,0,0\n" * (ROWS // 8), 1))


WRITERS: dict[str, Callable[[Path], None]] = {
    "log.h5": _hdf5, "log.npz": _npz, "log.parquet": _parquet, "log.csv.gz": _csv_gz
}  # fmt: skip


@pytest.mark.parametrize("name", WRITERS)
def test_a_small_file_of_large_arrays_is_refused_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def read(*_: object) -> None:
        raise AssertionError("a column was read")

    path = tmp_path / name
    WRITERS[name](path)
    assert path.stat().st_size < 1 << 20
    monkeypatch.setattr(Table, "_cells", read)
    text = refusal(path, mapping(**SMALL), memory_limit=LIMIT)
    size = "more than 0.01" if name.endswith("gz") else f"{3 * ROWS * 4 / GIB:.3g}"
    assert f"its arrays take {size} GiB of memory, and dataset.memory_limit is 0.01 GiB" in text


def test_a_log_within_the_limit_is_read(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("x,u,end\n" + "0,0,1\n" * 1000)
    assert len(load_file(path, mapping(**SMALL), memory_limit=1e-4)[0]) == 1000
    assert "more than 2e-05 GiB" in refusal(path, mapping(**SMALL), memory_limit=2e-5)


def test_groups_count_together(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "log.h5", "w") as file:
        for group in range(4):
            file[f"g{group}/x"], file[f"g{group}/u"] = np.zeros((1000, 2)), np.zeros((1000, 1))
    columns = mapping(**SMALL | {"groups": "g*", "terminated": None})
    size = 4 * 1000 * 3 * 8 / GIB
    assert len(load_file(tmp_path / "log.h5", columns, memory_limit=size * 1.01)[0])
    assert "dataset.memory_limit is" in refusal(tmp_path / "log.h5", columns, memory_limit=size * 0.99)


def test_d4rl_and_minari_have_the_same_limit(tmp_path: Path) -> None:
    data = make_transitions([50, 50], [False, True])
    save_minari(data, make_rewards(data), "mine/small-v0", tmp_path)
    with h5py.File(tmp_path / "log.h5", "w") as file:
        file["observations"], file["actions"] = np.zeros((100, 3)), np.zeros((100, 1))
        file["rewards"], file["terminals"] = np.zeros(100), np.arange(100) % 10 == 9
    reads: list[Callable[..., Any]] = [
        lambda limit: load_minari("mine/small-v0", tmp_path, memory_limit=limit),
        lambda limit: load_d4rl(tmp_path / "log.h5", memory_limit=limit),
    ]
    for read in reads:
        assert read(1e-4)
        with pytest.raises(
            InputError, match=r"GiB of memory, and dataset\.memory_limit is 1e-07 GiB; name fewer"
        ):
            read(1e-7)


def test_the_default_is_a_quarter_of_the_memory_and_large_sizes_are_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(memory, "_memory", lambda: 16.0 * GIB)
    with caplog.at_level(logging.INFO):
        check_memory("log.h5", 4 * GIB, None)
    assert "log.h5: its arrays take 4.0 GiB of memory" in caplog.text
    with pytest.raises(InputError, match=r"log\.h5: its arrays take 4 GiB .* dataset\.memory_limit is 4 GiB"):
        check_memory("log.h5", 4 * GIB + 1, None)


def test_numbers_take_single_precision_and_images_a_byte() -> None:
    assert array_bytes((10, 3), np.dtype("u1")) == 120
    assert array_bytes((10, 3), np.dtype("f8")) == 240
    assert array_bytes((10, 4, 4, 3), np.dtype("u1")) == 480
    assert memory._memory() > GIB / 8
