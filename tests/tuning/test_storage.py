from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest
from optuna.storages.journal import JournalFileSymlinkLock

from cvl_pipeline.errors import InputError
from cvl_pipeline.tuning.storage import StudyLocation, check_journal, open_storage
from cvl_pipeline.tuning.study import open_study
from tests.tuning.studies import make_specification, make_tuning


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """The journal of a started study."""
    return make_specification(tmp_path, make_tuning()).location.journal


def test_incomplete_last_line_of_a_killed_writer_is_deleted(journal: Path) -> None:
    whole = journal.read_bytes()
    journal.write_bytes(whole + whole.splitlines()[-1][:20])
    study = open_study(StudyLocation(journal), "name", make_tuning(), 0)
    assert journal.read_bytes().startswith(whole)
    study.enqueue_trial({})
    check_journal(journal)  # the next line is not joined to it
    assert len(open_study(StudyLocation(journal), "name", make_tuning(), 0).trials) == len(study.trials)


def test_line_that_another_worker_is_writing_is_kept(journal: Path) -> None:
    whole = journal.read_bytes()
    line = whole.splitlines(keepends=True)[-1]
    lock = JournalFileSymlinkLock(str(journal))
    lock.acquire()
    journal.write_bytes(whole + line[:20])

    def finish() -> None:
        with journal.open("ab") as file:
            file.write(line[20:])
        lock.release()

    timer = threading.Timer(0.3, finish)
    timer.start()
    check_journal(journal)
    timer.join()
    assert journal.read_bytes() == whole + line


@pytest.mark.parametrize("line", [b'{"op_code": 0, "wor\n', b"\x00\xff\n", b"3\n"])
def test_damaged_line_is_named_and_the_journal_stays_unchanged(journal: Path, line: bytes) -> None:
    lines = journal.read_bytes().splitlines(keepends=True)
    lines[1] = line
    damaged = b"".join(lines)
    journal.write_bytes(damaged)
    with pytest.raises(InputError, match=r"journal\.log: line 2 is damaged .*records beside it"):
        open_storage(StudyLocation(journal))
    assert journal.read_bytes() == damaged


def test_message_about_an_unreachable_database_hides_its_password() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    location = StudyLocation(Path("unused"), f"postgresql+psycopg://me:secret@127.0.0.1:{port}/db")
    with pytest.raises(InputError) as caught:
        open_storage(location)
    message = str(caught.value)
    assert f"postgresql+psycopg://me:***@127.0.0.1:{port}/db cannot be used" in message
    assert "\n" not in message
    assert "secret" not in message
    assert "secret" not in repr(location)


@pytest.mark.parametrize(
    "url",
    [
        "postgres at home",
        "postgresql+psycopg://me:sec@ret@host/db",
        "postgresql+psycopg://me:sec/ret@host/db",
        "postgresql+psycopg://me:sec?ret@host/db",
        "postgresql+psycopg://me:sec#ret@host/db",
        "postgresql+psycopg://me:secret@host:54x32/db",
        "postgresql+psycopg://me:secret@host:99999/db",
        "postgresql+psycopg://me:secret",
        "postgresql+psycopg://me:sec ret@host/db",
    ],
)
def test_a_url_that_others_would_read_differently_is_refused_without_its_text(url: str) -> None:
    with pytest.raises(
        InputError, match=r"tuning\.storage: the url .* must have the form driver://"
    ) as caught:
        StudyLocation(Path("unused"), url)
    assert not any(part in str(caught.value) for part in ("sec", "ret@", "54x32"))


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://me:s%40cret@host:5432/db",
        "postgresql+psycopg://[::1]:5432/db",
        "sqlite:////tmp/a@b.db",
    ],
)
def test_usual_urls_are_accepted(url: str) -> None:
    assert "cret" not in str(StudyLocation(Path("unused"), url))


def test_unknown_database_is_refused() -> None:
    location = StudyLocation(Path("unused"), "nosuchdatabase://me:secret@host/db?sslpassword=secret2")
    with pytest.raises(InputError, match="cannot be used") as caught:
        open_storage(location)
    assert "secret" not in f"{caught.value} {location}"
