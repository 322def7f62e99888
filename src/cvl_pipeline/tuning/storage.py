"""Where a study lives: a journal file, or a database that several machines reach."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cvl_pipeline.errors import InputError, causes
from cvl_pipeline.io.storage import shown

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StudyLocation:
    """A journal file, or the URL of a database in its place.

    The URL may hold a password, so it is never printed and never written to a file.
    """

    journal: Path
    url: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        """What may be shown: the file, or the URL without its password."""
        if self.url is None:
            return shown(self.journal)
        from sqlalchemy.engine import make_url
        from sqlalchemy.exc import ArgumentError

        try:
            return make_url(self.url).render_as_string(hide_password=True)
        except ArgumentError:
            return "the database of tuning.storage"


def open_storage(location: StudyLocation) -> BaseStorage:
    """Open or begin a storage.

    Raises:
        InputError: a damaged journal, or a database that cannot be reached; nothing has been changed then.
    """
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend

    if location.url is not None:
        try:
            # Connections that a restarted server has closed are replaced, not used.
            return RDBStorage(location.url, engine_kwargs={"pool_pre_ping": True})
        except Exception as error:
            raise _unreachable(location, error) from error
    location.journal.parent.mkdir(parents=True, exist_ok=True)
    check_journal(location.journal)
    return JournalStorage(JournalFileBackend(str(location.journal)))


@contextmanager
def reachable(location: StudyLocation) -> Iterator[None]:
    """While it lasts, a database that does not answer is told in one line; raises InputError."""
    try:
        yield
    except InputError:  # says it already
        raise
    except Exception as error:
        if location.url is not None and _of_the_database(error):
            raise _unreachable(location, error) from error
        raise


def _of_the_database(error: BaseException) -> bool:
    names = {type(cause).__module__.split(".")[0] for cause in causes(error)}
    return bool(names & {"sqlalchemy", "psycopg"}) or type(error).__name__ == "StorageInternalError"


def _unreachable(location: StudyLocation, error: BaseException) -> InputError:
    """The one line about a database that does not answer, whatever its driver says of it."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    cause = " ".join(str(getattr(error, "orig", None) or error).split())
    try:
        password = make_url(str(location.url)).password
        cause = cause.replace(str(password), "***") if password else cause
    except ArgumentError:
        cause = "it is no URL; one looks like postgresql+psycopg://user:password@host/name"
    return InputError(
        f"tuning.storage: {location} cannot be used ({type(error).__name__}: {cause}); finished trials are "
        "kept there and in the study's folder: run the same command again when it can"
    )


def check_journal(path: Path) -> None:
    """Refuse a journal that is damaged, before anything is appended to it.

    A last line without its end is what a writer left that was killed: what it would have said never
    happened, and it is cut off, or the next line would be joined to it and be lost as well.

    Raises:
        InputError: a line is no JSON; with its number and what to do.
    """
    if not path.exists():
        return
    whole = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                _cut_off(path, whole)
                return
            try:
                if not isinstance(json.loads(line), dict):
                    raise ValueError("not an object")
            except ValueError as error:
                raise InputError(
                    f"{shown(path)}: line {number} is damaged ({type(error).__name__}); move the file away "
                    "and run the same command: finished trials are taken up from the records beside it"
                ) from None
            whole += len(line)


def _cut_off(path: Path, start: int) -> None:
    """Remove a last line without its end, unless another worker is just writing it."""
    from optuna.storages.journal import JournalFileSymlinkLock

    lock = JournalFileSymlinkLock(str(path))
    lock.acquire()  # Optuna's own: whoever has begun a line holds it until the line is whole
    try:
        with path.open("rb") as file:
            file.seek(start)
            rest = file.read()
        if not rest.endswith(b"\n"):
            logger.warning("%s: cut off an unfinished last line", shown(path))
            os.truncate(path, start + rest.rfind(b"\n") + 1)
    finally:
        lock.release()
