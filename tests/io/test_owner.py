"""Whether a process still runs, as other processes see it."""

from __future__ import annotations

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
