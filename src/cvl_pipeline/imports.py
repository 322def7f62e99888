"""What lies on the Python path: functions of the user's own, and files of packages that are not imported."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cvl_pipeline.errors import InputError, one_line


def named(source: str) -> Any:
    """What ``module:name`` names, in this package or another; what an import raises, it raises."""
    module_name, _, name = source.partition(":")
    return getattr(importlib.import_module(module_name), name)


def user_function(field: str, source: str) -> Callable[..., Any]:
    """The function that ``module:function`` names.

    Args:
        field: the parameter that names it, for the error.
        source: ``module:function``, the module on the Python path.

    Raises:
        InputError: it cannot be imported, or is no function.
    """
    try:
        function = named(source)
    except Exception as error:  # the module runs here, and may fail in any way
        raise InputError(
            f"{field} '{source}' cannot be imported ({one_line(error)}); is the module on the Python path?"
        ) from error
    if not callable(function):
        raise InputError(f"{field} '{source}' is {type(function).__name__}, not a function")
    chosen: Callable[..., Any] = function
    return chosen


def package_file(package: str, path: str) -> Path | None:
    """A file of an installed package, found without importing the package.

    Args:
        package: its name on the Python path.
        path: from the package's folder.

    Returns:
        The file, or None if the package is not installed or has no such file.
    """
    spec = importlib.util.find_spec(package)
    files = [Path(folder) / path for folder in (spec and spec.submodule_search_locations) or []]
    return files[0] if files and files[0].is_file() else None
