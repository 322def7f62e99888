"""The command that writes ingested episodes in another format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kedro.framework.project import settings

from cvl_pipeline.errors import InputError
from cvl_pipeline.kedro.parameters import check_parameters
from cvl_pipeline.sources.base import SOURCES


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

    with settings.SESSION_CLASS.create(env=env, conf_source=conf_source, runtime_params=params) as session:
        catalog = session.load_context().catalog
        parameters = check_parameters(catalog.load("parameters"))
        missing = [name for name in ("transitions", "rewards") if not catalog.exists(name)]
        if missing:
            raise InputError(
                f"the {missing[0]} of {parameters.dataset.folder} are not ingested yet; run kedro run "
                "--pipelines data_ingestion with the same --env and --params"
            )
        transitions, rewards = (catalog.load(name) for name in ("transitions", "rewards"))
    options = {name: value for name, value in options.items() if value is not None}
    options.setdefault("name", parameters.dataset.label)
    tasks = SOURCES.create(parameters.dataset).tasks
    return export_dataset(transitions, rewards, form, out, tasks=tasks, **options)
