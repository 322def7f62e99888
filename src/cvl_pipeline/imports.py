"""Imports by name: functions of the user, and files of packages that stay unimported."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from cvl_pipeline.errors import InputError, one_line

T = TypeVar("T")


def _start_of_process() -> float:
    """Time at which this process began, in seconds since the epoch; now, if the system does not report it."""
    with suppress(OSError, ValueError, IndexError):
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return time.time() - age
    return time.time()


_STARTED = _start_of_process()
_imported: dict[str, float] = {}


def named(source: str) -> Any:
    """Import the object ``module:name`` of any package; errors of the import are passed on."""
    module_name, _, name = source.partition(":")
    if module_name in sys.modules:
        return getattr(importlib.import_module(module_name), name)
    before, now = set(sys.modules), time.time()
    try:
        module = importlib.import_module(module_name)
    finally:
        _imported.update(dict.fromkeys(sys.modules.keys() - before, now))
    return getattr(module, name)


def imported_at(module: str) -> float:
    """Time before which an imported module's file was not read, in seconds since the epoch."""
    return _imported.get(module, _STARTED)


def user_function(field: str, source: str) -> Callable[..., Any]:
    """Import the function ``module:function``.

    Args:
        field: the parameter that names it, for the error.
        source: ``module:function``; the module must be on the Python path.

    Raises:
        InputError: it cannot be imported, or is not a function.
    """
    try:
        function = named(source)
    except Exception as error:  # importing runs the module, which may raise anything
        raise InputError(
            f"{field} '{source}' cannot be imported ({one_line(error)}); is the module on the Python path?"
        ) from error
    if not callable(function):
        raise InputError(f"{field} '{source}' is {type(function).__name__}, not a function")
    result: Callable[..., Any] = function
    return result


def package_file(package: str, path: str) -> Path | None:
    """Locate a file of an installed package without importing the package.

    Args:
        package: its name on the Python path.
        path: relative to the package's folder.

    Returns:
        The file, or None if the package is not installed or has no such file.
    """
    spec = importlib.util.find_spec(package)
    files = [Path(folder) / path for folder in (spec and spec.submodule_search_locations) or []]
    return files[0] if files and files[0].is_file() else None


def user_class(field: str, source: str, base: type[T]) -> type[T]:
    """Return the class of the user's own that ``module:Class`` names.

    Args:
        field: the parameter that names it, for the error.
        source: ``module:Class``, the module on the Python path.
        base: the class that it must extend.

    Raises:
        InputError: it cannot be imported, does not extend the base, or lacks a method that the base asks for.
    """
    chosen = user_function(field, source)
    if not (isinstance(chosen, type) and issubclass(chosen, base)):
        raise InputError(f"{field} '{source}' is not a subclass of {base.__module__}.{base.__name__}")
    missing = sorted(getattr(chosen, "__abstractmethods__", ()))
    if missing:
        raise InputError(f"{field} '{source}' does not define {', '.join(missing)}, as its base class asks")
    return chosen
