"""Whether finished training leaves its checkpoints, because its result is not stored yet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_kept: ContextVar[bool] = ContextVar("kept", default=False)


def checkpoints_are_kept() -> bool:
    """Whether the caller of the training deletes its checkpoints."""
    return _kept.get()


@contextmanager
def kept_checkpoints(kept: bool = True) -> Iterator[None]:
    """Let finished training in this context leave its checkpoints.

    The caller deletes them as soon as the result is stored. If it cannot be stored, or the process is killed before,
    the same training resumes from the last checkpoint.
    """
    token = _kept.set(kept)
    try:
        yield
    finally:
        _kept.reset(token)
