"""Progress bar with one look for all stages."""

from __future__ import annotations

import time
from importlib.util import find_spec
from typing import Any

from rich import get_console
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

FIRST, LAST = 2.0, 60.0
"""Seconds between two lines of a bar outside of a terminal: at first, and at most."""


class _Bar(Progress):
    """A bar that a file or a pipe receives as lines, more and more rarely. Rich writes only its last state there."""

    def start(self) -> None:
        """Show the bar."""
        self._wait, self._line = FIRST, time.monotonic() + FIRST
        super().start()

    def update(self, task_id: TaskID, **changes: Any) -> None:
        """Move the bar to a state."""
        super().update(task_id, **changes)
        self._write(task_id)

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """Move the bar on."""
        super().advance(task_id, advance)
        self._write(task_id)

    def _write(self, task_id: TaskID) -> None:
        """Write a line, if it is time to and nobody sees the bar move."""
        if self.live.is_started and not self.console.is_interactive and time.monotonic() >= self._line:
            task = self._tasks[task_id]
            if not task.finished:
                self.console.print(self.make_tasks_table([task]))
            self._wait = min(2 * self._wait, LAST)
            self._line = time.monotonic() + self._wait


def progress_bar() -> Progress:
    """Create a Rich progress bar: description, done of total, elapsed and remaining time.

    A terminal and a notebook show it in place. A file or a pipe receives a line after two seconds, then more and more
    rarely, and its last state.
    """
    return _Bar(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=_console(),
    )


def _console() -> Console:
    """The console of Rich; in a notebook without widgets, one that writes text: Rich's would warn, and show nothing."""
    console = get_console()
    if console.is_jupyter and find_spec("ipywidgets") is None:
        return Console(force_jupyter=False)
    return console
