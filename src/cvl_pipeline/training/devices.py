"""GPUs and cores of this machine."""

from __future__ import annotations

import os
from pathlib import Path

DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""Files of the drivers of NVIDIA's and AMD's GPUs, and of both in the Windows Subsystem for Linux."""


def available_cores() -> int:
    """Number of cores that this process may use; taskset, SLURM or a container may leave it a part of the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_devices() -> tuple[str, ...]:
    """GPUs of this machine, as CUDA_VISIBLE_DEVICES names them."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return tuple(part.strip() for part in given.split(",") if part.strip() not in ("", "-1"))
    if not any(Path(driver).exists() for driver in DRIVERS):  # importing torch takes seconds
        return ()
    import torch

    return tuple(map(str, range(torch.cuda.device_count())))
