"""Training of the critic with a log in a mapped file, against the same log on the device.

On a GPU, the mapped file stands for a log that does not fit: a thread reads batches ahead of their steps and copies
them to the GPU. The benchmark measures gradient steps per second with both, and the share of the time that steps
waited for their batch. Without a GPU, the same code runs on the CPU, beside the training.

    python -m benchmarks.large_log
    python -m benchmarks.large_log --transitions 1e7 --batch 4096

The file has just been written, so the system still holds it in memory, as after a first pass over a log.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Generator, Tensor

from benchmarks.common import RESULTS, write_record
from benchmarks.sampling import ACTION, OBSERVATION
from benchmarks.sampling import STEPS as LENGTH
from cvl_pipeline.api import EpisodeData
from cvl_pipeline.dynamics.module import ContrastiveDynamics
from cvl_pipeline.dynamics.parameters import DynamicsParameters
from cvl_pipeline.episodes.container import BLOCK, Normalisation, Split, Transitions
from cvl_pipeline.training.fit import fit
from cvl_pipeline.training.module import CHUNK
from cvl_pipeline.training.prefetch import fits

DEFAULTS = DynamicsParameters()
WARM_UP = 8 * CHUNK
"""Steps before the clock starts, in which libraries load and kernels are chosen."""
BYTES = 4 * (OBSERVATION + ACTION)
"""Bytes per transition."""


def mapped_log(folder: Path, transitions: int) -> EpisodeData:
    """Write random episodes of LENGTH steps to files and map them; one block of random rows is repeated."""
    episodes = transitions // LENGTH
    generator = Generator().manual_seed(0)

    def filled(name: str, rows: int, columns: int) -> Tensor:
        values = torch.from_file(
            str(folder / name), shared=True, size=rows * columns, dtype=torch.float32
        ).reshape(rows, columns)
        block = torch.rand(min(BLOCK, rows), columns, generator=generator) * 2.0 - 1.0
        for first in range(0, rows, BLOCK):
            values[first : first + BLOCK] = block[: rows - first]
        return values

    log = Transitions(
        observations=filled("observations", episodes * (LENGTH + 1), OBSERVATION),
        actions=filled("actions", episodes * LENGTH, ACTION),
        episode_starts=torch.arange(episodes + 1) * LENGTH,
        terminated=torch.zeros(episodes, dtype=torch.bool),
        truncated=torch.ones(episodes, dtype=torch.bool),
        action_low=-torch.ones(ACTION),
        action_high=torch.ones(ACTION),
    )
    held_out = max(1, episodes // 100)
    split = Split(train=torch.arange(episodes - held_out), validation=torch.arange(episodes)[-held_out:])
    unit = (torch.zeros(OBSERVATION), torch.ones(OBSERVATION), torch.zeros(ACTION), torch.ones(ACTION))
    return EpisodeData(log, split, Normalisation(*unit))


class Timed(ContrastiveDynamics):
    """Contrastive training with a clock around its chunks of steps.

    Attributes:
        seconds: of the steps after the warm-up, which end when their losses are known.
        timed: number of these steps.
        waited: seconds of them in which a step waited for its batch.
    """

    seconds = waited = 0.0
    timed = 0

    def training_step(self, index: int) -> None:
        """Take a chunk of steps by the clock."""
        first, waited, start = self.global_step, self._waited, time.perf_counter()
        super().training_step(index)
        if first >= WARM_UP:
            self.seconds += time.perf_counter() - start
            self.waited += self._waited - waited
            self.timed += self.global_step - first

    @property
    def _waited(self) -> float:
        return self._prefetch.waited if self._prefetch is not None else 0.0


def measure(data: EpisodeData, on_device: bool, batch: int, steps: int) -> dict[str, Any]:
    """Train the default critic and return ``steps_per_second`` and the share of time ``waiting``.

    Args:
        data: the log.
        on_device: whether it moves to the device of the network.
        batch: segments per step.
        steps: number of timed steps.
    """
    training = DEFAULTS.training.model_copy(
        update={"steps": WARM_UP + steps, "validation_interval": WARM_UP + steps, "batch_size": batch}
    )
    module = Timed(data, DEFAULTS.model_copy(update={"training": training}), 0)
    with patch("cvl_pipeline.training.module.fits", lambda *_: on_device):
        fit(module, description="on the device" if on_device else "in a mapped file")
    return {"steps_per_second": module.timed / module.seconds, "waiting": module.waited / module.seconds}


def main() -> None:
    """Measure, save and print; the last line has the speeds and the share of time that steps waited."""
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--transitions", type=float, help="default: 1e8 with a GPU, else 1e6")
    parser.add_argument("--batch", type=int, default=DEFAULTS.training.batch_size)
    parser.add_argument("--steps", type=int, default=4000 if on_gpu else 500)
    parser.add_argument("--rounds", type=int, default=3, help="the fastest one of each kind counts")
    parser.add_argument("--folder", type=Path, help="folder of the log, which is deleted; 6 GB for 1e8")
    arguments = parser.parse_args()
    device = torch.device("cuda" if on_gpu else "cpu")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        wanted = int(arguments.transitions or (1e8 if on_gpu else 1e6))
        transitions = min(wanted, int(0.9 * shutil.disk_usage(folder).free) // BYTES)
        if transitions < wanted:
            print(f"not enough disk space for {wanted} transitions; measuring {transitions}")  # noqa: T201
        data = mapped_log(Path(folder), transitions)
        kinds = [False]
        if fits(device, data.transitions.observations, data.transitions.actions):
            kinds.append(True)
        rows = [
            {"on_device": kind, **measure(data, kind, arguments.batch, arguments.steps)}
            for _ in range(arguments.rounds)
            for kind in kinds
        ]
        del data
    mapped, there = (
        max(
            (row for row in rows if row["on_device"] is kind),
            key=lambda row: row["steps_per_second"],
            default={"steps_per_second": float("nan")},
        )
        for kind in (False, True)
    )
    write_record(
        RESULTS / "large_log.json",
        device=torch.cuda.get_device_name() if on_gpu else "cpu",
        transitions=transitions,
        batch=arguments.batch,
        rows=rows,
    )
    print(  # noqa: T201
        f"large_log: steps_per_second={mapped['steps_per_second']:.1f} on_device={there['steps_per_second']:.1f} "
        f"waiting={mapped['waiting']:.4f}"
    )


if __name__ == "__main__":
    main()
