"""The process that works on something, for other processes and machines."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def boot() -> str:
    """Return the name of this start of the system; empty if the system has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def namespace() -> str:
    """Return the number of the namespace in which process numbers are unique; empty if the system has none.

    Containers have namespaces of their own, and may share the name of the host. The host's is the same after a restart.
    """
    try:
        return str(Path("/proc/self/ns/pid").stat().st_ino)
    except OSError:
        return ""


def owner() -> dict[str, Any]:
    """Return the identity of this process: ``host``, ``boot``, ``namespace``, ``pid`` and ``started``.

    It started that many seconds after the system: seconds since 1970 move when the clock is set.
    """
    import psutil  # an optional dependency; files are written without it

    since_boot = psutil.Process().create_time() - psutil.boot_time()
    place = {"host": platform.node(), "boot": boot(), "namespace": namespace()}
    return {**place, "pid": os.getpid(), "started": since_boot}


def is_alive(process: Mapping[str, Any]) -> bool | None:
    """Return whether a process still runs; None if it is on another machine or in another container.

    Args:
        process: what ``owner`` returned in it. Older versions stored neither ``boot`` nor ``namespace``, and when it
            ``started`` in seconds since 1970.
    """
    import psutil

    if process.get("host") != platform.node():
        return None
    if process.get("boot", boot()) != boot():  # the machine has been restarted
        return False
    if process.get("namespace", namespace()) != namespace():
        return None
    try:
        started = psutil.Process(process["pid"]).create_time()
        if "boot" in process:
            started -= psutil.boot_time()
        return bool(abs(started - process["started"]) < 1.0)
    except (psutil.NoSuchProcess, KeyError):
        return False
