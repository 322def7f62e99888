"""Progress of reading a log."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cvl_pipeline.training.progress import progress_bar

LARGE = 1 << 27
"""Size in bytes from which reading a log shows a progress bar."""


@contextmanager
def progress(description: str, total: int, size: int) -> Iterator[Callable[[int], None]]:
    """Show a progress bar if a log is large.

    Args:
        description: what is read.
        total: number of rows to read, summed over columns.
        size: bytes of the log.

    Returns:
        A function that is called with the number of rows that were read.
    """
    if size < LARGE:
        yield lambda rows: None
        return
    with progress_bar() as bar:
        task = bar.add_task(description, total=total)
        yield lambda rows: bar.advance(task, rows)
