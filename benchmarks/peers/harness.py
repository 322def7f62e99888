"""Code shared by all timed scripts: the job, the clock and the report.

It uses only the standard library and runs on Python 3.10 or later, because it runs in every peer's environment.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

Train = Callable[[int], tuple[int, float]]
"""Takes at least the given number of gradient steps; returns their number and their seconds."""
SHORTEST = 0.3
"""Shortest trial run, in seconds, that predicts the length of the timed run."""


@dataclass(frozen=True)
class Job:
    """A training job.

    Attributes:
        folder: folder of ``log.npz`` (see ``benchmarks.speed.write_log``).
        stage: ``critic``, ``policy``, or another stage of the script.
        hidden: sizes of the hidden layers of every network.
        batch: batch size, B.
        representation: size of phi and psi, D.
        precision: float32, tf32 or bfloat16.
        device: cpu or cuda.
        seconds: length of the timed run.
        method: method to run, for scripts with several.
        discount: gamma.
        temperature: divisor of the logits.
        per_episode: number of segments of a batch that share an episode.
        learning_rate: Adam's learning rate at the first step.
        beta: beta of the weights ``exp(beta A)``.
        max_weight: maximum of these weights.
    """

    folder: str
    stage: str
    hidden: tuple[int, ...]
    batch: int
    representation: int
    precision: str
    device: str
    seconds: float
    method: str
    discount: float
    temperature: float
    per_episode: int
    learning_rate: float
    beta: float
    max_weight: float

    @property
    def log(self) -> Path:
        """Path of the episodes, a NumPy file."""
        return Path(self.folder) / "log.npz"


def given_job(text: str) -> Job:
    """Parse the job that ``benchmarks.speed`` passes as JSON."""
    values = json.loads(text)
    return Job(**{**values, "hidden": tuple(values["hidden"])})


def clocked(steps_of: Callable[[int], int]) -> Train:
    """Make a Train from a function that takes steps, waits for them and returns their number."""

    def train(steps: int) -> tuple[int, float]:
        start = time.perf_counter()
        count = steps_of(steps)
        return count, time.perf_counter() - start

    return train


def timed(train: Train, seconds: float) -> tuple[int, float]:
    """Steps and seconds of a run of about the given length, after compilation and warm-up."""
    train(1)
    steps, duration = train(8)
    while duration < min(SHORTEST, seconds):
        steps, duration = train(2 * steps)
    return train(max(1, round(steps * seconds / duration)))


def peak_memory() -> float:
    """Peak memory of this process in MiB, including libraries."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would include the parent process
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024.0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def report(job: Job, train: Train, packages: Sequence[str], device_memory: Callable[[], int]) -> None:
    """Time a job and print the result as one line of JSON.

    Args:
        job: the job.
        train: takes the training steps.
        packages: packages whose versions are reported.
        device_memory: returns the peak bytes on the GPU; not called on a CPU.
    """
    steps, seconds = timed(train, job.seconds)
    result = {
        "steps": steps,
        "seconds": seconds,
        "peak_memory_mib": peak_memory(),
        "peak_device_memory_mib": device_memory() / 2**20 if job.device == "cuda" else None,
        "versions": {name: metadata.version(name) for name in packages},
    }
    print(json.dumps(result), flush=True)  # noqa: T201
