"""Imports by name: functions of the user, and files of packages that stay unimported."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import site
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from traceback import walk_tb
from typing import Any, TypeVar

from cvl_pipeline.errors import TERMINATED, InputError, one_line

T = TypeVar("T")
PACKAGE = f"{Path(__file__).parent}{os.sep}"


@cache
def library_folders() -> set[Path]:
    """Return the folders of the standard library and of installed packages."""
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    folders = [
        *(sysconfig.get_path(name) for name in names),
        *site.getsitepackages(),
        site.getusersitepackages(),
    ]
    folders += [
        entry for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages", "lib-dynload")
    ]
    return {path for folder in folders for path in (Path(folder).absolute(), Path(folder).resolve())}


@cache
def _no_user_code() -> tuple[str, ...]:
    """Beginnings of the paths of code that is neither this package's nor the user's; ``<`` begins generated code."""
    scripts = Path(sysconfig.get_path("scripts"))
    folders = {*library_folders(), scripts.absolute(), scripts.resolve()}
    return ("<", *(f"{folder}{os.sep}" for folder in folders))


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
    except (Exception, SystemExit) as error:  # importing runs the module, which may raise anything
        raise InputError(f"{field} '{source}' cannot be imported{_why_not(source, error)}") from error
    if not callable(function):
        raise InputError(f"{field} '{source}' is {type(function).__name__}, not a function")
    result: Callable[..., Any] = function
    return result


def _why_not(source: str, error: BaseException) -> str:
    """Return why ``module:name`` cannot be imported, and what to do, as the end of a sentence."""
    module_name, _, name = source.partition(":")
    module = sys.modules.get(module_name)
    if module is not None and isinstance(error, AttributeError) and not hasattr(module, name):
        known = [known for known in vars(module) if not known.startswith("_")]
        close = get_close_matches(name, known, n=1)
        return f": module '{module_name}' has no '{name}'" + (f"; did you mean {close[0]}?" if close else "")
    place = place_in_user_code(error)
    at = f" at {place[1]}" if place else ""
    question = "; is the module on the Python path?" if isinstance(error, ModuleNotFoundError) else ""
    return f" ({one_line(error)}{at}){question}"


@contextmanager
def user_code() -> Iterator[None]:
    """Report errors of the user's own code as an InputError, and never let it end Python with status 0.

    Errors of other code are passed on.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        fault = fault_of_user_code(error)
        if fault is None:
            raise
        raise InputError(fault) from error


def fault_of_user_code(error: BaseException) -> str | None:
    """Return a message about an error that the user's own code raised, or about the end of Python; else None.

    It names the function, file and line of the innermost code that belongs to no library.
    """
    if isinstance(error, InputError):  # made for the user already
        return None
    place = place_in_user_code(error)
    if isinstance(error, SystemExit):
        function, line = place or ("a library", "an unknown line")
        ended = f"{function} ended Python at {line} ({one_line(error)}); raise an error instead"
        return None if error.code == TERMINATED else ended
    if place is None:
        return None
    function, line = place
    return f"{function} failed at {line} ({one_line(error)}); CVL_TRACEBACK=1 shows the traceback"


def place_in_user_code(error: BaseException) -> tuple[str, str] | None:
    """Return ``module:function`` and ``file:line`` of the user's code that raised an error; None if none did."""
    frames = [
        (frame.f_code, line, str(frame.f_globals.get("__name__")))
        for frame, line in walk_tb(error.__traceback__)
        if frame.f_code.co_filename.startswith(PACKAGE)
        or not frame.f_code.co_filename.startswith(_no_user_code())
    ]
    if not frames or frames[-1][0].co_filename.startswith(PACKAGE):
        return None
    code, line, module = frames[-1]
    return f"{module}:{code.co_qualname}", f"{code.co_filename}:{line}"


def check_return(owner: object, method: str, value: Any, *, valid: bool, expected: str) -> None:
    """Raise InputError if a method of a class of the user's own returned something else than its base asks for."""
    if not valid:
        kind = type(owner)
        raise InputError(
            f"{kind.__module__}:{kind.__qualname__}.{method} returned {_described(value)}, not {expected}"
        )


def _described(value: Any) -> str:
    """Return the type of a value, the parts of a small tuple or dictionary, and the shape of a tensor."""
    if type(value) is tuple and len(value) < 5:
        return f"({', '.join(map(_described, value))})"
    if type(value) is dict and len(value) < 5:
        return f"{{{', '.join(f'{key!r}: {_described(part)}' for key, part in value.items())}}}"
    shape = getattr(value, "shape", None)
    return type(value).__name__ + (f" {tuple(shape)}" if isinstance(shape, tuple) else "")


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
        InputError: it cannot be imported, does not extend the base, lacks something that the base asks for, or has a
            method with other arguments.
    """
    chosen = user_function(field, source)
    if not (isinstance(chosen, type) and issubclass(chosen, base)):
        raise InputError(f"{field} '{source}' is not a subclass of {base.__module__}.{base.__name__}")
    missing = sorted(getattr(chosen, "__abstractmethods__", ()))
    missing += [
        name
        for name, hint in inspect.get_annotations(base).items()
        if str(hint).startswith("ClassVar") and not hasattr(chosen, name)
    ]
    if missing:
        raise InputError(f"{field} '{source}' does not define {', '.join(missing)}, as its base class asks")
    for name, asked in vars(base).items():
        own = inspect.getattr_static(chosen, name)
        if isinstance(asked, property) and inspect.isfunction(own):
            raise InputError(
                f"{field} '{source}': {name} must be a property, not a method; put @property above it"
            )
        is_called = inspect.isfunction(asked) and (name == "__init__" or not name.startswith("_"))
        if is_called and inspect.isfunction(own) and not _accepts(own, asked):
            raise InputError(
                f"{field} '{source}': {name} must take {_arguments(asked)}, not {_arguments(own)}"
            )
    return chosen


def _accepts(own: Callable[..., Any], asked: Callable[..., Any]) -> bool:
    """Return whether a method can be called like another one, with and without its optional arguments."""
    every = list(inspect.signature(asked).parameters.values())
    for given in (every, [part for part in every if part.default is part.empty]):
        names = [part.name for part in given if part.kind is part.KEYWORD_ONLY]
        try:
            inspect.signature(own).bind(*range(len(given) - len(names)), **dict.fromkeys(names))
        except TypeError:
            return False
    return True


def _arguments(method: Callable[..., Any]) -> str:
    signature = inspect.signature(method)
    plain = [part.replace(annotation=part.empty) for part in signature.parameters.values()]
    return str(signature.replace(parameters=plain, return_annotation=signature.empty))
