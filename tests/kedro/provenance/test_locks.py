from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from cvl_pipeline.errors import InputError
from cvl_pipeline.io.location import Location
from cvl_pipeline.io.storage import HOST
from cvl_pipeline.kedro.provenance import locks
from cvl_pipeline.kedro.provenance.locks import GONE, Lease, acquire, release
from tests.kedro.provenance.holders import lease_holder, lock_holder
from tests.s3 import Bucket
from tests.training.processes import wait_for


@pytest.mark.parametrize("child", [False, True])
def test_a_lock_blocks_others_with_the_name_of_its_process_until_this_ends(
    tmp_path: Path, child: bool
) -> None:
    path = tmp_path / "new/seed_0.lock"
    with lock_holder(path, child=child) as holder:
        message = rf"^data is in use by .*process {holder.pid} on \S+, since 20\S+\)"
        with pytest.raises(InputError, match=message) as caught:
            acquire(path, "data")
        assert "\n" not in str(caught.value)
        release(acquire(tmp_path / "seed_1.lock", "data"))
        holder.kill()
        holder.wait()
        release(acquire(path, "data"))


def test_two_runs_of_one_process_are_kept_apart_too(tmp_path: Path) -> None:
    first = acquire(tmp_path / "lock", "data")
    with pytest.raises(InputError, match=f"process {os.getpid()} on"):
        acquire(tmp_path / "lock", "data")
    release(first)
    release(acquire(tmp_path / "lock", "data"))


def test_without_locks_of_the_file_system_a_run_continues_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    release(acquire(tmp_path / "lock", "data"))
    (told,) = caplog.messages
    assert told.startswith("data cannot be locked (OSError")
    assert told.endswith("No locks available); do not start another run on it")


def test_a_holder_that_has_not_yet_written_its_name_holds_the_lock(tmp_path: Path) -> None:
    first = acquire(tmp_path / "lock", "data")
    (tmp_path / "lock").write_text("")
    with pytest.raises(InputError, match="it has just started"):
        acquire(tmp_path / "lock", "data")
    release(first)


@pytest.fixture
def lock(bucket: Bucket, tmp_path: Path) -> Location:
    return Location(f"{bucket.url}/.locks/seed_0.lock", bucket.options, tmp_path)


def _write(lock: Location, **changes: Any) -> None:
    """A lease of a run on another machine."""
    holder = {"pid": 99999999, "host": "elsewhere", "machine": "elsewhere", "since": "2026-01-01"}
    lock.write(json.dumps(holder | {"token": "x", "renewed": time.time()} | changes))


def test_a_lease_blocks_others_until_it_is_released(lock: Location) -> None:
    lease = Lease(lock, "data")
    with pytest.raises(InputError, match=rf"^data is in use by .*process {os.getpid()} on {HOST}, since 20"):
        Lease(lock, "data")
    lease.check()
    lease.release()
    assert lock.read() is None
    Lease(lock, "data").release()


def test_a_lease_of_another_container_of_the_same_name_is_respected(lock: Location) -> None:
    _write(lock, host=HOST)
    with pytest.raises(InputError, match="process 99999999 on"):
        Lease(lock, "data")


def test_a_lease_of_another_machine_is_respected_as_long_as_it_is_renewed(lock: Location) -> None:
    _write(lock, renewed=time.time() - GONE + 60)
    with pytest.raises(InputError, match="process 99999999 on elsewhere, since 2026-01-01"):
        Lease(lock, "data")


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"machine": 1, "pid": "x"}'])
def test_a_file_that_no_run_has_written_blocks_nobody(lock: Location, content: str) -> None:
    lock.write(content)
    Lease(lock, "data").release()


def test_a_lease_that_is_no_longer_renewed_is_taken_over(lock: Location) -> None:
    _write(lock, renewed=time.time() - GONE - 1)
    lease = Lease(lock, "data")
    assert json.loads(lock.read() or "")["pid"] == os.getpid()
    lease.release()


def test_the_lease_of_a_killed_run_of_this_machine_is_taken_over_at_once(lock: Location) -> None:
    with lease_holder(lock.filepath, dict(lock.options)) as holder:
        with pytest.raises(InputError, match=f"process {holder.pid} on"):
            Lease(lock, "data")
        holder.kill()
        holder.wait()
        Lease(lock, "data").release()


def test_only_one_of_two_runs_can_take_a_lease_over(lock: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(lock, renewed=0.0)
    monkeypatch.setattr(time, "sleep", lambda _: _write(lock))  # the other is a moment later
    with pytest.raises(InputError, match="process 99999999 on elsewhere"):
        Lease(lock, "data")


def test_a_lease_is_renewed_and_its_loss_is_noticed(lock: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "RENEWAL", 0.05)
    lease = Lease(lock, "data")
    first = json.loads(lock.read() or "")["renewed"]
    wait_for(lambda: json.loads(lock.read() or "")["renewed"] > first)
    lock.remove()  # someone cleaned up; nobody else has it
    wait_for(lambda: lock.read() is not None)
    lease.check()

    def is_lost() -> bool:
        _write(lock)  # a renewal may have been under way
        return lease._lost

    wait_for(is_lost)
    with pytest.raises(InputError, match="data has been taken over by another run"):
        lease.check()
    lease.release()
    assert json.loads(lock.read() or "")["host"] == "elsewhere"


def test_a_lease_outlives_a_network_that_fails_for_a_while(
    lock: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "RENEWAL", 0.05)
    lease = Lease(lock, "data")
    failures = []

    def fail(*_: Any, **__: Any) -> None:
        failures.append(1)
        raise ConnectionError("dead")

    with monkeypatch.context() as patch:
        patch.setattr(lock._system, "cat_file", fail)
        wait_for(lambda: len(failures) > 2)
    renewed = json.loads(lock.read() or "")["renewed"]
    wait_for(lambda: json.loads(lock.read() or "")["renewed"] > renewed)
    lease.check()
    lease.release()
    assert lock.read() is None
