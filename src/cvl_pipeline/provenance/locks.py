"""One run at a time on the data of one dataset and seed."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
from datetime import datetime
from pathlib import Path
from typing import TextIO

from cvl_pipeline.errors import InputError, one_line

logger = logging.getLogger(__name__)

_held: set[TextIO] = set()


def acquire(path: Path, what: str) -> TextIO:
    """Lock a file, which says who holds it, until it is released or this process ends, however it does.

    Args:
        path: of the file, which is made, and stays.
        what: is locked, for the error.

    Raises:
        InputError: another process holds it, or another run of this one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = _holder(file)
        file.close()
        raise InputError(
            f"{what} is in use by another run ({holder}): wait for it to end; runs of other datasets and "
            "seeds need not wait"
        ) from None
    except OSError as error:  # Lustre, for one, may be mounted without locks
        logger.warning("%s cannot be locked (%s): start no other run of it", what, one_line(error))
    file.truncate(0)
    since = datetime.now().astimezone().isoformat(timespec="seconds")
    json.dump({"pid": os.getpid(), "host": socket.gethostname(), "since": since}, file)
    file.flush()
    _held.add(file)
    return file


def release(file: TextIO) -> None:
    """Let others have it."""
    _held.discard(file)
    file.close()


def _holder(file: TextIO) -> str:
    file.seek(0)
    try:
        found = json.load(file)
        return f"process {found['pid']} on {found['host']}, since {found['since']}"
    except (ValueError, KeyError, TypeError):  # it has not written it yet
        return "it has just started"


def _let_go() -> None:
    for file in _held:
        file.close()
    _held.clear()


# A forked child would hold the lock on when this process is gone.
os.register_at_fork(after_in_child=_let_go)
