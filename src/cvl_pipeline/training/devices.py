"""GPUs of this machine."""

from __future__ import annotations

import os
from pathlib import Path


def visible_devices() -> tuple[str, ...]:
    """GPUs of this machine, as CUDA_VISIBLE_DEVICES names them."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return tuple(part.strip() for part in given.split(",") if part.strip() not in ("", "-1"))
    if not Path("/dev/nvidiactl").exists():  # importing torch takes seconds
        return ()
    import torch

    return tuple(map(str, range(torch.cuda.device_count())))
