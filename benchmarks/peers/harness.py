"""What every timed script shares: its job, the clock, what it prints.

Of the standard library alone, and of any Python from 3.10: it runs in the environment of every peer.
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
"""Takes at least so many gradient steps; returns how many they were and the seconds they took."""
SHORTEST = 0.3
"""Seconds of a trial run from which the speed of the timed one is foretold."""


@dataclass(frozen=True)
class Job:
    """What is trained, for how long.

    Attributes:
        folder: of ``log.npz`` (see ``benchmarks.speed.write_log``).
        stage: ``critic``, ``policy``, or what a script knows besides.
        hidden: sizes of the hidden layers of every network.
        batch: B.
        representation: D of phi and psi.
        precision: float32 or bfloat16.
        device: cpu or cuda.
        seconds: of the timed run.
        method: of a script that has several.
        discount: gamma.
        temperature: divides the logits.
        per_episode: segments of a batch that share an episode.
        learning_rate: of Adam at the first step.
        beta: of the weights ``exp(beta A)``.
        max_weight: that clamps them.
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
        """The episodes, as NumPy keeps them."""
        return Path(self.folder) / "log.npz"


def given_job(text: str) -> Job:
    """The job that the driver wrote as JSON."""
    values = json.loads(text)
    return Job(**{**values, "hidden": tuple(values["hidden"])})


def clocked(steps_of: Callable[[int], int]) -> Train:
    """A Train of a function that takes steps, waits for them and returns their number."""

    def train(steps: int) -> tuple[int, float]:
        start = time.perf_counter()
        taken = steps_of(steps)
        return taken, time.perf_counter() - start

    return train


def timed(train: Train, seconds: float) -> tuple[int, float]:
    """Steps and seconds of a run of about the given length, after compilation and warm-up."""
    train(1)
    steps, taken = train(8)
    while taken < min(SHORTEST, seconds):
        steps, taken = train(2 * steps)
    return train(max(1, round(steps * seconds / taken)))


def peak_memory() -> float:
    """MiB that this process held at its highest, libraries and all."""
    status = Path("/proc/self/status")
    if status.exists():  # what ru_maxrss says includes the process that started this one
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024.0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def report(job: Job, train: Train, packages: Sequence[str], device_memory: Callable[[], int]) -> None:
    """Time it and print one line of JSON.

    Args:
        job: what is timed.
        train: takes its steps.
        packages: whose versions are told.
        device_memory: peak bytes on the GPU; not asked on a processor.
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
