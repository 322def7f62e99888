"""CPU time of a gradient step alone and beside busy processes (docs/speed.md).

Threads that wait for each other burn CPU time if one of them has to wait for a core. So the critic with the default
sizes is trained alone, and again beside one busy process per core. The share of its speed per CPU second that it keeps
is CPU seconds per step alone over CPU seconds per step beside the others. It is 1 if the neighbours cost it nothing but
the cores that they use; caches and cores that are shared by two hardware threads lower it.

    python -m benchmarks.shared
    OMP_NUM_THREADS=2 OMP_WAIT_POLICY=ACTIVE python -m benchmarks.shared   # without this package's choices
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.common import PROJECT, read_data
from benchmarks.peers.ours import TimedDynamics
from cvl_pipeline.dynamics.parameters import DynamicsParameters
from cvl_pipeline.io.children import end_with_parent
from cvl_pipeline.training.fit import fit

STEPS, ROUNDS = 200, 3
"""Gradient steps per measurement, and measurements of each kind, in turn; the fewest CPU seconds count."""


def seconds_per_step(folder: Path, steps: int) -> float:
    """CPU seconds of a gradient step of the critic with the default parameters, of all threads."""
    training = {"steps": steps, "validation_interval": steps, "accelerator": "cpu", "loggers": ()}
    parameters = DynamicsParameters.model_validate({"training": training, "validation_batches": 1})
    module = TimedDynamics(read_data(folder), parameters, 0)
    fit(module, description="shared")
    return module.processor_seconds / steps


def shared(steps: int = STEPS, rounds: int = ROUNDS, busy: int | None = None) -> float:
    """Measure the share of its speed per CPU second that training keeps beside busy processes.

    Every measurement is a process of its own, because OpenMP reads its environment once.

    Args:
        steps: gradient steps per measurement.
        rounds: measurements of each kind, in turn; the fewest CPU seconds count.
        busy: number of busy processes; None: as many as there are cores.
    """
    from benchmarks.speed import write_log  # which imports this module

    alone, beside = [], []
    with tempfile.TemporaryDirectory() as folder:
        write_log(Path(folder))
        for _ in range(rounds):
            alone.append(_measured(Path(folder), steps))
            with busy_processes(busy or os.cpu_count() or 1):
                beside.append(_measured(Path(folder), steps))
    print(f"CPU milliseconds per step: alone {1e3 * min(alone):.2f}, shared {1e3 * min(beside):.2f}")  # noqa: T201
    return min(alone) / min(beside)


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Run processes that compute all the time, in this context."""
    processes = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"], preexec_fn=end_with_parent)
        for _ in range(count)
    ]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _measured(folder: Path, steps: int) -> float:
    command = [sys.executable, "-m", "benchmarks.shared", "--folder", str(folder), "--steps", str(steps)]
    result = subprocess.run(command, cwd=PROJECT, check=True, stdout=subprocess.PIPE, text=True)
    return float(json.loads(result.stdout.splitlines()[-1]))


def main() -> None:
    """Measure, and print the share as the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--busy", type=int, help="number of busy processes; by default one per core")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # of the log: measure in this process
    options = parser.parse_args()
    if options.folder is not None:
        print(json.dumps(seconds_per_step(options.folder, options.steps)))  # noqa: T201
        return
    print(f"shared={shared(options.steps, options.rounds, options.busy):.3f}")  # noqa: T201


if __name__ == "__main__":
    main()
