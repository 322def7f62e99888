"""Progress bar with one look for all stages."""

from __future__ import annotations

from importlib.util import find_spec

from rich import get_console
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


def progress_bar() -> Progress:
    """Create a Rich progress bar: description, done of total, elapsed and remaining time.

    A terminal and a notebook show it in place; a file or a pipe receives only its last state.
    """
    return Progress(
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
