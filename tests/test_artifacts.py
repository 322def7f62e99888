from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cvl_pipeline.artifacts import KINDS, load_artifact, save_artifact
from cvl_pipeline.errors import InputError
from cvl_pipeline.storage import write_tensors
from tests.artifacts import make_artifacts, tensors_of
from tests.builders import names_in


def test_every_kind_is_tested() -> None:
    assert set(make_artifacts()) == set(KINDS)


@pytest.mark.parametrize("named", [True, False], ids=["kind named", "kind found"])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_what_is_saved_is_loaded(tmp_path: Path, kind: str, named: bool) -> None:
    saved = make_artifacts()[kind]
    path = tmp_path / "new" / "x.safetensors"
    save_artifact(path, kind, saved)
    assert names_in(path.parent) == ["x.safetensors"]
    loaded = load_artifact(str(path), kind if named else None)
    assert type(loaded) is type(saved)
    ours, theirs = tensors_of(loaded), tensors_of(saved)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name].dtype == value.dtype
        assert torch.equal(ours[name], value), name


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_same_artifact_gives_the_same_bytes(tmp_path: Path, kind: str) -> None:
    for name in ("a", "b"):
        save_artifact(tmp_path / name, kind, make_artifacts()[kind])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("kind", ["critic", "actor"])
def test_a_loaded_network_computes_what_the_saved_one_did(tmp_path: Path, kind: str) -> None:
    saved = make_artifacts()[kind]
    save_artifact(tmp_path / "x.safetensors", kind, saved)
    loaded = load_artifact(tmp_path / "x.safetensors", kind)
    assert loaded.shape == saved.shape
    assert not loaded.training
    observations, actions = torch.randn(5, 3), torch.rand(5, 2)
    if kind == "critic":
        assert torch.equal(loaded.phi(observations, actions), saved.phi(observations, actions))
        assert torch.equal(loaded.temperature, saved.temperature)
        assert loaded.log_temperature.requires_grad
    else:
        assert torch.equal(loaded(observations), saved(observations))
        assert torch.equal(loaded.log_prob(observations, actions), saved.log_prob(observations, actions))


def test_unknown_kinds_are_refused_with_the_near_ones(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(InputError, match="unknown kind of artifact 'critics': did you mean critic"):
        save_artifact(path, "critics", make_artifacts()["critic"])
    assert names_in(tmp_path) == []
    write_tensors(path, "crytic", {"a": torch.ones(1)}, {})
    with pytest.raises(InputError, match="did you mean critic"):
        load_artifact(path)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_artifact(path, "actor", make_artifacts()["actor"])
    with pytest.raises(InputError, match=r"x\.safetensors holds a actor, not a critic"):
        load_artifact(path, "critic")


@pytest.mark.parametrize("kind", ["critic", "rewards"])
def test_a_file_whose_content_does_not_fit_its_kind_is_named(tmp_path: Path, kind: str) -> None:
    # Written by this format's rules, whole, but by a program of another version.
    path = tmp_path / "x.safetensors"
    write_tensors(path, kind, {"other": torch.ones(1)}, {"hidden": [3], "depth": 1})
    with pytest.raises(InputError, match=r"x\.safetensors"):
        load_artifact(path, kind)
