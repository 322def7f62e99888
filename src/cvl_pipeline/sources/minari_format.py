"""Where Minari keeps datasets, and how one is opened, checked and downloaded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from cvl_pipeline.errors import InputError, unknown_name
from cvl_pipeline.io.storage import files_below, kind_at, shown, unreadable
from cvl_pipeline.paths import expanded
from cvl_pipeline.sources.hdf5 import COPY, open_hdf5

if TYPE_CHECKING:
    from minari import MinariDataset

PARTS, HELD_OUT = "cvl_parts", "cvl_held_out"
"""Metadata of ours: entries of a Dict are parts without an image too; number of the last episodes that are held out."""


def dataset_folder(dataset_id: str, root: Path | None) -> tuple[Path, Path]:
    """Return the folder of all datasets and the folder of this dataset.

    Args:
        dataset_id: such as ``D4RL/pointmaze/umaze-v2``.
        root: the folder of all datasets; None: ``MINARI_DATASETS_PATH``, or Minari's folder in the home folder.

    Raises:
        InputError: Minari is not installed, the id is malformed, or the root is no folder.
    """
    try:
        from minari.dataset.minari_dataset import parse_dataset_id
        from minari.storage.datasets_root_dir import get_dataset_path
    except ImportError as error:
        raise InputError(
            f"Minari dataset '{dataset_id}' needs Minari: pip install \"cvl-pipeline[minari]\""
        ) from error
    try:
        parse_dataset_id(dataset_id)
    except (TypeError, ValueError) as error:  # TypeError: an id without a version
        raise InputError(
            f"Minari dataset '{dataset_id}': an id has the form name-v0 or namespace/name-v0, of letters, "
            "digits, '_' and '-', such as D4RL/pointmaze/umaze-v2"
        ) from error
    root = expanded(get_dataset_path() if root is None else root).absolute()  # Minari needs it to write
    kind = kind_at(root)
    if kind not in ("folder", None):
        raise InputError(
            f"{shown(root)} is a {kind}, not a folder of Minari datasets; name such a folder (dataset.path)"
        )
    return root, root / dataset_id


def open_dataset(
    dataset_id: str, root: Path | None, download: bool
) -> tuple[MinariDataset, Path, dict[str, Any]]:
    """Return a dataset, its folder and its stored metadata; see ``dataset_folder`` for the arguments.

    Raises:
        InputError: see ``dataset_folder``; the dataset is not there and is not to be downloaded or cannot be, or it is
            damaged.
    """
    root, folder = dataset_folder(dataset_id, root)
    from minari import MinariDataset
    from minari.dataset.minari_storage import MinariStorage

    data = folder / "data"
    with reading(folder):
        local = data.exists() and not _mark(folder).exists()
    if not local:
        if not download:
            raise _unknown(dataset_id, root)
        _download(dataset_id, root, folder)
    with reading(folder):
        files_below(folder)  # a pipe in the folder would never end
        metadata = MinariStorage.read_raw_metadata(data)
        for field in ("observation_space", "action_space"):
            # Without it, Minari would make the environment, and so run any code that the file names.
            if field not in metadata:
                raise InputError(f"{shown(folder)}: its metadata has no {field}; record it again with Minari")
        return MinariDataset(data), folder, metadata


def check_stored_values(folder: Path) -> None:
    """Raise InputError for HDF5 in which values are missing or from other files."""
    path = folder / "data" / "main_data.hdf5"
    with reading(folder):
        if not path.exists():
            return
        with open_hdf5(path) as file:
            linked = list(file.files)[1:]
            if linked:
                raise InputError(
                    f"{shown(path)}: takes values from {shown(linked[0])} (an external link), which Minari would read "
                    f"unchecked; {COPY}"
                )
            for name in (*file.arrays, *file.groups):
                fault = file.fault(name)
                if fault is not None:
                    raise InputError(f"{shown(path)}: array '{name}': {fault}")


def _unknown(dataset_id: str, root: Path) -> InputError:
    folders = [path.parents[1].relative_to(root) for path in root.glob("**/data/metadata.json")]
    local = sorted(path.as_posix() for path in folders if not any(part[0] == "." for part in path.parts))
    fix = f"{_by_hand(dataset_id)} to {shown(root / dataset_id)}"
    if not local:
        return InputError(f"Minari dataset '{dataset_id}': {shown(root)} contains no dataset; {fix}")
    return InputError(f"{unknown_name('Minari dataset', dataset_id, local)} (in {shown(root)}); {fix}")


def _by_hand(dataset_id: str) -> str:
    return f"run `minari download {dataset_id}` on a machine with a network and copy the downloaded folder"


def _mark(folder: Path) -> Path:
    """The file that is beside a dataset while it is downloaded: Minari leaves what it has of an interrupted one."""
    return folder.with_name(f"{folder.name}.unfinished")


def _download(dataset_id: str, root: Path, folder: Path) -> None:
    from minari import download_dataset

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _mark(folder).touch()
        with datasets_root(root):
            download_dataset(dataset_id, force_download=folder.exists())
        _mark(folder).unlink()
    except Exception as error:  # any error of a network, a remote storage or its client
        raise InputError(
            f"Minari dataset '{dataset_id}' is not in {shown(root)} and could not be downloaded "
            f"({type(error).__name__}: {line(error)}); {_by_hand(dataset_id)} to {shown(root / dataset_id)}"
        ) from error


@contextmanager
def datasets_root(root: Path) -> Iterator[None]:
    """Set the folder of datasets, which Minari reads from an environment variable at every call."""
    name = "MINARI_DATASETS_PATH"
    before = os.environ.get(name)
    os.environ[name] = str(root)
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Convert the errors of a damaged dataset, of any type, to an InputError of one line."""
    try:
        yield
    except InputError:
        raise
    except PermissionError as error:
        raise unreadable(Path(error.filename or folder), error) from error
    except Exception as error:
        raise InputError(
            f"{shown(folder)}: Minari cannot read it ({type(error).__name__}: {line(error)}); delete the "
            "folder and download or record it again"
        ) from error


def line(text: object) -> str:
    """Text of Minari or Gymnasium as one line, cut after 300 characters."""
    return shorten(str(text), width=300, placeholder=" ...")
