"""Lines about what takes long, so that a run is never silent for more than a few seconds."""

from __future__ import annotations

import logging
from threading import Lock, Timer

logger = logging.getLogger(__name__)

PATIENCE = 2.0
"""Seconds after which an activity is logged."""

START = "start"
"""Name of what a command does before its first node."""

_timers: dict[str, Timer] = {}
_lock = Lock()  # two nodes may run side by side


def begin(name: str, activity: str) -> None:
    """Log the activity as soon as it has lasted for PATIENCE seconds.

    Args:
        name: whose activity it is, such as a node's name; its next one ends this one.
        activity: the line.
    """
    timer = Timer(PATIENCE, logger.info, (activity,))
    timer.daemon = True
    with _lock:
        _cancel(name)
        _timers[name] = timer
        timer.start()


def end(name: str | None = None) -> None:
    """End the activity of a name, or all activities, without a line."""
    with _lock:
        for each in list(_timers) if name is None else [name]:
            _cancel(each)


def _cancel(name: str) -> None:
    timer = _timers.pop(name, None)
    if timer is not None:
        timer.cancel()
