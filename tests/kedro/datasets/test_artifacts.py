from __future__ import annotations

import json
from pathlib import Path

import pytest

from cvl_pipeline.errors import InputError, causes
from cvl_pipeline.kedro.datasets.artifacts import ArtifactDataset
from tests.artifacts import NAMES, assert_alike, kind_of, make_artifacts
from tests.kedro.datasets.refusals import refusal


def _dataset(path: Path, kind: str) -> ArtifactDataset:
    return ArtifactDataset(filepath=str(path), kind=kind)


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_artifact_is_loaded_as_it_was(tmp_path: Path, name: str) -> None:
    saved = make_artifacts()[name]
    dataset = _dataset(tmp_path / "new" / "x.safetensors", kind_of(name))
    assert not dataset.exists()
    dataset.save(saved)
    assert dataset.exists()
    assert_alike(dataset.load(), saved)


def test_an_artifact_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    _dataset(path, "policy").save(make_artifacts()["policy"])
    message = refusal(_dataset(path, "critic"))
    assert str(path) in message
    assert "contains a policy, not a critic" in message


def test_missing_and_damaged_artifacts_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    dataset = _dataset(path, "rewards")
    assert "does not exist" in refusal(dataset)
    dataset.save(make_artifacts()["rewards"])
    path.write_bytes(path.read_bytes()[:-5])
    message = refusal(dataset)
    assert str(path) in message
    assert "damaged" in message


def test_an_unknown_kind_is_refused_with_the_closest_ones() -> None:
    with pytest.raises(Exception, match="did you mean critic") as caught:
        ArtifactDataset(filepath="x.safetensors", kind="critics")
    assert any(isinstance(cause, InputError) for cause in causes(caught.value))


def test_a_preview_has_description_kind_shapes_and_configuration(tmp_path: Path) -> None:
    path = str(tmp_path / "x.safetensors")
    dataset = ArtifactDataset(filepath=path, kind="policy", metadata={"description": "It acts."})
    dataset.save(make_artifacts()["policy"])
    preview = json.loads(dataset.preview())
    assert preview["description"] == "It acts."
    assert preview["kind"] == "policy"
    actor = {
        "observation_shape": [3], "action_size": 2, "hidden": [8, 4], "encoder": {}, "class": "GaussianActor"
    }  # fmt: skip
    assert preview["config"] == actor
    assert preview["tensors"]["action_low"] == "torch.float32 [2]"
    assert preview["tensors"]["network.0.weight"] == "torch.float32 [8, 3]"
    dataset.save(make_artifacts()["policy, best of n"])
    preview = json.loads(dataset.preview())
    assert preview["config"]["class"] == "BestOfN"
    assert preview["config"]["actor"] == actor
    assert preview["config"]["readout"] == {"discount": 0.9, "self_normalised": True, "class": "ExactReadout"}
    assert preview["tensors"]["readout.psi"] == "torch.float32 [9, 6]"


def test_metadata_is_kept_for_the_viewer() -> None:
    metadata = {"kedro-viz": {"layer": "models"}}
    assert ArtifactDataset(filepath="x", kind="policy", metadata=metadata).metadata == metadata
