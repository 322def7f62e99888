from __future__ import annotations

from pathlib import Path

import pytest
from kedro.io import DatasetError

from cvl_pipeline.kedro.datasets import FolderDataset


def test_a_folder_is_its_path_whether_it_is_there_or_not(tmp_path: Path) -> None:
    dataset = FolderDataset(filepath=str(tmp_path / "later"))
    assert dataset.load() == tmp_path / "later"
    assert dataset.exists()  # nothing has to make it first
    assert not (tmp_path / "later").exists()


def test_a_folder_is_no_output(tmp_path: Path) -> None:
    # Typed as taking None, which Kedro refuses by itself; a value reaches the dataset's own refusal.
    with pytest.raises(DatasetError, match="cannot be saved to"):
        FolderDataset(filepath=str(tmp_path / "x")).save(1)  # type: ignore[arg-type]


def test_metadata_is_kept_for_the_viewer() -> None:
    assert FolderDataset(filepath="x", metadata={"a": 1}).metadata == {"a": 1}
