from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from kedro.io import Version
from matplotlib.figure import Figure

from cvl_pipeline.errors import InputError
from cvl_pipeline.kedro.datasets import ArtifactDataset, FigureDataset, JSONDataset, ParquetDataset
from cvl_pipeline.kedro.datasets.interactive import PlotlyDataset
from tests.artifacts import assert_alike, kind_of, make_artifacts, with_flipped_bit
from tests.kedro.datasets.refusals import refusal
from tests.s3 import Bucket

TABLE = pd.DataFrame({"episode": [0, 1], "return": [0.5, np.nan]})
KINDS = {"x.parquet": ParquetDataset, "x.json": JSONDataset}
CONTENTS: dict[str, Any] = {"x.parquet": TABLE, "x.json": {"success_rate": 0.5}}


def _dataset(dataset: Any, bucket: Bucket, name: str, cache: Path, **others: Any) -> Any:
    return dataset(
        filepath=f"{bucket.url}/folder/{name}", credentials=bucket.options, cache=str(cache), **others
    )


@pytest.mark.parametrize("name", make_artifacts())
def test_an_artifact_at_a_url_is_loaded_on_another_machine(bucket: Bucket, name: str, tmp_path: Path) -> None:
    here = _dataset(ArtifactDataset, bucket, "x.safetensors", tmp_path / "here", kind=kind_of(name))
    there = _dataset(ArtifactDataset, bucket, "x.safetensors", tmp_path / "there", kind=kind_of(name))
    assert not there.exists()
    here.save(make_artifacts()[name])
    assert there.exists()
    assert_alike(there.load(), make_artifacts()[name])
    assert "tensors" in str(there.preview())
    assert bucket.names() == ["folder/x.safetensors"]


@pytest.mark.parametrize("name", KINDS)
def test_a_report_at_a_url_is_loaded_on_another_machine(bucket: Bucket, name: str, tmp_path: Path) -> None:
    _dataset(KINDS[name], bucket, name, tmp_path / "here").save(CONTENTS[name])
    there = _dataset(KINDS[name], bucket, name, tmp_path / "there")
    assert there.exists()
    assert str(there.load()) == str(CONTENTS[name])
    assert there.preview()
    assert there._describe()["filepath"] == f"{bucket.url}/folder/{name}"
    assert bucket.names() == [f"folder/{name}"]


def test_pictures_are_written_to_a_url(bucket: Bucket, tmp_path: Path) -> None:
    import plotly.graph_objects

    _dataset(FigureDataset, bucket, "x.png", tmp_path).save(Figure(figsize=(1, 1)))
    _dataset(PlotlyDataset, bucket, "y.json", tmp_path).save(plotly.graph_objects.Figure())
    assert bucket.names() == ["folder/x.png", "folder/y.json"]
    assert bucket.files.cat_file(f"{bucket.url}/folder/x.png").startswith(b"\x89PNG")


def test_a_damaged_copy_is_replaced_and_a_damaged_original_is_named(bucket: Bucket, tmp_path: Path) -> None:
    dataset = _dataset(ParquetDataset, bucket, "x.parquet", tmp_path)
    dataset.save(TABLE)
    copy = dataset.location.path
    copy.write_bytes(with_flipped_bit(copy.read_bytes()))
    dataset.location._note(dataset.location.identity())  # a disk reports no flipped bits
    pd.testing.assert_frame_equal(dataset.load(), TABLE)
    copy.write_bytes(with_flipped_bit(copy.read_bytes()))
    bucket.files.put_file(str(copy), f"{bucket.url}/folder/x.parquet")
    message = refusal(dataset)
    assert message.startswith(f"{bucket.url}/folder/x.parquet is damaged")
    assert str(copy) not in message


def test_a_missing_file_at_a_url_is_named_in_the_error(bucket: Bucket, tmp_path: Path) -> None:
    for name, kind in KINDS.items():
        assert refusal(_dataset(kind, bucket, name, tmp_path)).startswith(
            f"{bucket.url}/folder/{name} does not exist"
        )


def test_large_artifacts_are_memory_mapped_from_their_copy(bucket: Bucket, tmp_path: Path) -> None:
    dataset = _dataset(ArtifactDataset, bucket, "x.safetensors", tmp_path, kind="transitions")
    dataset.save(make_artifacts()["transitions"])
    loaded = dataset.load()
    assert str(dataset.location.path) in Path("/proc/self/maps").read_text()
    del loaded


def test_an_artifact_that_is_about_to_be_recreated_counts_as_missing(bucket: Bucket, tmp_path: Path) -> None:
    local = JSONDataset(filepath=str(tmp_path / "x.json"))
    for dataset in (local, _dataset(JSONDataset, bucket, "x.json", tmp_path)):
        dataset.save({})
        assert dataset.exists()
        dataset.outdated = True
        assert not dataset.exists()


def test_versions_and_credentials_without_a_url_are_refused(bucket: Bucket) -> None:
    with pytest.raises(
        InputError, match=r"^data/x\.json: files of this type have no versions; remove 'versioned'"
    ):
        JSONDataset(filepath="data/x.json", version=Version(None, None))
    with pytest.raises(InputError, match=r"x\.json is on this machine and needs no credentials") as caught:
        JSONDataset(filepath="data/x.json", credentials=bucket.options)
    assert bucket.options["secret"] not in str(caught.value)
