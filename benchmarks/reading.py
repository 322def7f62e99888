"""Peak memory and rows per second of every source that reads a log.

The benchmark writes logs of random episodes, 17 observation and 6 action dimensions in single precision, and reads each
of them in a process of its own, as ``kedro run`` does: read, check, save the artifacts.

    python -m benchmarks.reading
    python -m benchmarks.reading --rows 1e5 1e6 --sources files:parquet minari:arrow

Memory is anonymous memory (RssAnon of Linux), the part that the system cannot take back: pages of mapped files and
caches are not in it. ``added`` is its peak above what the process takes once all modules are imported.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmarks.common import PROJECT, RESULTS, markdown, record_path, write_record

OBSERVATION, ACTION = 17, 6
LENGTH = 1000
"""Steps per episode."""
MIB = 1 << 20
Columns = dict[str, NDArray[Any]]


def episodes(rows: int) -> Iterator[Columns]:
    """Columns of random episodes of LENGTH steps, one episode after the other; one of them is repeated."""
    generator = np.random.default_rng(0)
    states = generator.uniform(-1, 1, (LENGTH + 1, OBSERVATION)).astype(np.float32)
    last = np.arange(LENGTH) == LENGTH - 1
    columns: Columns = {
        "observations": states[:-1],
        "actions": generator.uniform(-1, 1, (LENGTH, ACTION)).astype(np.float32),
        "rewards": generator.uniform(-1, 1, LENGTH).astype(np.float32),
        "terminals": np.zeros(LENGTH, dtype=bool),
        "timeouts": last,
        "last": states[-1:],
    }
    for _ in range(rows // LENGTH):
        yield columns


def write_hdf5(path: Path, rows: int) -> None:
    """Write one table in D4RL's format."""
    import h5py

    with h5py.File(path, "w") as file:
        for name, sample in next(episodes(rows)).items():
            if name != "last":
                file.create_dataset(name, (rows, *sample.shape[1:]), sample.dtype)
        for index, columns in enumerate(episodes(rows)):
            for name in file:
                file[name][index * LENGTH : (index + 1) * LENGTH] = columns[name]


def write_groups(path: Path, rows: int) -> None:
    """Write one group per episode, as robomimic does."""
    import h5py

    with h5py.File(path, "w") as file:
        for index, columns in enumerate(episodes(rows)):
            group = file.create_group(f"data/demo_{index}")
            group["obs"] = np.concatenate([columns["observations"], columns["last"]])
            group["actions"], group["rewards"] = columns["actions"], columns["rewards"]


