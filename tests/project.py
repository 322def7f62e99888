"""The project that the tests belong to, and copies of its configuration."""

from __future__ import annotations

import shutil
from pathlib import Path

PROJECT = Path(__file__).parents[1]
CONF = PROJECT / "conf"


def copy_settings(project: Path) -> None:
    """Copy what makes a folder a project of Kedro into another one: its configuration and settings."""
    copy_conf(project)
    for name in ("pyproject.toml", ".telemetry"):
        shutil.copy(PROJECT / name, project / name)


def copy_conf(project: Path) -> Path:
    """Copy the configuration into another project, without the files of conf/local."""
    conf = project / "conf"
    shutil.copytree(CONF, conf, ignore=shutil.ignore_patterns("local"), dirs_exist_ok=True)
    (conf / "local").mkdir(exist_ok=True)
    return conf
