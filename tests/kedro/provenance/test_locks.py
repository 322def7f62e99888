from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable
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


@pytest.mark.parametrize("deleted", ["toy/seed_0.lock", "toy", "."])
def test_a_second_run_is_kept_out_although_the_lock_file_was_deleted(tmp_path: Path, deleted: str) -> None:
    path = tmp_path / "data/.locks/toy/seed_0.lock"
    with lock_holder(path) as holder:
        place = tmp_path / "data/.locks" / deleted
        place.unlink() if place.is_file() else shutil.rmtree(place)
        with pytest.raises(InputError, match=r"^data is in use by another run"):
            acquire(path, "data")
        release(acquire(path.with_name("seed_1.lock"), "data"))
        holder.kill()
        holder.wait()
        release(acquire(path, "data"))


def test_data_that_two_paths_lead_to_have_one_lock(tmp_path: Path) -> None:
    path = tmp_path / "data/.locks/toy/seed_0.lock"
    (tmp_path / "link").symlink_to("data")
    with lock_holder(path), pytest.raises(InputError, match="in use"):
        acquire(tmp_path / "link/.locks/toy/seed_0.lock", "data")


@pytest.fixture
def nameless(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock file alone, as on other systems than Linux and between machines."""
    monkeypatch.setattr(locks.Lock, "_take_name", lambda _: None)


@pytest.mark.usefixtures("nameless")
def test_a_run_locks_its_file_again_if_it_was_deleted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "data/.locks/toy/seed_0.lock"
    lock = acquire(path, "data")
    lock.check()
    assert not caplog.messages
    shutil.rmtree(path.parent)
    lock.check()
    assert caplog.messages == [f"{path} was deleted or replaced during this run; it is locked again"]
    with pytest.raises(InputError, match=f"process {os.getpid()} on"):
        acquire(path, "data")
    release(lock)
    release(acquire(path, "data"))


@pytest.mark.usefixtures("nameless")
def test_a_run_stops_before_it_writes_if_another_one_took_its_lock(tmp_path: Path) -> None:
    path = tmp_path / "data/.locks/toy/seed_0.lock"
    lock = acquire(path, "data")
    path.unlink()
    with (
        lock_holder(path) as other,
        pytest.raises(InputError, match=f"in use by another run .*process {other.pid} on"),
    ):
        lock.check()
    release(lock)


@pytest.mark.usefixtures("nameless")
def test_a_lock_file_that_is_deleted_just_before_it_is_locked_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, flock = tmp_path / "lock", fcntl.flock

    def late(descriptor: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        path.unlink()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    lock = acquire(path, "data")
    assert json.loads(path.read_text())["pid"] == os.getpid()
    with pytest.raises(InputError, match="in use"):
        acquire(path, "data")
    release(lock)


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        ("a link", lambda path, precious: path.symlink_to(precious)),
        ("a link", lambda path, _: path.symlink_to("nowhere")),
        ("a file with several names", lambda path, precious: path.hardlink_to(precious)),
        ("a folder", lambda path, _: path.mkdir()),
        ("a named pipe", lambda path, _: os.mkfifo(path)),
    ],
)
def test_only_a_plain_file_is_locked(tmp_path: Path, kind: str, make: Callable[[Path, Path], object]) -> None:
    path, precious = tmp_path / "lock", tmp_path / "precious"
    precious.write_text("precious")
    make(path, precious)
    with pytest.raises(InputError) as caught:
        acquire(path, "data")
    assert str(caught.value) == f"{path} is {kind}, but must be a file of its own: delete it, then run again"
    assert precious.read_text() == "precious"
    assert not (tmp_path / "nowhere").exists()


def test_a_folder_that_cannot_have_a_lock_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        InputError, match=rf"^cannot lock {tmp_path}/file/x/lock: {tmp_path}/file.*: "
    ) as caught:
        acquire(tmp_path / "file/x/lock", "data")
    assert "\n" not in str(caught.value)

    def refuse(*_: Any) -> int:
        raise OSError(errno.EROFS, "Read-only file system", str(tmp_path / "lock"))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(
        InputError, match=rf"^cannot lock {tmp_path}/lock: Read-only file system; make the folder"
    ):
        acquire(tmp_path / "lock", "data")


def test_a_folder_of_locks_may_be_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data/.locks").symlink_to(tmp_path / "elsewhere")
    with lock_holder(tmp_path / "data/.locks/toy/seed_0.lock"), pytest.raises(InputError, match="in use"):
        acquire(tmp_path / "data/.locks/toy/seed_0.lock", "data")


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
