"""Locks that allow one run at a time on the data of one dataset and seed."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import socket
import stat
import threading
import time
import uuid
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from cvl_pipeline.errors import InputError, one_line
from cvl_pipeline.io.location import Location
from cvl_pipeline.io.owner import boot, namespace
from cvl_pipeline.io.storage import HOST, is_alive, refusal, shown

logger = logging.getLogger(__name__)

RENEWAL = 20.0
"""Seconds between renewals of a lease."""
IN_USE = "is in use by another run"
"""Part of the message of ``InUseError``, by which it is found in the output of a run."""
GONE = 180.0
"""Seconds without a renewal, after which the holder counts as gone."""
SETTLED = 1.0
"""Seconds between a takeover of a lease and the check that it succeeded."""

_held: set[Lock] = set()


class InUseError(InputError):
    """Another run holds the lock."""


MACHINE = f"{boot()} {namespace()}" if boot() else HOST
"""Scope in which process numbers are unique: machines and containers may share the name of a host."""


class Lock:
    """A locked file, which names its holder, and on Linux a name that nobody can delete."""

    def __init__(self, path: Path, what: str) -> None:
        """Lock the file; see ``acquire``."""
        self._path, self._what = path, what
        self._thread = threading.Lock()
        self._descriptor = self._name = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._refused(error) from None
        self._name = self._take_name()
        try:
            self._descriptor = self._take_file()
        except BaseException:
            self.release()
            raise
        _held.add(self)

    def check(self) -> None:
        """Lock the file again if somebody deleted it.

        Raises:
            InputError: another run has locked the new file in the meantime, or it cannot be locked.
        """
        with self._thread:
            if self._descriptor is None or _is_file_of(self._path, self._descriptor):
                return
            logger.warning(
                "%s was deleted or replaced during this run; it is locked again", shown(self._path)
            )
            old = self._descriptor
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._descriptor = self._take_file()
            except OSError as error:
                raise self._refused(error) from None
            os.close(old)

    def release(self) -> None:
        """Release the lock."""
        _held.discard(self)
        if self._descriptor is not None:
            os.close(self._descriptor)
        if self._name is not None:
            self._name.close()
        self._descriptor = self._name = None

    def _take_file(self) -> int:
        while True:
            descriptor = self._open()
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                raise self._in_use() from None
            except OSError as error:  # Lustre, for example, may be mounted without locks
                logger.warning(
                    "%s cannot be locked (%s); do not start another run on it", self._what, one_line(error)
                )
            if _is_file_of(self._path, descriptor):
                break
            os.close(descriptor)  # it was deleted after it was opened, so another run may lock a new file
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(_myself()).encode(), 0)
        return descriptor

    def _open(self) -> int:
        """Open the file, which may not be a link: its target would be emptied."""
        try:
            with suppress(FileNotFoundError):
                self._check_plain(self._path.lstat())
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
            descriptor = os.open(self._path, flags, 0o666)
        except OSError as error:
            raise self._refused(error) from None
        try:
            self._check_plain(os.fstat(descriptor))
        except InputError:
            os.close(descriptor)
            raise
        return descriptor

    def _check_plain(self, state: os.stat_result) -> None:
        kinds = {stat.S_IFLNK: "a link", stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe"}
        kind = kinds.get(stat.S_IFMT(state.st_mode), "no plain file")
        if stat.S_ISREG(state.st_mode):
            if state.st_nlink < 2:
                return
            kind = "a file with several names"
        raise InputError(
            f"{shown(self._path)} is {kind}, but must be a file of its own: delete it, then run again"
        )

    def _take_name(self) -> socket.socket | None:
        """Bind a name of the data folder in the system's memory: it ends with the process, like the lock.

        A deleted lock file would let a second run in, which would lock a new file. Only Linux has such names.
        """
        if not hasattr(socket, "AF_UNIX") or not Path("/proc/self").exists():
            return None
        path = self._path.absolute()
        root = path.parents[2] if len(path.parents) > 2 else path.parent
        folder = root.stat()
        key = f"{folder.st_dev} {folder.st_ino} {path.relative_to(root)}"
        digest = hashlib.sha256(os.fsencode(key)).hexdigest()
        name = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            name.bind(f"\0cvl-pipeline-{digest}")
        except OSError as error:
            name.close()
            if error.errno == errno.EADDRINUSE:
                raise self._in_use() from None
            return None
        return name

    def _in_use(self) -> InUseError:
        try:
            holder = _read(self._path.read_text()) if self._path.is_file() else None
        except (OSError, ValueError):
            holder = None
        return _in_use(self._what, holder)

    def _refused(self, error: OSError) -> InputError:
        place = Path(os.fsdecode(error.filename)) if error.filename else self._path
        where = "" if place == self._path else f"{shown(place)}: "
        return InputError(f"cannot lock {shown(self._path)}: {where}{refusal(error)}")


def acquire(path: Path, what: str) -> Lock:
    """Lock a file, which names its holder, until it is released or this process ends for any reason.

    Args:
        path: of the file, ``<data folder>/.locks/<dataset>/<file>``, which is created and stays.
        what: name of the locked data, for the error.

    Raises:
        InputError: another process, or another run of this process, holds the lock; the file is a link, a folder
            or no plain file; it cannot be written.
    """
    return Lock(path, what)


def release(lock: Lock) -> None:
    """Release the lock."""
    lock.release()


def _is_file_of(path: Path, descriptor: int) -> bool:
    """Whether a path still leads to an open file."""
    try:
        there = path.lstat()
    except OSError:
        return False
    return os.path.samestat(there, os.fstat(descriptor))


def _myself() -> dict[str, Any]:
    since = datetime.now().astimezone().isoformat(timespec="seconds")
    return {"pid": os.getpid(), "host": HOST, "since": since}


def _in_use(what: str, holder: Any) -> InUseError:
    try:
        description = f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
    except (KeyError, TypeError):  # the holder has not written them yet, or its file was deleted
        description = "it has just started, or its lock file was deleted"
    return InUseError(
        f"{what} {IN_USE} ({description}): wait for it to end; runs of other datasets and seeds need not wait"
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
    for lock in list(_held):
        lock.release()


# A forked child would keep the lock after this process has ended.
os.register_at_fork(after_in_child=_let_go)
