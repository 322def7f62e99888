"""What Kedro and the project keep for a whole process, forgotten after each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from omegaconf import OmegaConf

from cvl_pipeline.kedro import commands, pipeline_registry, workspace
from cvl_pipeline.kedro.configuration import RESOLVERS


@pytest.fixture(autouse=True)
def forgetful() -> Iterator[None]:
    """Start each test without the plan, the options and the resolvers of another one's run."""
    _forget()
    yield
    _forget()


def _forget() -> None:
    workspace.workspace.set(workspace.Workspace())
    pipeline_registry._plans.clear()
    commands._options.clear()
    for resolver in RESOLVERS:
        OmegaConf.clear_resolver(resolver)
