from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cvl_pipeline.errors import InputError
from cvl_pipeline.provenance.locks import acquire, release

HOLD = """
import os, sys, time
from pathlib import Path
from cvl_pipeline.provenance.locks import acquire
file = acquire(Path(sys.argv[1]), "data")
ours, childs = os.pipe()
if len(sys.argv) > 2:
    if os.fork() == 0:
        os.write(childs, b"forked")
        time.sleep(5)  # outlives its parent
        os._exit(0)
    os.read(ours, 6)
print("held", flush=True)
time.sleep(600)
"""


@contextmanager
def _holder(path: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), *arguments], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_the_second_is_told_who_holds_it(tmp_path: Path) -> None:
    path = tmp_path / "new/seed_0.lock"
    with _holder(path) as holder:
        told = rf"^data is in use by .*process {holder.pid} on \S+, since 20\S+\)"
        with pytest.raises(InputError, match=told) as caught:
            acquire(path, "data")
        assert "\n" not in str(caught.value)
        release(acquire(tmp_path / "seed_1.lock", "data"))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("arguments", [[], ["with a child"]])
def test_it_vanishes_with_its_process_however_that_dies(
    tmp_path: Path, number: signal.Signals, arguments: list[str]
) -> None:
    with _holder(tmp_path / "lock", *arguments) as holder:
        holder.send_signal(number)
        holder.wait()
        release(acquire(tmp_path / "lock", "data"))


def test_two_runs_of_one_process_are_kept_apart_too(tmp_path: Path) -> None:
    first = acquire(tmp_path / "lock", "data")
    with pytest.raises(InputError, match=f"process {os.getpid()} on"):
        acquire(tmp_path / "lock", "data")
    release(first)
    release(acquire(tmp_path / "lock", "data"))


def test_where_there_are_no_locks_a_run_is_warned_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    release(acquire(tmp_path / "lock", "data"))
    (told,) = caplog.messages
    assert told.startswith("data cannot be locked (OSError")
    assert told.endswith("No locks available): start no other run of it")


def test_a_process_that_has_not_yet_said_who_it_is_holds_it(tmp_path: Path) -> None:
    first = acquire(tmp_path / "lock", "data")
    (tmp_path / "lock").write_text("")
    with pytest.raises(InputError, match="it has just started"):
        acquire(tmp_path / "lock", "data")
    release(first)
