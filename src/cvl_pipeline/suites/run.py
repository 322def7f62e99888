"""Runs the units of a suite in their order, and keeps a small file about its state."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cvl_pipeline.io.owner import is_alive
from cvl_pipeline.io.storage import write_atomically
from cvl_pipeline.suites.engine import Engine, Outcome
from cvl_pipeline.suites.plan import Unit

BUSY = 5.0
"""Seconds after which a unit that another run works on is tried again."""


@dataclass
class State:
    """What a suite does right now.

    Attributes:
        total: number of its units.
        done: number of finished ones.
        failed: reasons of those that failed, by name.
        running: when those that run began, in seconds since 1970, by name.
        seconds: durations of the units that this run finished.
        dashboard: address of Dask's dashboard.
        slots: units that can run at once.
        owner: process, its start and host.
    """

    total: int
    done: int
    failed: dict[str, str] = field(default_factory=dict)
    running: dict[str, float] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    dashboard: str = ""
    slots: int = 1
    owner: dict[str, Any] = field(default_factory=dict)

    @property
    def left(self) -> float | None:
        """Seconds until all units are done, from those that this run finished; None if there are none yet."""
        if not self.seconds:
            return None
        open_units = self.total - self.done - len(self.failed)
        return sum(self.seconds) / len(self.seconds) * open_units / max(1, min(self.slots, open_units))

    def write(self, path: Path) -> None:
        """Write it to a file."""
        write_atomically(path, lambda partial: partial.write_text(json.dumps(asdict(self)) + "\n"))

    @staticmethod
    def read(path: Path) -> State | None:
        """Read a file; None if there is none, or none that can be read."""
        try:
            return State(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            return None

    @property
    def is_alive(self) -> bool | None:
        """Whether the process that wrote the file still runs; None if it is on another machine."""
        return is_alive(self.owner)


class Schedule:
    """The units that are to run, in their order: which is next, and which have to wait for another one."""

    def __init__(self, units: Iterable[Unit], done: Iterable[str]) -> None:
        """Keep the order of the units; those that are done are not run."""
        finished = set(done)
        self._waiting = [unit for unit in units if unit.name not in finished]
        self._open = {unit.name for unit in self._waiting}
        self._busy_since: dict[str, float] = {}

    def __len__(self) -> int:
        """Number of units that have not ended."""
        return len(self._open)

    def take(self) -> Unit | None:
        """Take the next unit that may start now; None if there is none."""
        now = time.monotonic()
        for unit in self._waiting:
            if unit.after not in self._open and now - self._busy_since.get(unit.name, -BUSY) >= BUSY:
                self._waiting.remove(unit)
                return unit
        return None

    def end(self, unit: Unit, outcome: Outcome) -> list[Unit]:
        """Note the end of a unit; return those that cannot run any more, because it failed."""
        if outcome.state == "busy":
            self._busy_since[unit.name] = time.monotonic()
            self._waiting.append(unit)
            return []
        self._open.discard(unit.name)
        if outcome.state == "done":
            return []
        lost = [other for other in self._waiting if other.after == unit.name]
        self._waiting = [other for other in self._waiting if other not in lost]
        return [*lost, *(other for part in lost for other in self.end(part, outcome))]


def run_units(
    engine: Engine,
    schedule: Schedule,
    state: State,
    report: Callable[[str], None],
    changed: Callable[[], None],
) -> None:
    """Run units until all have ended.

    No more units are submitted than can run: Dask blames the death of a worker on all tasks that it has.

    Args:
        engine: runs them.
        schedule: their order.
        state: is kept up to date.
        report: receives a line for each unit that ends.
        changed: is called about once a second, and whenever a unit ends.
    """
    while len(schedule):
        state.slots = engine.slots
        while len(state.running) < state.slots and (following := schedule.take()) is not None:
            engine.submit(following)
            state.running[following.name] = time.time()
        for unit, outcome in engine.poll(1.0):
            del state.running[unit.name]
            lost = schedule.end(unit, outcome)
            if outcome.state == "done":
                state.done += 1
                state.seconds.append(outcome.seconds)
                report(f"{unit.name}: {outcome.text} ({outcome.seconds:.0f} s)")
            elif outcome.state != "busy":
                state.failed[unit.name] = outcome.text
                report(f"{unit.name}: {outcome.state}: {outcome.text}")
            for other in lost:
                state.failed[other.name] = f"not run, because {unit.name} failed"
        changed()
