"""The exception whose message is meant for the user, and helpers to word messages."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from typing import TypeVar

T = TypeVar("T")
TERMINATED = 143
"""Exit status of a process that SIGTERM ended, as in shells and SLURM."""
NO_MEMORY = (
    "out of memory|allocate memory|not enough memory|size calculation overflowed|multiplication overflow|"
    "array is too big|maximum allowed dimension"
)
"""What the allocators of torch, on the CPU and on GPUs, and of NumPy say."""


USER = re.compile(r"([A-Za-z][\w+.\-]*://)([^\s/:@]*):\S*@")
"""User and password of a URL. The password may contain anything, also an ``@`` or ``/`` that is not escaped."""
TOKEN = re.compile(r"(https?://)[^\s/:@]{16,}@", re.IGNORECASE)
"""A token in place of a user; no user's name is as long."""
OPTION = re.compile(
    r"([?&;][\w.\-]*(?:password|passwd|pwd|secret|token|signature|credential|auth|pass|sas|key|sig)[\w.\-]*=)"
    r"(?:[^&;\s'\"]|['\"](?=\w))*",  # a quote may belong to the secret, or to the text around the URL
    re.IGNORECASE,
)
"""Option of a URL that holds a secret."""


def masked(text: str) -> str:
    """Replace the secrets of every URL in a text by ``***``."""
    return OPTION.sub(r"\1***", TOKEN.sub(r"\1***@", USER.sub(r"\1\2:***@", text)))


def has_secret(url: str) -> bool:
    """Return whether a URL has a password, a token or a secret option, or a host that may be a part of one."""
    authority = re.split(r"[/?#]", url.partition("://")[2])[0]
    user, _, host = authority.rpartition("@")
    readable = re.fullmatch(r"(\[[\w:.%]+\]|[^:\[\]\s]*)(:\d+)?", host)
    return ":" in user or readable is None or bool(OPTION.search(url) or TOKEN.search(url))


class InputError(ValueError):
    """Wrong input from the user: a parameter, a file or an artifact.

    The message is one line that names the file or field, the value and the fix. The command line prints
    only that line, without a traceback; any other exception is a defect and keeps its traceback. Secrets of
    URLs are masked.
    """

    def __init__(self, message: str) -> None:
        """Set the message."""
        super().__init__(masked(message))


@contextmanager
def naming_what_to_lower(fields: str) -> Iterator[None]:
    """If memory runs out, raise InputError with the parameters that need it.

    Args:
        fields: the parameters to lower, for the message.
    """
    try:
        yield
    except (MemoryError, RuntimeError, ValueError) as error:
        if not out_of_memory(error):
            raise
        raise InputError(f"not enough memory ({one_line(error)[:200]}); lower {fields}") from error


def out_of_memory(error: BaseException) -> bool:
    """Return whether an allocator of Python, NumPy or torch found too little memory."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError | ValueError)
        and re.search(NO_MEMORY, str(error), re.IGNORECASE) is not None
    )


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Iterate over the error and the chain of errors that caused it."""
    seen: set[int] = set()  # an error that is raised again may be its own context
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def look_up(kind: str, name: str, registry: Mapping[str, T]) -> T:
    """Return a registry's entry; raise InputError with the closest or all names if it is unknown."""
    if name not in registry:
        raise unknown_name(kind, name, sorted(registry))
    return registry[name]


def unknown_name(kind: str, name: str, known: list[str]) -> InputError:
    """Create the error for an unknown name; it lists the closest or all known names."""
    spelling = {one.lower(): one for one in known}
    close = [spelling[match] for match in get_close_matches(name.lower(), list(spelling), n=3)]
    hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(known)}"
    return InputError(f"unknown {kind} '{name}': {hint}")


def missing_extra(extra: str, error: ImportError) -> InputError:
    """Create the error for a missing library that an extra of this package installs."""
    return InputError(
        f"{extra} needs {error.name}: pip install 'cvl-pipeline[{extra}]' (in a clone: pip install "
        f"-e '.[{extra}]')"
    )


def printable(text: str) -> str:
    """Join the lines, mask the secrets of URLs, and escape control characters, which a file name may contain."""
    line = masked(" ".join(text.splitlines()))
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def one_line(error: BaseException) -> str:
    """Format another library's error as one line for our own message."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
