"""Whether a process still runs, as other processes see it."""

from __future__ import annotations

import psutil
import pytest

from cvl_pipeline.io.owner import is_alive, owner


def test_a_process_runs_if_it_is_the_one_that_began_then() -> None:
    assert is_alive(owner())
    assert is_alive({**owner(), "pid": 2**22 + 1}) is False
    assert is_alive({**owner(), "started": 0.0}) is False, "its number was given to another process"


def test_a_process_whose_start_is_unknown_does_not_count() -> None:
    assert is_alive({name: value for name, value in owner().items() if name != "started"}) is False


def test_nothing_is_known_about_a_process_on_another_machine() -> None:
    assert is_alive({**owner(), "host": "elsewhere"}) is None
    assert is_alive({}) is None


def test_nothing_is_known_about_a_process_in_another_container() -> None:
    assert is_alive({**owner(), "namespace": "1"}) is None
    assert is_alive({**owner(), "namespace": "1", "pid": 2**22 + 1}) is None


def test_no_process_survives_a_restart_of_the_machine() -> None:
    assert is_alive({**owner(), "boot": "before"}) is False


def test_a_process_runs_on_after_the_clock_was_set(monkeypatch: pytest.MonkeyPatch) -> None:
    before = owner()
    create_time, boot_time = psutil.Process.create_time, psutil.boot_time
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: create_time(self) + 3600.0)
    monkeypatch.setattr(psutil, "boot_time", lambda: boot_time() + 3600.0)
    assert is_alive(before)


def test_records_of_older_versions_are_read() -> None:
    record = {key: value for key, value in owner().items() if key in ("host", "pid")}
    assert is_alive({**record, "started": psutil.Process().create_time()})
    assert is_alive({**record, "started": 0.0}) is False
    assert is_alive(record) is False
