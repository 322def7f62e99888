"""Logs for tests to modify."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cvl_pipeline.episodes.container import Rewards, Transitions
from cvl_pipeline.testing.builders import make_transitions
from tests.sources.rows import Log, log_of, write


@pytest.fixture
def log(transitions: Transitions, rewards: Rewards) -> Log:
    return log_of(transitions, rewards)


@pytest.fixture
def npz(tmp_path: Path) -> Callable[..., Path]:
    """Write a log of one episode of four steps with the given arrays replaced."""
    data = make_transitions([4], [False])

    def altered(**changes: Any) -> Path:
        return write(tmp_path / "log.npz", log_of(data) | changes)

    return altered


@pytest.fixture
def csv(tmp_path: Path) -> Callable[[str], Path]:
    def written(text: str) -> Path:
        path = tmp_path / "log.csv"
        path.write_text(text)
        return path

    return written
