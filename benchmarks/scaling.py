"""Weak scaling: one process with a batch, two with twice the batch, one thread each (docs/speed.md).

``benchmarks.speed`` calls it. The processes start as in the pipeline.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from benchmarks.common import read_data
from cvl_pipeline.api import EpisodeData, train_critic

INTERVALS, STEPS = 4, 150
"""Number of validation intervals and gradient steps per interval; the fastest interval counts."""


def weak_scaling(folder: Path, batch: int) -> list[dict[str, Any]]:
    """Measure gradient steps per second of one and two processes with ``batch`` segments each.

    Args:
        folder: folder of the log's artifacts.
        batch: segments per process.

    Returns:
        One row per number of processes: ``processes``, ``batch`` (total over processes), ``steps_per_second``
        and ``efficiency``, the segments per second and process relative to a single process.
    """
    data = read_data(folder)
    with _one_thread():
        rows = [_row(data, processes, batch) for processes in (1, 2)]
    alone = rows[0]["steps_per_second"]
    return [row | {"efficiency": row["steps_per_second"] / alone} for row in rows]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Limit this process to one thread, and by the environment also the processes that it starts."""
    threads, before = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        del os.environ["OMP_NUM_THREADS"]
        os.environ |= {} if before is None else {"OMP_NUM_THREADS": before}


def _row(data: EpisodeData, processes: int, batch: int) -> dict[str, Any]:
    training = {
        "batch_size": batch * processes, "devices": processes, "accelerator": "cpu", "loggers": (),
        "steps": INTERVALS * STEPS, "validation_interval": STEPS,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        logs = Path(folder) / "logs"
        train_critic(data, checkpoints=Path(folder) / "state", logs=logs, training=training)
        metrics = pd.read_csv(logs / "metrics.csv")
    speed = float(metrics["throughput/steps_per_second"].max())
    return {"processes": processes, "batch": batch * processes, "steps_per_second": speed}
