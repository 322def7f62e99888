"""A copy of the project that the tests run kedro in, with one finished smoke run."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.builders import copy_conf

PROJECT = Path(__file__).parents[2]
DATASET = "reach-v3-smoke/seed_0"


@dataclass(frozen=True)
class Project:
    """A folder with the project's code and configuration, and data of its own."""

    root: Path

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "kedro", *arguments]

    def environment(self) -> dict[str, str]:
        # Wide, so that no message is wrapped; the copy's code, not the installed one.
        return {**os.environ, "COLUMNS": "400", "KEDRO_ENV": "smoke", "PYTHONPATH": str(self.root / "src")}

    def kedro(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run kedro; standard output and error are one text in ``stdout``."""
        return subprocess.run(
            self.command(*arguments),
            cwd=self.root,
            env=self.environment(),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=300,
            check=False,
        )

    def artifact(self, layer: str, name: str, dataset: str = DATASET) -> Path:
        return self.root / "data" / layer / dataset / name

    def fingerprints(self) -> dict[str, str]:
        """SHA-256 of every file under data/ but logs and locks, which tell how fast a run was, and which."""
        return {
            str(path.relative_to(self.root)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted((self.root / "data").rglob("*"))
            if path.is_file() and not {"logs", ".locks"} & set(path.relative_to(self.root).parts)
        }


def copy_project(root: Path) -> Project:
    shutil.copytree(PROJECT / "src", root / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    copy_conf(root)
    for name in ("pyproject.toml", ".telemetry"):
        shutil.copy(PROJECT / name, root / name)
    return Project(root)


@dataclass(frozen=True)
class FinishedRun:
    project: Project
    output: str


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """The project after ``kedro run --env smoke``. Tests must leave its data as they found it."""
    project = copy_project(tmp_path_factory.mktemp("finished"))
    result = project.kedro("run")
    assert result.returncode == 0, result.stdout
    return FinishedRun(project, result.stdout)


@pytest.fixture
def scratch(finished: FinishedRun, tmp_path: Path) -> Project:
    """A copy of the finished project that a test may damage."""
    shutil.copytree(finished.project.root, tmp_path / "scratch")
    return Project(tmp_path / "scratch")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.integration)
