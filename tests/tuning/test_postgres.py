"""Workers that share a study in a real PostgreSQL server on this machine."""

from __future__ import annotations

import gc
import os
import signal
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from cvl_pipeline.errors import InputError
from cvl_pipeline.tuning.search import start_worker
from cvl_pipeline.tuning.study import FINISHED, open_study
from cvl_pipeline.tuning.worker import Specification
from tests.training.processes import linux, wait_for
from tests.tuning.studies import make_specification, make_tuning

pgserver: Any = pytest.importorskip("pgserver", reason="no PostgreSQL for this Python")
pytestmark = [
    linux,
    # Optuna leaves its connections to the garbage collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"),
]

TRIALS = 5
SPACE = {
    "contrastive_dynamics.temperature": {"type": "float", "low": 0.1, "high": 1.0},
    # Long enough to be killed in the middle.
    "contrastive_dynamics.training.steps": {"type": "int", "low": 400, "high": 800},
}


@dataclass(frozen=True)
class Server:
    """PostgreSQL on loopback, which wants a password."""

    url: str
    control: Callable[..., None]

    def stop(self) -> None:
        self.control("-m", "immediate", "stop")

    def start(self) -> None:
        self.control("start")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    data = tmp_path_factory.mktemp("postgres") / "data"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    local = pgserver.get_server(data, cleanup_mode=None)  # of its own it listens to no port
    local.psql("ALTER USER postgres PASSWORD 'a secret';")
    (data / "pg_hba.conf").write_text("host all all 127.0.0.1/32 scram-sha-256\n")
    options = ["-w", "-l", str(data / "log"), "-o", f"-h 127.0.0.1 -p {port} -k {data}"]

    def control(*command: str) -> None:
        pgserver._commands.pg_ctl([*options, *command], pgdata=data, user=local.system_user)

    url = f"postgresql+psycopg://postgres:a%20secret@127.0.0.1:{port}/postgres"
    try:
        control("-m", "fast", "restart")
        yield Server(url, control)
    finally:
        control("-m", "immediate", "stop")


@pytest.fixture(autouse=True)
def _collected() -> Iterator[None]:
    yield
    gc.collect()  # while the warnings of connections that nobody closed are ignored


def specification_of(folder: Path, url: str) -> Specification:
    # Studies of one database that differ by their names.
    return make_specification(folder, make_tuning(trials=TRIALS, space=SPACE), url, folder.name)


def log_of(specification: Specification, index: int) -> str:
    return (specification.folder / "workers" / f"{index}.log").read_text()


def test_trial_of_a_killed_worker_is_retried_by_the_other(tmp_path: Path, server: Server) -> None:
    specification = specification_of(tmp_path, server.url)
    study = open_study(specification.location, specification.name, specification.tuning, 0)
    workers = [start_worker(replace(specification, index=index, workers=2)) for index in (0, 1)]

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
    assert study.trials[number].state == TrialState.RUNNING, (
        "the trial had ended before the worker was killed"
    )
    assert workers[1].wait(timeout=240) == 0, log_of(specification, 1)

    trials = study.trials
    finished = [trial for trial in trials if trial.state in FINISHED]
    assert len(finished) == TRIALS
    assert all(trial.state.is_finished() for trial in trials)
    assert max(Counter(str(trial.params) for trial in finished).values()) == 1, "a point was tried twice"
    assert len({trial.user_attrs["id"] for trial in finished}) == TRIALS
    again = [trial for trial in finished if trial.user_attrs.get("retry_of") == number]
    assert [trial.params for trial in again] == [trials[number].params]
    assert len(list(specification.records.glob("*.json"))) == TRIALS
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or b"secret" not in path.read_bytes(), path


def test_message_about_a_wrong_password_hides_it(tmp_path: Path, server: Server) -> None:
    with pytest.raises(InputError, match=r"postgres:\*\*\*@127.0.0.1.* cannot be used") as caught:
        specification_of(tmp_path, server.url.replace("secret", "mistake"))
    assert "mistake" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_stopped_database_loses_no_finished_trial(tmp_path: Path, server: Server) -> None:
    specification = specification_of(tmp_path, server.url)
    study = open_study(specification.location, specification.name, specification.tuning, 0)

    def finished() -> dict[int, list[float]]:
        return {trial.number: trial.values for trial in study.trials if trial.state in FINISHED}

    process = start_worker(specification)
    wait_for(lambda: finished() or process.poll() is not None)
    before = finished()
    server.stop()
    try:
        assert process.wait(timeout=120) == 2, log_of(specification, 0)
        last = log_of(specification, 0).splitlines()[-1]
        assert last.startswith("Error: tuning.storage: postgresql+psycopg://postgres:***@127.0.0.1")
        assert "secret" not in log_of(specification, 0)
        with pytest.raises(InputError, match=r"\*\*\*@127\.0\.0\.1.* cannot be used"):
            specification_of(tmp_path, server.url)
    finally:
        server.start()
    process = start_worker(replace(specification, index=1, begun_with=len(study.trials)))
    assert process.wait(timeout=240) == 0, log_of(specification, 1)
    assert len(finished()) == TRIALS
    assert before.items() <= finished().items()
