"""GPUs and cores of this machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cvl_pipeline.errors import InputError

if TYPE_CHECKING:
    from cvl_pipeline.training.parameters import TrainingParameters

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


def accelerator_of(parameters: TrainingParameters) -> Literal["cpu", "gpu"]:
    """What the training uses.

    Not Lightning's auto: it would choose Apple's GPU, which lacks the double precision to sample offsets.

    Raises:
        InputError: the training needs more GPUs than there are.
    """
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if parameters.accelerator == "cpu" or (parameters.accelerator == "auto" and not gpus):
        return "cpu"
    if not gpus:
        raise InputError(
            "training.accelerator is gpu, but PyTorch finds no NVIDIA or AMD GPU on this machine; set it to auto or cpu"
        )
    if parameters.devices > gpus:
        raise InputError(
            f"training.devices is {parameters.devices}, but PyTorch finds {gpus} GPU{'s' * (gpus > 1)} on this "
            "machine; lower it, or set training.accelerator to cpu"
        )
    return "gpu"
