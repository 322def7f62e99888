"""Functions called in several real processes of one group."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed, multiprocessing


def call_in_processes(count: int, folder: Path, function: Callable[[], Any]) -> list[Any]:
    """What the function, importable by name, returns in each process of a gloo group."""
    multiprocessing.spawn(_process, (count, folder, function), nprocs=count)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(count)]


def _process(rank: int, count: int, folder: Path, function: Callable[[], Any]) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=count
    )
    torch.save(function(), folder / f"{rank}.pt")
    distributed.destroy_process_group()
