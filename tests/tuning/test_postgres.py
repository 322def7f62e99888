"""Workers that share a study in a real PostgreSQL server on this machine."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from optuna.trial import TrialState

from cvl_pipeline.errors import InputError
from cvl_pipeline.tuning.study import FINISHED, open_study
from cvl_pipeline.tuning.worker import Specification
from tests.training.processes import linux, wait_for
from tests.tuning.studies import make_specification, make_tuning, start_worker

pytest.importorskip("pgserver", reason="no PostgreSQL for this Python")
pytestmark = [
    linux,
    # Optuna leaves its connections to the garbage collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"),
]

TRIALS = 6
SPACE = {
    # Long enough to be killed in the middle.
    "contrastive_dynamics.training.steps": {"type": "int", "low": 1500, "high": 2500},
}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server on loopback that wants a password."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("run")))
        import pgserver
        from pgserver._commands import pg_ctl

    data = tmp_path_factory.mktemp("postgres") / "data"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = pgserver.get_server(data)
    try:
        server.psql("ALTER USER postgres PASSWORD 'a secret';")
        (data / "pg_hba.conf").write_text("host all all 127.0.0.1/32 scram-sha-256\n")
        options = f"-h 127.0.0.1 -p {port} -k {data}"
        pg_ctl(["-w", "-o", options, "restart"], pgdata=data, user=server.system_user)
        yield f"postgresql+psycopg://postgres:a%20secret@127.0.0.1:{port}/postgres"
    finally:
        pg_ctl(["-w", "-m", "fast", "stop"], pgdata=data, user=server.system_user)


def specification_of(folder: Path, url: str) -> Specification:
    return make_specification(folder, make_tuning(trials=TRIALS, space=SPACE), url)


def test_a_worker_that_is_killed_is_replaced_by_the_other(tmp_path: Path, url: str) -> None:
    specification = specification_of(tmp_path, url)
    study = open_study(specification.location, "name", specification.tuning, 0)
    workers = [
        start_worker(replace(specification, index=index), tmp_path / f"{index}.log") for index in (0, 1)
    ]

    def of_the_first() -> list[int]:
        running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return [
            trial.number
            for trial in running
            if trial.params and trial.user_attrs.get("pid") == workers[0].pid
        ]

    wait_for(lambda: of_the_first() or workers[0].poll() is not None)
    number = of_the_first()[0]
    os.kill(workers[0].pid, signal.SIGKILL)
    workers[0].wait()
    assert study.trials[number].state == TrialState.RUNNING, "it was killed in the middle"
    assert workers[1].wait(timeout=240) == 0, (tmp_path / "1.log").read_text()

    trials = study.trials
    finished = [trial for trial in trials if trial.state in FINISHED]
    assert len(finished) == TRIALS
    assert all(trial.state.is_finished() for trial in trials)
    assert max(Counter(str(trial.params) for trial in finished).values()) == 1, "none twice"
    assert len({trial.user_attrs["id"] for trial in finished}) == TRIALS
    again = [trial for trial in finished if trial.user_attrs.get("retry_of") == number]
    assert [trial.params for trial in again] == [trials[number].params]
    assert len(list(specification.records.glob("*.json"))) == TRIALS
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or b"secret" not in path.read_bytes(), path


def test_a_wrong_password_is_told_without_it(tmp_path: Path, url: str) -> None:
    with pytest.raises(InputError, match=r"postgres:\*\*\*@127.0.0.1.* cannot be used") as caught:
        specification_of(tmp_path, url.replace("secret", "mistake"))
    assert "mistake" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_database_that_goes_away_loses_no_finished_trial(tmp_path: Path, url: str) -> None:
    # Another study in the same database, whose tables vanish: what the worker measures cannot be told.
    import sqlalchemy

    specification = replace(specification_of(tmp_path, url), name="other")
    other = open_study(specification.location, "other", specification.tuning, 0)
    other.set_user_attr("made_for", {})
    process = start_worker(specification, tmp_path / "0.log")
    wait_for(lambda: len([t for t in other.trials if t.state in FINISHED]) >= 1 or process.poll() is not None)
    engine = sqlalchemy.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("ALTER TABLE trials RENAME TO hidden_trials"))
    try:
        assert process.wait(timeout=120) == 2
        last = (tmp_path / "0.log").read_text().splitlines()[-1]
        assert last.startswith("Error: tuning.storage: postgresql+psycopg://postgres:***@127.0.0.1")
        assert "secret" not in (tmp_path / "0.log").read_text()
    finally:
        with engine.begin() as connection:
            connection.execute(sqlalchemy.text("ALTER TABLE hidden_trials RENAME TO trials"))
        engine.dispose()
    before = {t.number: t.values for t in other.trials if t.state in FINISHED}
    assert before
    process = start_worker(replace(specification, begun_with=len(other.trials)), tmp_path / "1.log")
    start = time.monotonic()
    assert process.wait(timeout=240) == 0, (tmp_path / "1.log").read_text()
    assert time.monotonic() - start < 240
    after = {t.number: t.values for t in other.trials if t.state in FINISHED}
    assert len(after) == TRIALS
    assert before.items() <= after.items()
