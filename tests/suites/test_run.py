"""The order in which units run, and the state that the commands show; without a cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from cvl_pipeline.io.owner import owner
from cvl_pipeline.suites import run
from cvl_pipeline.suites.engine import Outcome, shares
from cvl_pipeline.suites.plan import Unit
from cvl_pipeline.suites.progress import display, duration, status_lines
from cvl_pipeline.suites.run import Schedule, State, run_units
from tests.suites.test_plan import make_plan


class Fake:
    """Runs a unit at each poll."""

    def __init__(self, slots: int, outcomes: dict[str, list[str]] | None = None) -> None:
        self.slots = slots
        self.outcomes = outcomes or {}
        self.submitted: list[str] = []
        self.running: list[Unit] = []

    def submit(self, unit: Unit) -> None:
        self.submitted.append(unit.name)
        self.running.append(unit)
        assert len(self.running) <= self.slots

    def poll(self, seconds: float) -> list[tuple[Unit, Outcome]]:
        if not self.running:
            return []
        unit = self.running.pop(0)
        states = self.outcomes.get(unit.name, [])
        return [(unit, Outcome(states.pop(0) if states else "done", "text", 2.0))]  # type: ignore[arg-type]


def ended(engine: Fake, *done: str) -> tuple[State, list[str]]:
    units = make_plan(tasks=["a", "b"], methods=[["bc"], ["iql"]]).units()
    state, lines = State(len(units), len(done)), list[str]()
    run_units(engine, Schedule(units, done), state, lines.append, lambda: None)
    return state, lines


def test_units_run_in_their_order_and_after_those_that_they_need() -> None:
    engine = Fake(slots=3)
    state, lines = ended(engine)
    assert engine.submitted == [
        "a_mixed_seed0_x1",
        "b_mixed_seed0_x1",
        "a_mixed_seed0_x1.1",
        "b_mixed_seed0_x1.1",
    ]
    assert (state.done, state.failed, state.running) == (4, {}, {})
    assert lines[0] == "a_mixed_seed0_x1: text (2 s)"


def test_finished_units_are_not_run_and_those_after_them_may_begin() -> None:
    engine = Fake(slots=1)
    ended(engine, "a_mixed_seed0_x1")
    assert engine.submitted == ["b_mixed_seed0_x1", "a_mixed_seed0_x1.1", "b_mixed_seed0_x1.1"]


def test_a_failed_unit_takes_only_those_with_it_that_need_it() -> None:
    engine = Fake(slots=1, outcomes={"a_mixed_seed0_x1": ["failed"]})
    state, lines = ended(engine)
    assert state.failed == {
        "a_mixed_seed0_x1": "text", "a_mixed_seed0_x1.1": "not run, because a_mixed_seed0_x1 failed",
    }  # fmt: skip
    assert state.done == 2
    assert "a_mixed_seed0_x1: failed: text" in lines


def test_a_unit_that_another_run_works_on_is_tried_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "BUSY", 0.05)
    engine = Fake(slots=1, outcomes={"a_mixed_seed0_x1": ["busy", "busy"]})
    state, lines = ended(engine)
    assert engine.submitted.count("a_mixed_seed0_x1") == 3
    assert engine.submitted[1] == "b_mixed_seed0_x1"
    assert (state.done, len(lines)) == (4, 4)


@pytest.mark.parametrize(
    ("jobs", "threads", "devices", "cores", "expected"),
    [
        (None, None, 0, 8, (8, 1)), (None, 2, 0, 8, (4, 2)), (None, None, 2, 8, (2, 4)), (3, None, 0, 8, (3, 2)),
        (None, 16, 0, 8, (1, 16)), (9, None, 0, 8, (9, 1)),
    ],
)  # fmt: skip
def test_cores_and_devices_are_shared(
    jobs: int | None, threads: int | None, devices: int, cores: int, expected: tuple[int, int]
) -> None:
    assert shares(jobs, threads, devices, cores) == expected


def test_the_state_says_whether_its_process_runs(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    assert State.read(path) is None
    state = State(
        4, 1, owner=owner(), running={"a": 0.0}, failed={"b": "why"}, seconds=[60.0, 120.0], slots=2
    )
    state.write(path)
    read = State.read(path)
    assert read == state
    assert read.is_alive
    assert read.left == 90.0
    assert State(4, 1, owner={**owner(), "pid": 2**22 + 1}).is_alive is False
    assert State(4, 1, owner={**owner(), "started": 0.0}).is_alive is False
    assert State(4, 1, owner={**owner(), "host": "elsewhere"}).is_alive is None
    lines = status_lines("mine", state, "data/x")
    assert lines[0] == "mine: 1 of 4 units done, 1 running, 1 failed, 1 to do; time left: 2 min"
    assert "failed   b: why" in lines
    path.write_text("{")
    assert State.read(path) is None


def test_the_display_prints_lines_and_leaves_nothing_running(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = State(4, 1, running={"a": 0.0})
    with display("mine", state, tmp_path / "state.json") as (report, changed):
        report("a[0]: done")
        changed()
    assert capsys.readouterr().out == "1/4 a[0]: done\n"
    read = State.read(tmp_path / "state.json")
    assert read is not None
    assert read.running == {}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "unknown until a unit ends"), (12.0, "12 s"), (600.0, "10 min"), (7500.0, "2 h 05 min")],
)
def test_durations_are_readable(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text
