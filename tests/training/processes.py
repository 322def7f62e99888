"""Call functions in several real processes, and find the processes of a training by its folder."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed
from torch.multiprocessing.spawn import spawn


def call_in_processes(count: int, folder: Path, function: Callable[[], Any]) -> list[Any]:
    """Return the results of an importable function in each process of a gloo group."""
    spawn(_process, (count, folder, function), nprocs=count)  # type: ignore[no-untyped-call]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(count)]


def _process(rank: int, count: int, folder: Path, function: Callable[[], Any]) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=count
    )
    torch.save(function(), folder / f"{rank}.pt")
    distributed.destroy_process_group()


linux = pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")


def processes_of(folder: Path) -> dict[int, list[str]]:
    """Command lines, by id, of the processes that have the folder, or a path in it, as an argument."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            line = path.read_text().split("\0")
            if any(argument.startswith(str(folder)) for argument in line):
                found[int(path.parent.name)] = line
    return found


def children_of(parent: int) -> list[int]:
    """Return the ids of the processes that a process has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(path.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(path.parent.name))
    return found


def worker_of(folder: Path, rank: int) -> int:
    """Return the id of the process with that rank."""
    for number in processes_of(folder):
        if f"RANK={rank}" in Path(f"/proc/{number}/environ").read_text().split("\0"):
            return number
    raise AssertionError(f"no process of rank {rank}")


def checkpoints_in(folder: Path) -> list[Path]:
    """Return saved states of training, except one that is being written."""
    return [path for path in folder.rglob("last.ckpt") if not path.parent.name.startswith(".partial-")]


def wait_for(condition: Callable[[], object], seconds: float = 500.0) -> None:
    """Return as soon as the condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
