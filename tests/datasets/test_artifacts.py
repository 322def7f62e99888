from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from kedro.io import DatasetError

from cvl_pipeline.artifacts import KINDS
from cvl_pipeline.datasets.artifacts import ArtifactDataset
from cvl_pipeline.errors import InputError
from tests.artifacts import make_artifacts, tensors_of


def _dataset(path: Path, kind: str) -> ArtifactDataset:
    return ArtifactDataset(filepath=str(path), kind=kind)


def _cause(error: BaseException) -> InputError:
    """Kedro wraps what a dataset raises; the command line looks for the cause in the same way."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, InputError):
        cause = cause.__cause__
    assert cause is not None, f"no InputError behind {error!r}"
    return cause


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_what_is_saved_is_loaded(tmp_path: Path, kind: str) -> None:
    saved = make_artifacts()[kind]
    dataset = _dataset(tmp_path / "new" / "x.safetensors", kind)
    assert not dataset.exists()
    dataset.save(saved)
    assert dataset.exists()
    loaded = dataset.load()
    assert type(loaded) is type(saved)
    ours, theirs = tensors_of(loaded), tensors_of(saved)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name


def test_an_artifact_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    _dataset(path, "actor").save(make_artifacts()["actor"])
    critic = _dataset(path, "critic")
    with pytest.raises(DatasetError) as caught:
        critic.load()
    message = str(_cause(caught.value))
    assert str(path) in message
    assert "holds a actor, not a critic" in message


def test_missing_and_damaged_artifacts_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    dataset = _dataset(path, "rewards")
    with pytest.raises(DatasetError) as caught:
        dataset.load()
    assert "does not exist" in str(_cause(caught.value))
    dataset.save(make_artifacts()["rewards"])
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DatasetError) as caught:
        dataset.load()
    message = str(_cause(caught.value))
    assert str(path) in message
    assert "damaged" in message


def test_an_unknown_kind_is_refused_with_the_near_ones() -> None:
    with pytest.raises(Exception, match="did you mean critic") as caught:
        ArtifactDataset(filepath="x.safetensors", kind="critics")
    assert isinstance(_cause(caught.value), InputError)


def test_preview_tells_kind_shapes_and_configuration(tmp_path: Path) -> None:
    dataset = _dataset(tmp_path / "x.safetensors", "actor")
    dataset.save(make_artifacts()["actor"])
    preview = json.loads(dataset.preview())
    assert preview["kind"] == "actor"
    assert preview["config"] == {"observation_size": 3, "action_size": 2, "hidden": [8, 4]}
    assert preview["tensors"]["action_low"] == "torch.float32 [2]"
    assert preview["tensors"]["network.0.weight"] == "torch.float32 [8, 3]"


def test_metadata_is_kept_for_the_viewer() -> None:
    metadata = {"kedro-viz": {"layer": "models"}}
    assert ArtifactDataset(filepath="x", kind="actor", metadata=metadata).metadata == metadata
