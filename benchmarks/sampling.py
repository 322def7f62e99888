"""Speed and memory of sampling segments from logs of 10^5 to 10^8 transitions (docs/speed.md).

Every log is an artifact of the pipeline, memory-mapped as in training. One process measures the speed on all
logs in turn; a separate process per log measures the memory. The baseline is the standard approach: a dataset
that samples one segment per item, behind torch's DataLoader, with all data in memory.

    python -m benchmarks.sampling --sizes 1e5 1e6 1e7 1e8
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler

from benchmarks.common import RESULTS, markdown, record_path, write_record
from cvl_pipeline.api import load, save
from cvl_pipeline.dynamics.parameters import DynamicsParameters
from cvl_pipeline.episodes.container import BLOCK, Transitions
from cvl_pipeline.episodes.sampling import SegmentSampler

CRITIC = DynamicsParameters()
OBSERVATION, ACTION, STEPS = 11, 3, 1000
"""Sizes of D4RL's Hopper, with up to 1000 steps per episode: 56 bytes per transition, 5.6 GB for 10^8."""
BATCHES, ROUNDS = 200, 30
IN_MEMORY = 10**7
"""Largest number of transitions with which the DataLoader is measured."""


def write_log(path: Path, transitions: int) -> None:
    """Write a log of random numbers, through files, so that it may be larger than memory."""
    episodes = transitions // STEPS
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:

        def filled(name: str, rows: int, columns: int) -> Tensor:
            values = torch.from_file(
                f"{folder}/{name}", shared=True, size=rows * columns, dtype=torch.float32
            ).reshape(rows, columns)
            generator = Generator().manual_seed(0)
            for first in range(0, rows, BLOCK):
                values[first : first + BLOCK].uniform_(-1.0, 1.0, generator=generator)
            return values

        log = Transitions(
            observations=filled("observations", episodes * (STEPS + 1), OBSERVATION),
            actions=filled("actions", episodes * STEPS, ACTION),
            episode_starts=torch.arange(episodes + 1) * STEPS,
            terminated=torch.zeros(episodes, dtype=torch.bool),
            truncated=torch.ones(episodes, dtype=torch.bool),
            action_low=-torch.ones(ACTION),
            action_high=torch.ones(ACTION),
        )
        save(log, path)


def make_sampler(path: Path) -> SegmentSampler:
    """Load and check the artifact and build the sampler with the default discount, as training does."""
    return SegmentSampler(load(path), CRITIC.discount)


