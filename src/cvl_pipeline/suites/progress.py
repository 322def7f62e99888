"""The live table of a suite, and the lines of its status."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table

from cvl_pipeline.suites.run import State


def duration(seconds: float | None) -> str:
    """Format seconds, such as ``2 h 05 min``."""
    if seconds is None:
        return "unknown until a unit ends"
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def status_lines(name: str, state: State, folder: str) -> list[str]:
    """Lines on a suite: counts, what runs, what failed.

    Args:
        name: of the suite.
        state: of the suite.
        folder: of the units' data, which hold their logs.
    """
    open_units = state.total - state.done - len(state.failed) - len(state.running)
    counts = (
        f"{name}: {state.done} of {state.total} units done, {len(state.running)} running, {len(state.failed)} failed, "
        f"{open_units} to do"
    )
    lines = [counts]
    if state.running:
        lines[0] += f"; time left: {duration(state.left)}"
        lines.append(f"dashboard: {state.dashboard}")
    now = time.time()
    lines += [f"running  {unit} ({duration(now - since)})" for unit, since in state.running.items()]
    lines += [f"failed   {unit}: {reason}" for unit, reason in state.failed.items()]
    lines.append(f"logs: {folder}/<cell>/run.log")
    return lines


def _table(name: str, state: State) -> Table:
    table = Table(
        title=f"{name}: {state.done} done, {len(state.running)} running, {len(state.failed)} failed, of {state.total}; "
        f"time left: {duration(state.left)}",
        caption=state.dashboard,
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("running")
    table.add_column("for", justify="right")
    now = time.time()
    for unit, since in sorted(state.running.items()):
        table.add_row(unit, duration(now - since))
    return table


@contextmanager
def display(
    name: str, state: State, path: Path
) -> Iterator[tuple[Callable[[str], None], Callable[[], None]]]:
    """Show a live table in a terminal; elsewhere, print only lines. Keep the file of the state up to date.

    Yields:
        A function that prints a line, and one that shows the state.
    """
    console = Console(highlight=False, soft_wrap=True)
    live = Live(console=console, refresh_per_second=1, transient=True) if console.is_terminal else None
    written = 0.0

    def changed() -> None:
        nonlocal written
        if live is not None:
            live.update(_table(name, state))
        if time.monotonic() - written > 1.0:
            state.write(path)
            written = time.monotonic()

    def report(line: str) -> None:
        console.print(f"{state.done + len(state.failed)}/{state.total} {line}", markup=False)

    state.write(path)
    try:
        if live is None:
            yield report, changed
        else:
            with live:
                yield report, changed
    finally:
        state.running = {}
        state.write(path)
