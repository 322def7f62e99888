"""Weak scaling: one process with a batch, two with twice the batch, one thread each (docs/benchmarks.md).

``benchmarks.speed`` calls it; ``cvl_pipeline.training.launch`` starts the processes, as in the pipeline.
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

from benchmarks.common import defaults
from cvl_pipeline.dynamics.module import train_dynamics
from cvl_pipeline.dynamics.parameters import DynamicsParameters
from cvl_pipeline.io.artifacts import load_artifact
from cvl_pipeline.training import launch

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
    names = ("transitions", "split", "normalisation")
    inputs = {name: load_artifact(folder / f"{name}.safetensors") for name in names}
    with _one_thread():
        rows = [_row(inputs, processes, batch) for processes in (1, 2)]
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


def _row(inputs: dict[str, Any], processes: int, batch: int) -> dict[str, Any]:
    critic = defaults("contrastive_dynamics")
    training = critic["training"] | {
        "batch_size": batch * processes, "devices": processes, "accelerator": "cpu", "loggers": (),
        "steps": INTERVALS * STEPS, "validation_interval": STEPS,
    }  # fmt: skip
    parameters = DynamicsParameters(**critic | {"training": training})
    with tempfile.TemporaryDirectory() as folder:
        launch.train(
            train_dynamics, "critic", parameters, 0, Path(folder) / "state", Path(folder) / "logs", inputs
        )
        metrics = pd.read_csv(Path(folder) / "logs/metrics.csv")
    speed = float(metrics["throughput/steps_per_second"].max())
    return {"processes": processes, "batch": batch * processes, "steps_per_second": speed}
