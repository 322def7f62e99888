"""Faults at a moment within a run, installed in its process, and damage to files between runs."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import signal
from collections.abc import Callable
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

CALLS = ("flush", "rename")
"""What is counted: a file flushed to the disk, just before its rename; the rename."""


Watch = Callable[[str, Path, bool], None]
"""Called with the name of a call, the path and whether the call is done."""


def watched(watch: Watch) -> Callable[[], None]:
    """Have every flush and rename of a file told, before and after it is done."""

    def install() -> None:
        flush, rename = os.fsync, Path.replace

        def watched_flush(descriptor: int) -> None:
            path = Path(f"/proc/self/fd/{descriptor}").resolve()
            if path.is_dir():
                return flush(descriptor)
            watch("flush", path, False)
            flush(descriptor)
            return watch("flush", path, True)

        def watched_rename(self: Path, target: Path) -> Path:
            watch("rename", self, False)
            result = rename(self, target)
            watch("rename", target, True)
            return result

        os.fsync = watched_flush  # type: ignore[assignment]
        Path.replace = watched_rename  # type: ignore[method-assign, assignment]

    return install


def at_call(call: str, number: int, act: Callable[[Path], None], after: bool = False) -> Callable[[], None]:
    """Have ``act`` called with the path at the n-th flush or rename of a file, before or after it is done."""
    count = 0

    def watch(which: str, path: Path, done: bool) -> None:
        nonlocal count
        count += (which, done) == (call, after)
        if (which, done, count) == (call, after, number):
            act(path)

    return watched(watch)


def note_calls(record: Path) -> Callable[[], None]:
    """Have every flush and rename of a file noted, a line each: the call and the file's name."""

    def watch(which: str, path: Path, done: bool) -> None:
        if not done:
            with record.open("a") as file:
                file.write(f"{which} {path.name}\n")

    return watched(watch)


def end(number: signal.Signals) -> Callable[[Path], None]:
    """End this process."""

    def act(path: Path) -> None:
        os.kill(os.getpid(), number)

    return act


def end_halfway(number: signal.Signals, share: float) -> Callable[[Path], None]:
    """Leave the file as if its writing had been ended halfway."""

    def act(path: Path) -> None:
        os.truncate(path, int(share * path.stat().st_size))
        os.kill(os.getpid(), number)

    return act


def fill_disk(path: Path) -> None:
    """What a system call says when there is no space."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def limit_files(size: int, kill: bool) -> Callable[[], None]:
    """No file grows beyond a size; the system ends the process that tries, or only says so."""

    def install() -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL if kill else signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    return install


def cut(content: bytes, draw: random.Random) -> bytes:
    """Lose the end."""
    return content[: draw.randrange(len(content))]


def flip(content: bytes, draw: random.Random) -> bytes:
    """Change one byte."""
    changed = bytearray(content)
    changed[draw.randrange(len(content))] ^= draw.randrange(1, 256)
    return bytes(changed)


def empty(content: bytes, draw: random.Random) -> bytes:
    """Lose everything, as some file systems do after a power cut."""
    return b""


DAMAGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "cut": cut,
    "flipped byte": flip,
    "empty": empty,
}


def with_other_version(path: Path) -> None:
    """Rewrite a file as one that is whole and of another version of its format."""
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            header = json.loads(file.metadata()["cvl-pipeline"])
        save_file(tensors, path, metadata={"cvl-pipeline": json.dumps(header | {"version": 99})})
    else:
        content = path.read_bytes()
        changed = content.replace(b"checkpoint 1 ", b"checkpoint 9 ", 1).replace(b"version 1 ", b"version 9 ")
        assert changed != content
        path.write_bytes(changed)
