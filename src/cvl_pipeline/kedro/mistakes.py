"""Errors that are no defects of the program, in one line."""

from __future__ import annotations

from pathlib import Path

from cvl_pipeline.errors import InputError, causes
from cvl_pipeline.imports import fault_of_user_code
from cvl_pipeline.io.storage import FULL, REFUSED, refusal, shown


def mistake(error: BaseException) -> str | None:
    """Return the line for the user about an error: of input, of the disk, or of code of their own; else None."""
    from cvl_pipeline.training.launch import TrainingError  # not above: it imports torch

    for cause in causes(error):
        # Training that diverged, or lost a process, is no defect either.
        if isinstance(cause, InputError | FloatingPointError | TrainingError):
            return str(cause)
        if isinstance(cause, OSError) and cause.errno in (*FULL, *REFUSED):
            # A file that is no artifact, such as a log. Only a full disk shows that it was written.
            place = shown(Path(cause.filename)) if cause.filename else "a file"
            verb = "write" if cause.errno in FULL else "read or write"
            return f"cannot {verb} {place}: {refusal(cause)}"
    return next((fault for cause in causes(error) if (fault := fault_of_user_code(cause)) is not None), None)
