from __future__ import annotations

from typing import Any

import pytest

from cvl_pipeline.kedro.cli import _follow
from tests.project import CONF


@pytest.mark.parametrize(
    ("variable", "option", "source", "task"),
    [
        ("smoke", None, "metaworld", "reach-v3"),
        ("smoke", "pointmaze", "pointmaze", "PointMaze_Medium-v3"),
        (None, "smoke", "metaworld", "reach-v3"),
    ],
)
def test_pipelines_follow_the_environment_of_the_run(
    monkeypatch: pytest.MonkeyPatch, variable: str | None, option: str | None, source: str, task: str
) -> None:
    monkeypatch.delenv("KEDRO_ENV", raising=False)
    if variable is not None:
        monkeypatch.setenv("KEDRO_ENV", variable)
    dataset: Any = _follow({"conf_source": str(CONF), "env": option}).dataset
    assert (dataset.source, dataset.task) == (source, task)