class Items(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """The standard approach: one segment per item, with the same distribution except for uniform anchors."""

    def __init__(self, transitions: Transitions, discount: float) -> None:
        """Copy all data into memory."""
        self._observations = transitions.observations.numpy().copy()
        self._actions = transitions.actions.numpy().copy()
        self._starts = transitions.episode_starts.numpy()
        self._discount = discount
        self._generator = np.random.default_rng(0)

    def __len__(self) -> int:
        """Number of transitions."""
        return len(self._actions)

    def __getitem__(self, anchor: int) -> tuple[Tensor, Tensor, Tensor]:
        """Sample a future state; return state, action and future state."""
        episode = int(np.searchsorted(self._starts, anchor, side="right")) - 1
        left = int(self._starts[episode + 1]) - anchor
        u = self._generator.random() * (1.0 - self._discount**left)
        offset = min(1 + int(np.log1p(-u) / np.log(self._discount)), left)
        row = anchor + episode
        parts = (self._observations[row], self._actions[anchor], self._observations[row + offset])
        observation, action, future = (torch.from_numpy(part) for part in parts)
        return observation, action, future


def seconds_of_sampler(sampler: SegmentSampler, batch: int, per_episode: int, seed: int) -> float:
    """Measure the seconds for BATCHES batches."""
    generator = Generator().manual_seed(seed)
    start = time.perf_counter()
    for _ in range(BATCHES):
        sampler.sample(batch, generator, per_episode)
    return time.perf_counter() - start


def rate_of_items(path: Path, batch: int, batches: int = 40) -> float:
    """Measure the segments per second of the DataLoader, in this process."""
    items = Items(load(path), CRITIC.discount)
    # With replacement: torch would shuffle all transitions otherwise.
    uniform = RandomSampler(
        items, replacement=True, num_samples=2 * batch * batches, generator=Generator().manual_seed(0)
    )
    loader = iter(DataLoader(items, batch_size=batch, sampler=uniform))
    for _ in range(batches):  # warm-up
        next(loader)
    start = time.perf_counter()
    for _ in range(batches):
        next(loader)
    return batch * batches / (time.perf_counter() - start)


def own_memory() -> float:
    """MiB of memory of this process that the system cannot reclaim, so without the mapped file."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024.0
    raise OSError("/proc/self/status has no RssAnon; measure on Linux")


def added_memory(path: Path, batch: int, per_episode: int) -> float:
    """Peak MiB that loading, checking and sampling a log add in a new process."""
    command = [sys.executable, "-m", "benchmarks.sampling", "--memory-of", str(path)]
    command += ["--batch", str(batch), "--per-episode", str(per_episode)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_added_memory(path: Path, batch: int, per_episode: int) -> None:
    """Measure and print the added memory, in the process that ``added_memory`` starts."""
    generator = Generator().manual_seed(0)
    smallest = min(path.parent.glob("*.safetensors"), key=lambda log: log.stat().st_size)
    make_sampler(smallest).sample(batch, generator, per_episode)  # torch's own one-time memory
    before = own_memory()
    sampler = make_sampler(path)
    highest = own_memory()
    for _ in range(BATCHES):
        sampler.sample(batch, generator, per_episode)
        highest = max(highest, own_memory())
    print(highest - before)  # noqa: T201


def measure(folder: Path, sizes: list[int], batch: int, per_episode: int) -> pd.DataFrame:
    """Measure all sizes and return a table with one row per size."""
    paths = {size: folder / f"{size}.safetensors" for size in sizes}
    for size, path in paths.items():
        write_log(path, size)
    samplers = {size: make_sampler(path) for size, path in paths.items()}
    seconds: dict[int, list[float]] = {size: [] for size in sizes}
    for turn in range(ROUNDS):
        for size, sampler in samplers.items():
            seconds[size].append(seconds_of_sampler(sampler, batch, per_episode, turn))
    samplers.clear()
    return pd.DataFrame(
        {
            "transitions": size,
            # The fastest round is the one that other work on the machine disturbed least.
            "segments_per_second": batch * BATCHES / min(seconds[size]),
            "microseconds_per_batch": min(seconds[size]) / BATCHES * 1e6,
            "added_memory_mib": added_memory(paths[size], batch, per_episode),
            "file_mib": paths[size].stat().st_size / 2**20,
            "items_per_second": rate_of_items(paths[size], batch) if size <= IN_MEMORY else None,
        }
        for size in sizes
    )


def main() -> None:
    """Measure, save and print the table; the last line is the flatness."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=float, default=[1e5, 1e6, 1e7, 1e8])
    parser.add_argument("--batch", type=int, default=CRITIC.training.batch_size)
    parser.add_argument("--per-episode", type=int, default=CRITIC.segments_per_episode)
    parser.add_argument(
        "--folder", type=Path, help="folder of the logs, which are deleted afterwards; 12 GB for 10^8"
    )
    parser.add_argument("--memory-of", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        print_added_memory(arguments.memory_of, arguments.batch, arguments.per_episode)
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        sizes = [int(size) for size in arguments.sizes]
        free = shutil.disk_usage(folder).free
        possible = [size for size in sizes if 2.5 * size * 4 * (OBSERVATION + ACTION) < free]
        for size in sorted(set(sizes) - set(possible)):
            print(f"skipped, not enough disk space: {size}")  # noqa: T201
        table = measure(Path(folder), possible, arguments.batch, arguments.per_episode)
    rates = table["segments_per_second"]
    flatness = float(rates.min() / rates.max())
    write_record(
        record_path(RESULTS / "sampling.json", parser, arguments),
        batch=arguments.batch,
        per_episode=arguments.per_episode,
        flatness=flatness,
        rows=json.loads(table.to_json(orient="records")),
    )
    print(markdown(table, digits=0))  # noqa: T201
    print(f"flatness={flatness:.2f}")  # noqa: T201


if __name__ == "__main__":
    main()
