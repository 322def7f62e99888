from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from kedro.io import DatasetError

from cvl_pipeline.datasets.artifacts import KINDS, ArtifactDataset
from cvl_pipeline.errors import InputError
from cvl_pipeline.networks.actor import ActorShape, GaussianActor
from cvl_pipeline.networks.critic import ContrastiveCritic, CriticShape
from cvl_pipeline.readout.exact import Readout
from cvl_pipeline.trajectories.preparation import fit_normalisation, split_episodes
from tests.builders import make_rewards, make_transitions


def _artifacts() -> dict[str, Any]:
    transitions = make_transitions([5, 1, 7], [True, False, False])
    split = split_episodes(transitions, 0.3, 0)
    normalisation = fit_normalisation(transitions, split, 1e-3)
    torch.manual_seed(0)
    return {
        "transitions": transitions,
        "rewards": make_rewards(transitions),
        "split": split,
        "normalisation": normalisation,
        "critic": ContrastiveCritic(CriticShape(3, 2, (8, 4), 6, "unit_norm", 0.3, True), normalisation),
        "readout": Readout(torch.randn(9, 6), torch.rand(9), torch.tensor(0.3), torch.tensor(0.97)),
        "actor": GaussianActor(
            ActorShape(3, 2, (8, 4)), normalisation, (torch.tensor([-1.0, -2.0]), torch.tensor([1.0, 0.5]))
        ),
    }


def _dataset(path: Path, kind: str) -> ArtifactDataset:
    return ArtifactDataset(filepath=str(path), kind=kind)


def _cause(error: BaseException) -> InputError:
    """Kedro wraps what a dataset raises; the command line looks for the cause in the same way."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, InputError):
        cause = cause.__cause__
    assert cause is not None, f"no InputError behind {error!r}"
    return cause


def test_every_kind_is_tested() -> None:
    assert set(_artifacts()) == set(KINDS)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_what_is_saved_is_loaded(tmp_path: Path, kind: str) -> None:
    saved = _artifacts()[kind]
    dataset = _dataset(tmp_path / "new" / "x.safetensors", kind)
    assert not dataset.exists()
    dataset.save(saved)
    assert dataset.exists()
    dataset.check()
    loaded = dataset.load()
    assert type(loaded) is type(saved)
    if isinstance(saved, torch.nn.Module):
        assert loaded.shape == saved.shape
        assert not loaded.training
        ours, theirs = dict(loaded.state_dict()), dict(saved.state_dict())
    else:
        ours, theirs = ({field.name: getattr(x, field.name) for field in fields(x)} for x in (loaded, saved))
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name].dtype == value.dtype
        assert torch.equal(ours[name], value), name


@pytest.mark.parametrize("kind", ["critic", "actor"])
def test_a_loaded_network_computes_what_the_saved_one_did(tmp_path: Path, kind: str) -> None:
    saved = _artifacts()[kind]
    dataset = _dataset(tmp_path / "x.safetensors", kind)
    dataset.save(saved)
    loaded = dataset.load()
    observations, actions = torch.randn(5, 3), torch.rand(5, 2)
    if kind == "critic":
        assert torch.equal(loaded.phi(observations, actions), saved.phi(observations, actions))
        assert torch.equal(loaded.temperature, saved.temperature)
        assert loaded.log_temperature.requires_grad
    else:
        assert torch.equal(loaded(observations), saved(observations))
        assert torch.equal(loaded.log_prob(observations, actions), saved.log_prob(observations, actions))


def test_an_artifact_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    _dataset(path, "actor").save(_artifacts()["actor"])
    critic = _dataset(path, "critic")
    with pytest.raises(InputError, match="holds a actor, not a critic"):
        critic.check()
    with pytest.raises(DatasetError) as caught:
        critic.load()
    assert str(path) in str(_cause(caught.value))


def test_missing_and_damaged_artifacts_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    dataset = _dataset(path, "rewards")
    with pytest.raises(InputError, match="does not exist"):
        dataset.check()
    with pytest.raises(DatasetError) as caught:
        dataset.load()
    assert "does not exist" in str(_cause(caught.value))
    dataset.save(_artifacts()["rewards"])
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(InputError, match="damaged"):
        dataset.check()
    with pytest.raises(DatasetError) as caught:
        dataset.load()
    assert str(path) in str(_cause(caught.value))


def test_an_unknown_kind_is_refused_with_the_near_ones() -> None:
    with pytest.raises(Exception, match="did you mean critic") as caught:
        ArtifactDataset(filepath="x.safetensors", kind="critics")
    assert isinstance(_cause(caught.value), InputError)


def test_preview_tells_kind_shapes_and_configuration(tmp_path: Path) -> None:
    dataset = _dataset(tmp_path / "x.safetensors", "actor")
    dataset.save(_artifacts()["actor"])
    preview = json.loads(dataset.preview())
    assert preview["kind"] == "actor"
    assert preview["config"] == {"observation_size": 3, "action_size": 2, "hidden": [8, 4]}
    assert preview["tensors"]["action_low"] == "torch.float32 [2]"
    assert preview["tensors"]["network.0.weight"] == "torch.float32 [8, 3]"


def test_metadata_is_kept_for_the_viewer() -> None:
    metadata = {"kedro-viz": {"layer": "models"}}
    assert ArtifactDataset(filepath="x", kind="actor", metadata=metadata).metadata == metadata
