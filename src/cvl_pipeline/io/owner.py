"""The process that works on something, for other processes and machines."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from typing import Any

import psutil


def owner() -> dict[str, Any]:
    """Return the identity of this process: ``host``, ``pid`` and when it ``started``, in seconds since 1970."""
    return {"host": platform.node(), "pid": os.getpid(), "started": psutil.Process().create_time()}


def is_alive(process: Mapping[str, Any]) -> bool | None:
    """Return whether a process still runs; None if it is on another machine.

    Args:
        process: what ``owner`` returned in it.
    """
    if process.get("host") != platform.node():
        return None
    try:
        lag = psutil.Process(process["pid"]).create_time() - process["started"]
    except (psutil.NoSuchProcess, KeyError):
        return False
    return bool(abs(lag) < 1.0)
