"""The command that writes ingested episodes in another format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kedro.framework.project import settings

from cvl_pipeline.errors import InputError
from cvl_pipeline.kedro.parameters import check_parameters
from cvl_pipeline.sources.base import SOURCES

FORMATS_OF = {"name": ("lerobot", "minari"), "rate": ("lerobot",), "videos": ("lerobot",)}
"""Formats that each option is for."""
OPTIONS = {"name": "--name", "rate": "--fps", "videos": "--videos"}


def export_command(
    env: str | None, params: dict[str, Any], conf_source: str | None, form: str, out: str, **options: Any
) -> tuple[Path, dict[str, str]]:
    """Write the episodes that the parameters name, with their own rewards; see ``export_dataset``.

    Returns:
        The file or folder, and the parameters that read it.

    Raises:
        InputError: the episodes are not ingested yet; see also ``export_dataset``.
    """
    from cvl_pipeline.sources.export import export_dataset

    given = {name: value for name, value in options.items() if value is not None}
    for name in given:
        if form not in FORMATS_OF[name]:
            raise InputError(
                f"{OPTIONS[name]} is for --format {' and '.join(FORMATS_OF[name])}; leave it out"
            )
    if form == "minari" and "name" not in given:
        raise InputError("--format minari needs --name, the id of the new dataset, such as mine/door-open-v0")
    with settings.SESSION_CLASS.create(env=env, conf_source=conf_source, runtime_params=params) as session:
        catalog = session.load_context().catalog
        dataset = check_parameters(catalog.load("parameters")).dataset
        missing = [name for name in ("transitions", "rewards") if not catalog.exists(name)]
        if missing:
            raise InputError(
                f"the {missing[0]} of {dataset.folder} are not ingested yet; run kedro run --pipelines data_ingestion "
                "with the same --env and --params"
            )
        transitions, rewards = (catalog.load(name) for name in ("transitions", "rewards"))
    if form == "lerobot":
        given = {"name": dataset.label, "tasks": SOURCES.create(dataset).tasks, **given}
    return export_dataset(transitions, rewards, form, out, **given)
