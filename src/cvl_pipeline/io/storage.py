"""File format for tensors: self-describing safetensors, written atomically and verified on read."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import socket
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from cvl_pipeline.errors import InputError, causes
from cvl_pipeline.io.owner import namespace

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "cvl-pipeline"
VERSION = 2
CHECKED_ONCE = 1 << 26
"""Size in bytes from which an unchanged file is verified once per process, not on every read."""
SETTLED = 2.0
"""Age in seconds from which the time of a file's last change shows any other: file-system clocks are coarse."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
REFUSED = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.EISDIR, errno.ENOTDIR, errno.EEXIST,
    errno.ENOTEMPTY, errno.ENAMETOOLONG,
)  # fmt: skip
"""Error numbers of a full disk (FULL), and of a disk that refuses a file for another reason."""
HOST = socket.gethostname()
SCOPE = f"{HOST}-{namespace()}"
"""Where process numbers are unique: containers may share the name of a host."""
UNSUPPORTED = (errno.EINVAL, errno.ENOTSUP)
"""Error numbers of file systems that cannot flush a folder, such as shared folders of VirtualBox."""
ABANDONED = 86400.0
"""Age in seconds at which unfinished files of unknown processes, on other machines or in containers, are deleted."""

_checked: set[tuple[int, ...]] = set()


