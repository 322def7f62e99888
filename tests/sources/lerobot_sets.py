"""The fixture of LeRobot, and small changes to copies of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from cvl_pipeline.episodes.container import Rewards, Transitions
from cvl_pipeline.sources.base import SOURCES

FIXTURE = Path(__file__).parents[1] / "fixtures/lerobot"
STATE, TOP, WRIST = "observation.state", "observation.images.top", "observation.images.wrist"
DATA = "data/chunk-000/file-000.parquet"


def source(path: Path, **settings: Any) -> Any:
    """The source of a folder."""
    return SOURCES.create(SOURCES.validate({"source": "lerobot", "path": str(path), **settings}))


def read(path: Path, **settings: Any) -> tuple[Transitions, Rewards]:
    """The episodes of a folder."""
    result: tuple[Transitions, Rewards] = source(path, **settings).load(0, 1)
    return result


def copied(folder: Path, version: str = "v30") -> Path:
    """A copy of the fixture."""
    shutil.copytree(FIXTURE / version, folder / "copy")
    return folder / "copy"


def with_info(root: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the description of a dataset."""
    path = root / "meta/info.json"
    info = json.loads(path.read_text())
    change(info)
    path.write_text(json.dumps(info))


def with_table(root: Path, change: Callable[[pa.Table], pa.Table], name: str = DATA) -> None:
    """Change a Parquet file of a dataset."""
    table = pyarrow.parquet.read_table(root / name)
    pyarrow.parquet.write_table(change(table), root / name)


def with_column(root: Path, column: str, values: Any, name: str = DATA) -> None:
    """Replace a column of a Parquet file, by values or by a function of them."""

    def replaced(table: pa.Table) -> pa.Table:
        new = values(np.array(table.column(column).to_pylist())) if callable(values) else values
        new = new if isinstance(new, pa.Array) else pa.array(list(new))
        return table.set_column(table.column_names.index(column), column, new)

    with_table(root, replaced, name)


def with_feature(root: Path, name: str, values: np.ndarray, **feature: Any) -> None:
    """Add a feature of one number or flag per frame."""
    with_info(
        root,
        lambda info: info["features"].update(
            {name: {"dtype": str(values.dtype), "shape": [1], "names": None, **feature}}
        ),
    )
    with_table(root, lambda table: table.append_column(name, pa.array(values)))
