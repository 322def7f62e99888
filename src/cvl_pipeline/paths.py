"""Paths of the user."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from cvl_pipeline.errors import InputError


def expanded(path: Path | str) -> Path:
    """Return a path with ``~`` and ``~user`` replaced by the home folder.

    Raises:
        InputError: the system knows no such user, and there is nothing of that name.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        if Path(path).exists():  # a file whose name begins with ~
            return Path(path)
        user = Path(path).parts[0]
        raise InputError(f"{path}: there is no home folder '{user}'; write the whole path") from None


def _at_home(path: str) -> str:
    return str(expanded(path)) if path.startswith("~") else path


UserPath = Annotated[str, AfterValidator(_at_home)]
"""A parameter that is a path: ``~`` and ``~user`` become the home folder."""
