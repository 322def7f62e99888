"""Training on a GPU: steps per second beside the JAX loop of equal arithmetic, and memory (docs/speed.md).

The script takes less than eight minutes on one GPU. Without one, it does the smallest jobs on the CPU, so that it can
be tested. A job that fails is reported, and the others go on.

    python -m benchmarks.gpu
    python -m benchmarks.gpu --jax installed   # JAX of this environment instead of one of its own

``ours`` replays each step as a CUDA graph; ``without a graph`` starts every kernel by itself.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from benchmarks.common import PROJECT, RESULTS, markdown, write_record
from benchmarks.peers.harness import Job, timed
from benchmarks.peers.ours import trainer
from benchmarks.speed import (
    CONTENDERS,
    OURS,
    Configuration,
    job_of,
    operations_of_a_step,
    python_of,
    write_log,
)
from cvl_pipeline.training.callbacks import product_rate

CRITICS = (
    Configuration("critic", (256, 256), 256),
    Configuration("critic", (1024, 1024), 1024),
    Configuration("critic", (1024, 1024), 4096),
)
POLICIES = (
    Configuration("policy", (256, 256), 256),
    Configuration("policy", (1024, 1024), 1024),
    Configuration("policy", (1024, 1024), 4096),
)
PRECISIONS = ("float32", "tf32", "bfloat16")
JAX = next(contender for contender in CONTENDERS if contender.name == "JAX loop")
DTYPES = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16}


def ours(job: Job) -> dict[str, Any]:
    """Time our training in this process."""
    if job.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    steps, seconds = timed(trainer(job), job.seconds)
    memory = torch.cuda.max_memory_allocated() / 2**20 if job.device == "cuda" else float("nan")
    return {"steps_per_second": steps / seconds, "peak_device_memory_mib": memory}


def jax(job: Job, python: Path) -> dict[str, Any]:
    """Time the JAX loop in a process of its own."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["PYTHONPATH"] = str(PROJECT)
    command = [str(python), "-m", JAX.module, json.dumps(asdict(job))]
    done = subprocess.run(
        command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no output"])[-1])
    result = json.loads(done.stdout.strip().splitlines()[-1])
    memory = result["peak_device_memory_mib"]
    return {
        "steps_per_second": result["steps"] / result["seconds"],
        "peak_device_memory_mib": float("nan") if memory is None else memory,
    }


def rates(device: str) -> dict[str, float]:
    """Floating-point operations per second of one large matrix product, by precision."""
    size = 8192 if device == "cuda" else 512
    found = {}
    for precision, dtype in DTYPES.items():
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        found[precision] = product_rate(torch.device(device), dtype, size)
    torch.set_float32_matmul_precision("highest")
    return found


def measure(folder: Path, device: str, seconds: float, python: Path | None, end: float) -> dict[str, Any]:
    """Run all jobs.

    Args:
        folder: folder of the log.
        device: cuda; or cpu, for the smallest jobs alone.
        seconds: timed seconds of a job.
        python: interpreter that has JAX; None: without it.
        end: time of ``time.monotonic`` after which no further job starts.

    Returns:
        ``rows``, ``product_rate`` by precision, ``left_out`` with reasons.
    """
    product = rates(device)
    rows, left_out = [], {}
    small = device == "cpu"
    for configuration in (*CRITICS, *POLICIES):
        if small and configuration.batch > 256:
            continue
        for precision in PRECISIONS[: 1 if small else None]:
            runs: dict[str, Callable[[Job], dict[str, Any]]] = {"ours": ours}
            if precision == "float32":
                runs["without a graph"] = lambda job: ours(replace(job, method="without a graph"))
            if python is not None and precision != "bfloat16":
                runs["JAX loop"] = lambda job: jax(job, python)
            for name, run in runs.items():
                title = f"{name}; {configuration}; {precision}"
                job = replace(job_of(OURS, configuration, folder, device, seconds), precision=precision)
                try:
                    if time.monotonic() > end:
                        raise TimeoutError("no time left")
                    result = run(job)
                except Exception as error:  # one job must not end the others
                    left_out[title] = f"{type(error).__name__}: {error}"
                    print(f"left out: {title}: {left_out[title]}", flush=True)  # noqa: T201
                    continue
                speed = result["steps_per_second"]
                fraction = float("nan")
                if configuration.stage == "critic":
                    fraction = operations_of_a_step(configuration) * speed / product[precision]
                rows.append(
                    {
                        "": name,
                        **asdict(configuration),
                        "precision": precision,
                        **result,
                        "of_product": fraction,
                    }
                )
                print(f"{title}: {speed:.1f} per second", flush=True)  # noqa: T201
    return {"rows": rows, "product_rate": product, "left_out": left_out}


def ratios(rows: list[dict[str, Any]], precision: str) -> dict[str, float]:
    """Our speed over that of the JAX loop, by job."""
    found = {}
    for configuration in (*CRITICS, *POLICIES):
        speeds = {
            row[""]: row["steps_per_second"]
            for row in rows
            if row["precision"] == precision
            and (row["stage"], tuple(row["hidden"]), row["batch"])
            == (configuration.stage, configuration.hidden, configuration.batch)
        }
        name = f"{configuration.stage}_{configuration.hidden[0]}_{configuration.batch}"
        found[name] = speeds.get("ours", float("nan")) / speeds.get("JAX loop", float("nan"))
    return found


def main() -> None:
    """Measure, save and print; the last line has our speed over the JAX loop's in float32."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="timed seconds per job")
    parser.add_argument("--limit", type=float, default=420.0, help="seconds after which no job starts")
    parser.add_argument("--jax", choices=("own", "installed", "none"), default="own")
    parser.add_argument("--record", type=Path, default=RESULTS / "gpu.json")
    arguments = parser.parse_args()
    end = time.monotonic() + arguments.limit
    device = "cuda" if torch.cuda.is_available() else "cpu"
    python = None
    if arguments.jax != "none":
        python = python_of(JAX) if arguments.jax == "own" else Path(sys.executable)
    with tempfile.TemporaryDirectory() as folder:
        write_log(Path(folder))
        measured = measure(Path(folder), device, arguments.seconds, python, end)
    card = torch.cuda.get_device_name() if device == "cuda" else "no GPU"
    measured |= {name: ratios(measured["rows"], name) for name in ("float32", "tf32")}
    write_record(arguments.record, card=card, cuda=torch.version.cuda, **measured)
    table = pd.DataFrame(measured["rows"])
    table["hidden"] = table["hidden"].map(str)
    print(markdown(table, digits=2))  # noqa: T201
    print(f"{card}: " + " ".join(f"{name}={value:.2f}" for name, value in measured["float32"].items()))  # noqa: T201


if __name__ == "__main__":
    main()