def write_npz(path: Path, rows: int) -> None:
    """Write one array per column."""
    arrays = {
        name: np.tile(values, (rows // LENGTH, *([1] * (values.ndim - 1))))
        for name, values in next(episodes(rows)).items()
        if name != "last"
    }
    np.savez(path, **arrays)  # type: ignore[arg-type]


def _table(columns: Columns) -> Any:
    import pyarrow as pa

    arrays = {
        f"{name}_{dimension}" if values.ndim == 2 else name: values[:, dimension]
        if values.ndim == 2
        else values
        for name, values in columns.items()
        if name != "last"
        for dimension in range(values.shape[1] if values.ndim == 2 else 1)
    }
    return pa.table(arrays)


def write_parquet(path: Path, rows: int) -> None:
    """Write one column per dimension."""
    import pyarrow.parquet

    table = _table(next(episodes(rows)))
    with pyarrow.parquet.ParquetWriter(path, table.schema, use_dictionary=False) as writer:
        for _ in range(rows // LENGTH // 100):
            writer.write_table(_joined(table))


def write_csv(path: Path, rows: int) -> None:
    """Write one column per dimension."""
    import pyarrow.csv

    table = _table(next(episodes(rows)))
    with pyarrow.csv.CSVWriter(path, table.schema) as writer:
        for _ in range(rows // LENGTH // 100):
            writer.write_table(_joined(table))


def _joined(table: Any) -> Any:
    import pyarrow as pa

    return pa.concat_tables([table] * 100).combine_chunks()


def write_minari(path: Path, rows: int, data_format: str = "hdf5") -> None:
    """Write a Minari dataset."""
    from gymnasium import spaces
    from minari.data_collector import EpisodeBuffer
    from minari.dataset.minari_storage import MinariStorage

    data = path / "bench/log-v0/data"
    data.mkdir(parents=True)
    storage = MinariStorage.new(
        data,
        observation_space=spaces.Box(-np.inf, np.inf, (OBSERVATION,), np.float32),
        action_space=spaces.Box(-1, 1, (ACTION,), np.float32),
        data_format=data_format,
    )
    storage.update_metadata({"dataset_id": "bench/log-v0", "minari_version": "0.5.4"})

    def buffers() -> Iterator[Any]:
        for columns in episodes(rows):
            arrays: dict[str, Any] = {
                "observations": np.concatenate([columns["observations"], columns["last"]]),
                "actions": columns["actions"], "rewards": columns["rewards"],
                "terminations": columns["terminals"], "truncations": columns["timeouts"],
            }  # fmt: skip
            yield EpisodeBuffer(**arrays)

    storage.update_episodes(buffers())


FLAT = {"terminated": "terminals", "truncated": "timeouts"}
TABLE = FLAT | {"observations": "observations_*", "actions": "actions_*"}
DEMOS = {"groups": "data/demo_*", "observations": "obs", "terminated": None, "truncated": None}
SOURCES: dict[str, tuple[str, Callable[[Path, int], None], dict[str, Any]]] = {
    "d4rl": ("log.hdf5", write_hdf5, {}),
    "files:hdf5": ("log.hdf5", write_hdf5, {"columns": FLAT}),
    "files:groups": ("demos.hdf5", write_groups, {"columns": DEMOS}),
    "files:npz": ("log.npz", write_npz, {"columns": FLAT}),
    "files:parquet": ("log.parquet", write_parquet, {"columns": TABLE}),
    "files:csv": ("log.csv", write_csv, {"columns": TABLE}),
    "minari:hdf5": ("minari", write_minari, {"task": "bench/log-v0"}),
    "minari:arrow": (
        "minari_arrow",
        lambda path, rows: write_minari(path, rows, "arrow"),
        {"task": "bench/log-v0"},
    ),
}
"""Of each source: its file, the function that writes it, and the parameters that read it."""


class Peak(threading.Thread):
    """Samples the anonymous memory of this process."""

    def __init__(self) -> None:
        """Start to sample."""
        super().__init__(daemon=True)
        self.bytes = self.start_bytes = anonymous()
        self._done = threading.Event()
        self.start()

    def run(self) -> None:
        """Sample every five milliseconds."""
        while not self._done.wait(0.005):
            self.bytes = max(self.bytes, anonymous())

    def end(self) -> float:
        """Stop, and return the peak above the start, in MiB."""
        self._done.set()
        self.join()
        return (max(self.bytes, anonymous()) - self.start_bytes) / MIB


def anonymous() -> int:
    """Bytes of anonymous memory of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise SystemExit("RssAnon is only known on Linux")


def measure(source: str, path: Path) -> dict[str, Any]:
    """Read and save a log in this process; return the peak of memory and the seconds of both."""
    import h5py  # noqa: F401
    import minari.dataset.minari_dataset  # noqa: F401

    from cvl_pipeline.api import ingest
    from cvl_pipeline.io.artifacts import save_artifact
    from cvl_pipeline.schema import validated
    from cvl_pipeline.sources.base import SOURCES as REGISTRY

    name = source.partition(":")[0]
    given = {"source": name, "path": str(path), **SOURCES[source][2]}
    parameters: Any = validated(REGISTRY.parameters(name), given)
    peak, start, cpu = Peak(), time.perf_counter(), time.process_time()
    transitions, rewards = ingest(parameters, 0)
    read, read_cpu = time.perf_counter() - start, time.process_time() - cpu
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        save_artifact(Path(folder, "transitions.safetensors"), "transitions", transitions)
        save_artifact(Path(folder, "rewards.safetensors"), "rewards", rewards)
        saved = time.perf_counter() - start
    return {
        "transitions": len(transitions), "seconds": read, "cpu_seconds": read_cpu, "save_seconds": saved,
        "added_mib": peak.end(),
    }  # fmt: skip


def run(source: str, rows: int, folder: Path) -> dict[str, Any]:
    """Write a log unless it is there, and measure it in a process of its own."""
    name, write, _ = SOURCES[source]
    path = folder / str(rows) / name
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        write(path, rows)
    command = [sys.executable, "-m", "benchmarks.reading", "--measure", source, str(path)]
    done = subprocess.run(command, cwd=PROJECT, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    size = sum(part.stat().st_size for part in (path, *path.rglob("*")) if part.is_file())
    row = {
        "source": source, "rows": rows, "log_mib": size / MIB, "rows_per_second": rows / found["seconds"], **found
    }  # fmt: skip
    print(json.dumps(row), flush=True)  # noqa: T201
    return row


def main() -> None:
    """Measure the sources, write the record and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=float, nargs="+", default=[1e5, 1e6, 1e7], help="multiples of 10^5")
    parser.add_argument("--sources", nargs="+", default=list(SOURCES), choices=list(SOURCES))
    parser.add_argument("--folder", type=Path, help="folder of the logs, kept; default: a temporary one")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure[0], Path(arguments.measure[1]))))  # noqa: T201
        return
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="reading-"))
    folder.mkdir(exist_ok=True, parents=True)
    try:
        rows = [run(source, int(count), folder) for source in arguments.sources for count in arguments.rows]
    finally:
        if arguments.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    path = record_path(RESULTS / "reading.json", parser, arguments)
    write_record(path, observation=OBSERVATION, action=ACTION, rows=rows)
    print(  # noqa: T201
        markdown(
            pd.DataFrame(
                [
                    {
                        "source": row["source"],
                        "rows": f"{row['rows']:.0e}",
                        "log, MiB": f"{row['log_mib']:.0f}",
                        "rows/s": f"{row['rows_per_second']:,.0f}",
                        "added memory, MiB": f"{row['added_mib']:.0f}",
                        "saving, s": f"{row['save_seconds']:.1f}",
                    }
                    for row in rows
                ]
            )
        )
    )


if __name__ == "__main__":
    main()
