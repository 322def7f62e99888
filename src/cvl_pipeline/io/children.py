"""Child processes that end with the process that started them."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO

from cvl_pipeline.errors import TERMINATED

# Looked up here: between fork and exec, no library may be loaded, because another thread may be loading one.
_prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None


def end_with_parent() -> None:
    """Let Linux send SIGTERM to this process when its parent dies for any reason; elsewhere, do nothing.

    Otherwise the processes that kill -9 leaves would train beside the run that resumes, or wait for ever.
    """
    if _prctl is not None:
        _prctl(1, signal.SIGTERM)  # 1: PR_SET_PDEATHSIG


def start_child(
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    stdin: int = subprocess.DEVNULL,
    stdout: IO[bytes] | None = None,
    stderr: IO[bytes] | int | None = None,
    cwd: str | os.PathLike[str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a command that gets SIGTERM if the thread that calls this ends, for any reason.

    Ctrl+C does not reach it: this process ends it, so that it can save its work.

    Args:
        command: program and arguments.
        environment: all its environment variables.
        stdin: as of ``subprocess.Popen``; nothing by default.
        stdout: file for its output; None: that of this process.
        stderr: file for its errors; None: that of this process.
        cwd: its current folder; None: that of this process.
    """
    parent = os.getpid()

    def prepare() -> None:
        end_with_parent()
        if os.getppid() != parent:  # it died before
            os._exit(128 + signal.SIGTERM)

    return subprocess.Popen(
        command, env=environment, stdin=stdin, stdout=stdout, stderr=stderr, cwd=cwd, start_new_session=True,
        preexec_fn=prepare if sys.platform == "linux" else None,
    )  # fmt: skip


@contextmanager
def sigterm_raised() -> Iterator[None]:
    """Let SIGTERM raise SystemExit in this context, so that child processes can be ended first."""

    def end(*_: object) -> None:
        raise SystemExit(TERMINATED)

    main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGTERM, end) if main else None
    try:
        yield
    finally:
        if main:
            signal.signal(signal.SIGTERM, handler)
