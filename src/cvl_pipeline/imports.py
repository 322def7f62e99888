"""Functions of the user's own, named ``module:function`` in the parameters."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from cvl_pipeline.errors import InputError, one_line


def user_function(field: str, source: str) -> Callable[..., Any]:
    """The function that ``module:function`` names.

    Args:
        field: the parameter that names it, for the error.
        source: ``module:function``, the module on the Python path.

    Raises:
        InputError: it cannot be imported, or is no function.
    """
    module_name, _, name = source.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), name)
    except Exception as error:  # the module runs here, and may fail in any way
        raise InputError(
            f"{field} '{source}' cannot be imported ({one_line(error)}); is the module on the Python path?"
        ) from error
    if not callable(function):
        raise InputError(f"{field} '{source}' is {type(function).__name__}, not a function")
    chosen: Callable[..., Any] = function
    return chosen
