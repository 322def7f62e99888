"""A copy of the project for running kedro in tests, with one finished smoke run."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.integration import forks
from tests.project import PROJECT, copy_settings
from tests.training.processes import children_of

DATASET = "reach-v3-smoke/seed_0"
REUSE = ("run", "--only-missing-outputs")


@dataclass(frozen=True)
class Project:
    """A folder with the project's code and configuration, and its own data."""

    root: Path

    def environment(self) -> dict[str, str]:
        # Wide, so that messages are not wrapped; the copy's code instead of the installed one; one thread,
        # because the order of sums changes their last digits.
        return {
            **os.environ, "COLUMNS": "400", "KEDRO_ENV": "smoke", "PYTHONPATH": str(self.root / "src"),
            "OMP_NUM_THREADS": "1",
        }  # fmt: skip

    def start(self, output: Path, *arguments: str) -> subprocess.Popen[bytes]:
        """Start kedro in a process that a test may end."""
        with output.open("wb") as file:
            return subprocess.Popen(
                [sys.executable, "-m", "kedro", *arguments],
                cwd=self.root, env=self.environment(), stdout=file, stderr=subprocess.STDOUT,
                # A shell's background command ignores Ctrl+C, and so would this process.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )  # fmt: skip

    def artifact(self, name: str, dataset: str = DATASET) -> Path:
        """Path of an artifact, in the folder of whichever layer."""
        (path,) = (self.root / "data").glob(f"*/{dataset}/{name}")
        return path

    def fingerprints(self) -> dict[str, str]:
        """SHA-256 of every file under data/ except logs and locks, which differ between runs."""
        return {
            str(path.relative_to(self.root)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted((self.root / "data").rglob("*"))
            if path.is_file() and not {"logs", ".locks"} & set(path.relative_to(self.root).parts)
        }


def copy_project(root: Path) -> Project:
    shutil.copytree(PROJECT / "src", root / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    copy_settings(root)
    return Project(root)


def nodes_in(output: str) -> set[str]:
    """Names of the nodes that a command ran."""
    return set(re.findall(r"\d+/\d+ (\S+) ->", output))


class Forks:
    """Runs kedro commands, each in a fork of a process that has finished the slow imports."""

    def __init__(self, output: Path) -> None:
        self._output = output
        self._start()

    def _start(self) -> None:
        environment = Project(PROJECT).environment()
        del environment["PYTHONPATH"]  # each fork has its own copy of the project
        self._server = subprocess.Popen(
            [sys.executable, forks.__file__],
            env=environment, cwd=PROJECT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def kedro(self, project: Project, *arguments: str, status: int = 0, **changes: list[Any]) -> str:
        """Run a command and return its output."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        asked = {"root": str(project.root), "arguments": arguments, "output": str(self._output)}
        self._server.stdin.write(json.dumps(asked | {"changes": changes}) + "\n")
        self._server.stdin.flush()
        try:
            answer = self._server.stdout.readline()
        except BaseException:  # the test took too long; its answer must not be taken for that of the next one
            for child in children_of(self._server.pid):
                os.kill(child, signal.SIGKILL)
            self._server.kill()
            self._server.communicate()
            self._start()
            raise
        output = self._output.read_text()
        assert answer.strip() == str(status), output
        return output

    def plan(self, project: Project, *arguments: str) -> set[str]:
        """Names of the nodes that Kedro would run."""
        output = self.kedro(project, *REUSE, *arguments, plan=[])
        return set(re.search(r"^PLAN(.*)$", output, re.MULTILINE)[1].split())  # type: ignore[index]

    def run(self, project: Project, *arguments: str) -> set[str]:
        """Run a command and return the names of the nodes that ran."""
        return nodes_in(self.kedro(project, *arguments))

    def close(self) -> None:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.stdout.close()
        self._server.wait()


@dataclass(frozen=True)
class FinishedRun:
    project: Project
    output: str

    def copy(self, root: Path) -> Project:
        """The project with its data in another folder."""
        shutil.copytree(self.project.root, root)
        return Project(root)


@pytest.fixture(scope="session")
def kedro(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    started = Forks(tmp_path_factory.mktemp("forks") / "output")
    yield started
    started.close()


@pytest.fixture(scope="session")
def finished(kedro: Forks, tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """The project after ``kedro run --env smoke``. Tests must not change its data."""
    project = copy_project(tmp_path_factory.mktemp("finished"))
    return FinishedRun(project, kedro.kedro(project, "run"))


@pytest.fixture
def scratch(finished: FinishedRun, tmp_path: Path) -> Project:
    """A copy of the finished project that a test may damage."""
    return finished.copy(tmp_path / "scratch")


@pytest.fixture(scope="module")
def copied(finished: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A copy of the finished project that the tests of a file share."""
    return finished.copy(tmp_path_factory.mktemp("copied") / "project")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.integration)
