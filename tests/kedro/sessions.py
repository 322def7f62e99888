"""Configuration and catalog of a session, without Kedro's session around them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kedro.io import DataCatalog

from cvl_pipeline.kedro.configuration import CheckedConfigLoader
from cvl_pipeline.kedro.settings import CONFIG_LOADER_ARGS
from tests.project import CONF


def make_loader(conf: Path = CONF, env: str | None = None, **given: Any) -> CheckedConfigLoader:
    """The configuration under ``--env`` and ``--params``."""
    return CheckedConfigLoader(str(conf), env=env, runtime_params=given, **CONFIG_LOADER_ARGS)


def make_catalog(loader: CheckedConfigLoader, root: Path) -> DataCatalog:
    """The catalog and the parameters of a configuration, with the files below ``root``."""
    entries: dict[str, Any] = {
        name: entry | {"filepath": str(root / entry["filepath"])} for name, entry in loader["catalog"].items()
    }
    catalog = DataCatalog.from_config(entries)
    catalog["parameters"] = loader["parameters"]
    return catalog


def path_of(catalog: DataCatalog, name: str) -> Path:
    """Path of the file of a dataset."""
    return Path(vars(catalog.get(name))["_filepath"])
