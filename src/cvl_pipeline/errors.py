"""The one exception that a person is meant to read."""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import TypeVar

T = TypeVar("T")


class InputError(ValueError):
    """Something that the user gave is wrong: a parameter, a file, an artifact.

    The message is one line that names the file or field, the value and the fix. The command line prints
    that line alone, without a traceback; every other exception is a defect and keeps its traceback.
    """


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, what it was raised from, what that was raised from, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def look_up(kind: str, name: str, registry: Mapping[str, T]) -> T:
    """The entry of a registry of named choices; raises InputError listing the closest or all names."""
    if name not in registry:
        raise unknown_name(kind, name, sorted(registry))
    return registry[name]


def unknown_name(kind: str, name: str, known: list[str]) -> InputError:
    """The error for a name that is not in a registry, listing the closest or all known names."""
    close = get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(known)}"
    return InputError(f"unknown {kind} '{name}': {hint}")


def missing_extra(extra: str, error: ImportError) -> InputError:
    """The error for a library that an extra of this package brings and that is not installed."""
    return InputError(
        f"{extra} needs {error.name}: pip install 'cvl-pipeline[{extra}]' (in a clone: pip install "
        f"-e '.[{extra}]')"
    )


def printable(text: str) -> str:
    """The text in one line, what would steer a terminal made visible: a file may be called anything."""
    line = " ".join(text.splitlines())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def one_line(error: BaseException) -> str:
    """What went wrong elsewhere, for a message of our own."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
