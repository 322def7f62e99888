"""Commands that messages advise, with the options of the run that they are about."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from cvl_pipeline.errors import masked
from cvl_pipeline.schema import flattened
from cvl_pipeline.suites.plan import params_option

_options: list[str] = []


def keep_options(
    env: str | None, runtime_params: Mapping[str, Any] | None, conf_source: str | None = None
) -> None:
    """Keep the options of the run that begins; no source: the project's own configuration."""
    params = params_option(flattened(dict(runtime_params or {})))
    options = {"--conf-source": conf_source, "--env": env, "--params": params}
    _options[:] = [part for name, value in options.items() if value for part in (name, value)]


def kedro_run(*arguments: str) -> str:
    """Return a ``kedro run`` command with the options in force, to be pasted into a shell."""
    return shlex.join(["kedro", "run", *arguments, *map(masked, _options)])
