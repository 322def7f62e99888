"""Locks that allow one run at a time on the data of one dataset and seed."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import threading
import time
import uuid
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from cvl_pipeline.errors import InputError, one_line
from cvl_pipeline.io.location import Location
from cvl_pipeline.io.storage import HOST, check_file, is_alive

logger = logging.getLogger(__name__)

RENEWAL = 20.0
"""Seconds between renewals of a lease."""
GONE = 180.0
"""Seconds without a renewal, after which the holder counts as gone."""
SETTLED = 1.0
"""Seconds between a takeover of a lease and the check that it succeeded."""

_held: set[TextIO] = set()


def _machine() -> str:
    """Scope in which process numbers are unique: containers may share the name of a host."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return HOST


MACHINE = _machine()


def acquire(path: Path, what: str) -> TextIO:
    """Lock a file, which names its holder, until it is released or this process ends for any reason.

    Args:
        path: of the file, which is created and stays.
        what: name of the locked data, for the error.

    Raises:
        InputError: another process, or another run of this process, holds the lock, or it is no file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    check_file(path)
    file = path.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = _read(file.read())
        file.close()
        raise _in_use(what, holder) from None
    except OSError as error:  # Lustre, for example, may be mounted without locks
        logger.warning("%s cannot be locked (%s); do not start another run on it", what, one_line(error))
    file.truncate(0)
    json.dump(_myself(), file)
    file.flush()
    _held.add(file)
    return file


def release(file: TextIO) -> None:
    """Release the lock."""
    _held.discard(file)
    file.close()


def _myself() -> dict[str, Any]:
    since = datetime.now().astimezone().isoformat(timespec="seconds")
    return {"pid": os.getpid(), "host": HOST, "since": since}


def _in_use(what: str, holder: Any) -> InputError:
    try:
        description = f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
    except (KeyError, TypeError):  # the holder has not written them yet
        description = "it has just started"
    return InputError(
        f"{what} is in use by another run ({description}): wait for it to end; runs of other "
        "datasets and seeds need not wait"
    )


def _read(text: str | None) -> Any:
    try:
        return json.loads(text or "")
    except ValueError:
        return None


class Lease:
    """A lock for several machines: a small file beside the data, renewed while it is held.

    The lease of a killed run is taken over: on its machine at once, on others after GONE seconds without a
    renewal. The clocks of the machines must agree to a minute.
    """

    def __init__(self, location: Location, what: str) -> None:
        """Acquire the lease.

        Args:
            location: of the file, at a URL.
            what: name of the locked data, for the error.

        Raises:
            InputError: another run holds it, or the file cannot be written.
        """
        self._location, self._what = location, what
        self._own = {**_myself(), "machine": MACHINE, "token": uuid.uuid4().hex}
        self._lost = False
        self._over = threading.Event()
        if not location.create(self._text()):
            holder = _read(location.read())
            if not _is_gone(holder):
                raise _in_use(what, holder)
            location.write(self._text())
            time.sleep(SETTLED)  # another run may take it over at the same time
            if not self._is_own(holder := _read(location.read())):
                raise _in_use(what, holder)
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise InputError if another run has taken the lease over: this one must stop writing."""
        if self._lost:
            raise InputError(
                f"{self._what} has been taken over by another run, because this one was silent for "
                f"{GONE:.0f} s; run the same command again when the other run has ended"
            )

    def release(self) -> None:
        """Release the lock."""
        self._over.set()
        self._thread.join(timeout=10.0)
        with suppress(InputError):  # on failure, another run takes it over, as after a kill
            if self._is_own(_read(self._location.read())):
                self._location.remove()

    def _text(self) -> str:
        return json.dumps({**self._own, "renewed": time.time()})

    def _is_own(self, holder: Any) -> bool:
        return isinstance(holder, dict) and holder.get("token") == self._own["token"]

    def _renew(self) -> None:
        while not self._over.wait(RENEWAL):
            with suppress(InputError):  # the network may come back
                holder = _read(self._location.read())
                if holder is not None and not self._is_own(holder):
                    self._lost = True
                    return
                self._location.write(self._text())


def _is_gone(holder: Any) -> bool:
    """Whether the run that holds a lease has ended without releasing it."""
    try:
        if holder["machine"] == MACHINE and not is_alive(holder["pid"]):
            return True
        return bool(time.time() - holder["renewed"] > GONE)
    except (KeyError, TypeError):  # no run writes such a file
        return True


def _let_go() -> None:
    for file in _held:
        file.close()
    _held.clear()


# A forked child would keep the lock after this process has ended.
os.register_at_fork(after_in_child=_let_go)