def fingerprint(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> str:
    """SHA-256, in hexadecimal, of names, types, shapes, values and configuration."""
    import torch  # imported here: slow, and most users of this module write other files

    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()


def shown(path: Path | PurePath) -> str:
    """The path for messages, relative to the working directory if it is inside.

    The published page of the pipeline shows it too, and must not reveal the machine that built it.
    """
    absolute = Path(path).absolute()
    return str(absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else absolute)


def kind_at(path: Path) -> str | None:
    """Return what is at a path: file, folder, pipe, socket or device; None if there is nothing.

    Ask before you open a path that a user names: a pipe or a device may never end.

    Raises:
        InputError: the system refuses to say, such as for links in a circle.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise unreadable(path, error) from error
    kinds = {stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}
    return kinds.get(stat.S_IFMT(mode), "device")


def check_file(path: Path, fix: str = "delete or move it") -> None:
    """Raise InputError if a path is something other than a file; a path with nothing passes."""
    kind = kind_at(path)
    if kind not in ("file", None):
        raise InputError(f"{shown(path)} is a {kind}, not a file; {fix}")


def files_below(folder: Path) -> list[Path]:
    """All files in a folder, at any depth and through links, in order.

    Raises:
        InputError: a folder cannot be read, or contains a pipe, a socket or a device.
    """

    def fail(error: OSError) -> None:
        raise unreadable(Path(error.filename or folder), error) from error

    files: list[Path] = []
    visited: set[str] = set()
    for place, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        visited.add(os.path.realpath(place))
        folders[:] = [name for name in folders if os.path.realpath(Path(place, name)) not in visited]
        for path in (Path(place, name) for name in names):
            check_file(path)
            if kind_at(path) is not None:  # a link may lead nowhere
                files.append(path)
    return sorted(files)


def unreadable(path: Path, error: Exception) -> InputError:
    """Create the error for a path that the system refuses to read."""
    number: Any = getattr(error, "errno", None)
    fixes = {
        errno.EACCES: "make it readable for you", errno.EPERM: "make it readable for you",
        errno.ELOOP: "its links lead back to themselves: replace them",
    }  # fmt: skip
    reason = os.strerror(number) if number else error  # libraries write long stories
    return InputError(f"cannot read {shown(path)}: {reason}; {fixes.get(number, 'check the path')}")


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` create a file or a folder in a temporary folder, then rename it: all or nothing.

    The temporary folder belongs to this process and is next to ``path``; it also holds any files that a
    library creates beside its output. Temporary folders of killed processes are deleted. A new folder can
    replace only an empty one.

    Args:
        path: the target; missing folders are created.
        write: receives a path of the same name in the temporary folder.

    Raises:
        InputError: the disk is full or refuses the file, or the folder was moved or deleted in the meantime.
    """
    place = partial_place(path)
    try:
        _make_folder(path.parent)
        remove_abandoned(path.parent)
        place.mkdir(exist_ok=True)
        try:
            write(place / path.name)
            _flush(place / path.name)
            (place / path.name).replace(path)
        except Exception as error:
            if place.exists():
                raise
            raise InputError(
                f"cannot write {shown(path)}: its folder was moved or deleted in the meantime; move it back, and run "
                "the same command again"
            ) from error
        finally:
            shutil.rmtree(place, ignore_errors=True)
        _flush_entry(path.parent)
    except Exception as error:
        # Libraries wrap the system's errors in their own.
        for cause in causes(error):
            if isinstance(cause, OSError) and _is_of_disk(cause):
                raise InputError(f"cannot write {shown(path)}: {refusal(cause)}") from error
        raise


def _is_of_disk(error: OSError) -> bool:
    """Whether the disk is full or refuses a file; servers and firewalls refuse without the name of a file."""
    if error.errno in (errno.EACCES, errno.EPERM):
        return error.filename is not None
    return error.errno in (*FULL, *REFUSED)


def refusal(error: OSError) -> str:
    """Explain why the disk refused a file, and how to fix it."""
    if error.errno in FULL:
        return f"the disk is full ({error.strerror}); free some space, or choose another folder"
    if error.errno == errno.EISDIR:
        return "a folder has its name; delete or move the folder"
    return f"{error.strerror or error}; make the folder writable, or choose another one"


def _make_folder(folder: Path) -> None:
    missing = [part for part in (folder, *folder.parents) if not part.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for part in missing:
        _flush_entry(part.parent)


def _flush(path: Path) -> None:
    """Flush the content of a file, or of all files in a folder, to disk."""
    if path.is_dir():
        for child in path.iterdir():
            _flush(child)
        _flush_entry(path)
    else:
        with path.open("rb+") as file:
            os.fsync(file.fileno())


def _flush_entry(folder: Path) -> None:
    """Flush the names of a folder's files to disk; otherwise a power cut may undo a rename."""
    if os.name == "posix":  # other systems cannot open a folder
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
        finally:
            os.close(descriptor)


def partial_place(path: Path) -> Path:
    """Temporary folder in which this process creates a file before it renames it to ``path``."""
    return path.with_name(f".partial-{os.getpid()}@{SCOPE}@{path.name}")


def remove_abandoned(folder: Path) -> None:
    """Delete the temporary folders of killed processes from a folder."""
    for place in folder.glob(".partial-*"):
        match = re.fullmatch(r"\.partial-(\d+)@([^@]*)@.+", place.name)
        if match and _abandoned(place, match[2], int(match[1])):
            shutil.rmtree(place, ignore_errors=True)


def is_alive(process: int) -> bool:
    """Whether a process of that number runs here; assumed if the system cannot report it."""
    if os.name != "posix":  # other systems would end the process here
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it belongs to another user
        return True
    return True


def _abandoned(place: Path, scope: str, process: int) -> bool:
    """Whether no process writes to the place any more."""
    if scope == SCOPE:
        return not is_alive(process)
    try:
        return time.time() - place.stat().st_mtime > ABANDONED
    except FileNotFoundError:  # it has finished in the meantime
        return False


def foreign(path: Path) -> InputError:
    """Create the error for a file of another program."""
    return InputError(f"{shown(path)} was not written by {FORMAT}; delete it and rerun its stage")


def altered(path: Path) -> InputError:
    """Create the error for a file whose content has changed."""
    return InputError(
        f"{shown(path)} is damaged (content does not match its checksum); delete it and rerun its stage"
    )


def other_version(path: Path, found: Any, known: int) -> InputError:
    """Create the error for a file of another format version."""
    return InputError(
        f"{shown(path)} has format version {found}, this program reads {known}; delete it and rerun its stage"
    )


def write_tensors(path: Path, kind: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Write an artifact.

    Args:
        path: ends in ``.safetensors``; missing folders are created.
        kind: kind of artifact, such as ``critic``; verified on read.
        tensors: its arrays.
        config: plain values needed to interpret them.
    """
    from safetensors.torch import save_file  # imports torch

    header = {
        "version": VERSION,
        "kind": kind,
        "config": dict(config),
        "checksum": _checksum(kind, tensors, config),
    }
    # One entry: safetensors orders several entries differently in each run, but equal content must give
    # equal bytes.
    metadata = {FORMAT: json.dumps(header, sort_keys=True)}
    plain: dict[str, Tensor] = {}
    owners: set[int] = set()
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        memory = value.untyped_storage().data_ptr()
        # Safetensors refuses two names for one memory: copy the second. Others may be large mapped files.
        plain[name] = value.clone() if memory in owners else value
        owners.add(memory)

    def write(partial: Path) -> None:
        # Safetensors creates files that only their owner can read. A file of open() shows the usual mode; asking for
        # the umask would change it for all threads.
        probe = partial.with_name(f"{partial.name}.probe")
        probe.touch()
        try:
            save_file(plain, partial, metadata=metadata)
            partial.chmod(stat.S_IMODE(probe.stat().st_mode))
        except SafetensorError as error:
            number = re.search(r"\(os error (\d+)\)", str(error))  # the only trace of the system's error
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(partial)) from error

    write_atomically(path, write)


def read_tensors(path: Path, kind: str | None) -> tuple[str, dict[str, Tensor], dict[str, Any]]:
    """Read an artifact and verify it.

    The tensors are the file, mapped into memory: pages are read on use and released when memory runs short.
    Writing to a tensor does not change the file.

    Args:
        path: the file.
        kind: the expected kind; None accepts any.

    Returns:
        Its kind, its tensors and its configuration.

    Raises:
        InputError: the file is missing, truncated, altered, from another program, of another kind, or of
            another format version.
    """
    identity = _identity(path)
    with _open(path, kind) as (file, header):
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    config: dict[str, Any] = header["config"]
    if identity not in _checked or _identity(path) != identity:
        if _checksum(header["kind"], tensors, config) != header["checksum"]:
            raise altered(path)
        _, _, size, _, changed = identity
        settled = time.time() - changed / 1e9 > SETTLED and _identity(path) == identity
        if size >= CHECKED_ONCE and settled:
            _checked.add(identity)
    return header["kind"], tensors, config


def _identity(path: Path) -> tuple[int, ...]:
    """Numbers that differ after every change of a file: nobody can set st_ctime back, as one can st_mtime."""
    try:
        state = path.stat()
    except OSError:  # reading reports it
        return (0,) * 5
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns


@contextmanager
def _open(path: Path, kind: str | None) -> Iterator[tuple[Any, dict[str, Any]]]:
    check_file(path, "delete it and rerun its stage")
    try:
        with safe_open(path, framework="pt") as file:
            yield file, _checked_header(path, kind, file.metadata())
    except FileNotFoundError as error:
        raise InputError(f"{shown(path)} does not exist; run the stage that makes it") from error
    except PermissionError as error:
        raise unreadable(path, error) from error
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{shown(path)} is damaged or not a safetensors file ({error}); delete it and rerun its stage"
        ) from error


def _checksum(kind: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> str:
    return fingerprint(tensors, {"version": VERSION, "kind": kind, "config": dict(config)})


def _checked_header(path: Path, kind: str | None, metadata: dict[str, str] | None) -> dict[str, Any]:
    try:
        header = json.loads((metadata or {})[FORMAT])
        fields = {key: header[key] for key in ("version", "kind", "config", "checksum")}
    except (KeyError, TypeError, ValueError) as error:
        raise foreign(path) from error
    if fields["version"] != VERSION:
        raise other_version(path, fields["version"], VERSION)
    if kind is not None and fields["kind"] != kind:
        raise InputError(
            f"{shown(path)} contains a {fields['kind']}, not a {kind}; delete it and rerun its stage"
        )
    return fields
