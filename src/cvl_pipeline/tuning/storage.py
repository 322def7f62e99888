"""Storage of a study: a journal file, or a database that several machines can reach."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cvl_pipeline.errors import InputError, causes, masked
from cvl_pipeline.io.storage import check_file, shown

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StudyLocation:
    """A journal file, or the URL of a database to use instead.

    The URL may contain a password, so it is never printed or written to a file.
    """

    journal: Path
    url: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Refuse a URL that libraries would read in another way than its author meant.

        Raises:
            InputError: it is no URL, or its user, password or port has a character that must be escaped. The
                message does not contain the URL, because the place of its password is unknown.
        """
        if self.url is None:
            return
        parts = re.fullmatch(r"[\w+]+://([^/?#\s]*)([/?]\S*)?", self.url)
        user, _, host = (parts[1] if parts else "@@").rpartition("@")
        port = re.fullmatch(r"(?:\[[\w:.%]+\]|[^:\[\]]*)(?::(\d{1,5}))?", host)
        if "@" in user or port is None or int(port[1] or 0) > 65535:
            raise InputError(
                "tuning.storage: the url of its entry in credentials.yml must have the form "
                "driver://user:password@host:port/database; write @ : / ? # % and blanks in a user or "
                "password as %40 %3A %2F %3F %23 %25 and %20"
            )

    def __str__(self) -> str:
        """The file, or the URL without its password."""
        return shown(self.journal) if self.url is None else masked(self.url)


def open_storage(location: StudyLocation) -> BaseStorage:
    """Open or create a storage.

    Raises:
        InputError: the journal is damaged, or the database cannot be reached. Nothing is changed then.
    """
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend

    if location.url is not None:
        try:
            # Replace connections that a restarted server has closed.
            return RDBStorage(location.url, engine_kwargs={"pool_pre_ping": True})
        except Exception as error:
            raise _unreachable(location, error) from error
    location.journal.parent.mkdir(parents=True, exist_ok=True)
    check_journal(location.journal)
    return JournalStorage(JournalFileBackend(str(location.journal)))


@contextmanager
def reachable(location: StudyLocation) -> Iterator[None]:
    """Convert the errors of a database that does not answer to an InputError of one line."""
    try:
        yield
    except InputError:  # already one line
        raise
    except Exception as error:
        if location.url is not None and _of_the_database(error):
            raise _unreachable(location, error) from error
        raise


def _of_the_database(error: BaseException) -> bool:
    names = {type(cause).__module__.split(".")[0] for cause in causes(error)}
    return bool(names & {"sqlalchemy", "psycopg"}) or type(error).__name__ == "StorageInternalError"


def _unreachable(location: StudyLocation, error: BaseException) -> InputError:
    """Create the one-line error for a database that does not answer."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    cause = " ".join(str(getattr(error, "orig", None) or error).split())
    try:
        url = make_url(str(location.url))
        secrets = [
            url.password,
            *(value for name, value in url.query.items() if masked(f"?{name}=x") != f"?{name}=x"),
        ]
        for secret in filter(None, map(str, secrets)):
            cause = cause.replace(secret, "***")
    except ArgumentError:
        cause = "it is not a URL such as postgresql+psycopg://user:password@host/name"
    return InputError(
        f"tuning.storage: {location} cannot be used ({type(error).__name__}: {cause}); run the same "
        "command again once it works: finished trials are stored there and in the study's folder"
    )


def check_journal(path: Path) -> None:
    """Refuse a damaged journal before anything is appended to it.

    A killed writer may leave an incomplete last line, which never took effect. It is deleted; otherwise, the
    next line would be joined to it and lost too.

    Raises:
        InputError: it is no file, or a line is not JSON; the message gives its number and the fix.
    """
    check_file(path)
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
                    "and run the same command: finished trials are restored from the records beside it"
                ) from None
            whole += len(line)


def _cut_off(path: Path, start: int) -> None:
    """Delete an incomplete last line, unless another worker is writing it."""
    from optuna.storages.journal import JournalFileSymlinkLock

    lock = JournalFileSymlinkLock(str(path))
    lock.acquire()  # Optuna's: a writer holds it until its line is complete
    try:
        with path.open("rb") as file:
            file.seek(start)
            rest = file.read()
        if not rest.endswith(b"\n"):
            logger.warning("%s: deleted an incomplete last line", shown(path))
            os.truncate(path, start + rest.rfind(b"\n") + 1)
    finally:
        lock.release()
