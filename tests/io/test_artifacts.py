from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cvl_pipeline.episodes.container import Rewards
from cvl_pipeline.errors import InputError
from cvl_pipeline.io.artifacts import CLASSES, KINDS, load_artifact, save_artifact
from cvl_pipeline.io.artifacts import kind_of as kind_of_object
from cvl_pipeline.io.storage import read_tensors, write_tensors
from cvl_pipeline.readout.q_function import QFunction
from cvl_pipeline.testing.builders import names_in
from tests.artifacts import NAMES, assert_alike, kind_of, make_artifacts


def _reloaded(folder: Path, name: str) -> tuple[Any, Any]:
    """The artifact that was saved, and what was loaded."""
    saved, path = make_artifacts()[name], folder / "x.safetensors"
    save_artifact(path, kind_of(name), saved)
    return saved, load_artifact(path, kind_of(name))


def _inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(50, 3, generator=generator), torch.rand(50, 2, generator=generator)


def test_every_kind_is_tested() -> None:
    assert {kind_of(name) for name in make_artifacts()} == set(KINDS)


def test_the_kind_follows_from_the_class() -> None:
    for name, artifact in make_artifacts().items():
        assert kind_of_object(artifact) == kind_of(name)


def test_every_class_is_tested() -> None:
    classes = {
        f"{type(artifact).__module__}:{type(artifact).__name__}" for artifact in make_artifacts().values()
    }
    assert classes == set(CLASSES)


def test_the_kind_of_a_subclass_is_that_of_its_base() -> None:
    class Own(Rewards):
        pass

    assert kind_of_object(Own(torch.zeros(1), torch.zeros(1, dtype=torch.bool))) == "rewards"


@pytest.mark.parametrize("other", [3.0, {"a": 1}, torch.ones(2), Rewards])
def test_an_object_that_is_no_artifact_is_refused(other: Any) -> None:
    with pytest.raises(InputError, match=f"^{type(other).__name__} is not an artifact; known: transitions, "):
        kind_of_object(other)


@pytest.mark.parametrize("reported", [True, False])
def test_files_keep_whether_success_is_reported(tmp_path: Path, reported: bool) -> None:
    rewards = Rewards(torch.zeros(3), torch.zeros(3, dtype=torch.bool), torch.tensor(reported))
    save_artifact(tmp_path / "x.safetensors", "rewards", rewards)
    assert load_artifact(tmp_path / "x.safetensors").reports_success is reported


def test_counts_of_dropped_steps_are_stored_only_if_there_are_some(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    rewards = Rewards(torch.zeros(3), torch.zeros(3, dtype=torch.bool))
    save_artifact(path, "rewards", rewards)
    assert set(read_tensors(path, "rewards")[1]) == {
        "rewards",
        "successes",
        "success_reported",
    }  # as in older versions
    save_artifact(path, "rewards", replace(rewards, dropped_steps=torch.tensor(5)))
    loaded = load_artifact(path)
    assert (int(loaded.dropped_steps), int(loaded.dropped_episodes)) == (5, 0)


def test_rewards_of_an_older_version_report_success(tmp_path: Path) -> None:
    tensors = {"rewards": torch.zeros(3), "successes": torch.tensor([False, True, False])}
    write_tensors(tmp_path / "x.safetensors", "rewards", tensors, {})
    rewards = load_artifact(tmp_path / "x.safetensors")
    assert rewards.reports_success
    assert rewards.successes.tolist() == [False, True, False]


@pytest.mark.parametrize("name", NAMES)
def test_an_artifact_is_loaded_as_it_was_saved(tmp_path: Path, name: str) -> None:
    saved = make_artifacts()[name]
    path = tmp_path / "new" / "x.safetensors"
    save_artifact(path, kind_of(name), saved)
    assert names_in(path.parent) == ["x.safetensors"]
    for kind in (kind_of(name), None):  # named, or found in the file
        assert_alike(load_artifact(str(path), kind), saved)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_artifact_gives_the_same_bytes(tmp_path: Path, name: str) -> None:
    for copy in ("a", "b"):
        save_artifact(tmp_path / copy, kind_of(name), make_artifacts()[name])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("name", [name for name in NAMES if kind_of(name) == "critic"])
def test_a_loaded_critic_computes_the_same(tmp_path: Path, name: str) -> None:
    saved, loaded = _reloaded(tmp_path, name)
    assert loaded.shape == saved.shape
    assert not loaded.training
    observations, actions = _inputs()
    offsets = torch.arange(50) + 1 if saved.shape.horizon_conditioning else None
    assert torch.equal(loaded.phi(observations, actions, offsets), saved.phi(observations, actions, offsets))
    absorbed = torch.arange(50) % 2 == 0
    assert torch.equal(loaded.psi(observations, absorbed), saved.psi(observations, absorbed))
    assert torch.equal(loaded.temperature, saved.temperature)
    assert loaded.log_temperature.requires_grad == saved.shape.learned_temperature


@pytest.mark.parametrize("name", [name for name in NAMES if kind_of(name) == "readout"])
def test_a_loaded_readout_gives_the_values_of_the_saved_one(tmp_path: Path, name: str) -> None:
    saved, loaded = _reloaded(tmp_path, name)
    generator = torch.Generator().manual_seed(0)
    phi, inputs = torch.randn(5, 6, generator=generator), torch.randn(5, 5, generator=generator)
    for query in (phi, phi.unsqueeze(1).expand(-1, 3, -1)):
        for one, other in zip(
            loaded.values_and_sample_size(query, inputs),
            saved.values_and_sample_size(query, inputs),
            strict=True,
        ):
            # Loaded tensors lie elsewhere in memory, which may change the order of a sum.
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in NAMES if kind_of(name) == "policy"])
def test_a_loaded_policy_acts_the_same(tmp_path: Path, name: str) -> None:
    saved, loaded = _reloaded(tmp_path, name)
    observations, _ = _inputs()
    actions = loaded(observations)
    assert torch.equal(actions, saved(observations))
    assert len(actions.unique(dim=0)) > 1, "it looks at what it sees"
    assert not any(part.training for part in loaded.modules())


@pytest.mark.parametrize("name", ["policy", "policy, categorical"])
def test_a_loaded_actor_is_as_stochastic_as_the_saved_one(tmp_path: Path, name: str) -> None:
    saved, loaded = _reloaded(tmp_path, name)
    observations, actions = _inputs()
    assert loaded.shape == saved.shape
    assert torch.equal(loaded.log_prob(observations, actions), saved.log_prob(observations, actions))
    noise = saved.noise(4, torch.Generator().manual_seed(0))
    assert torch.equal(loaded.act_with_noise(observations, noise), saved.act_with_noise(observations, noise))


@pytest.mark.parametrize(
    "name",
    [
        "policy, best of n",
        "policy, best of n of horizons",
        "policy, best of n categorical",
        "policy, best of n regressed",
    ],
)
def test_a_loaded_best_of_n_policy_has_the_same_q(tmp_path: Path, name: str) -> None:
    saved, loaded = _reloaded(tmp_path, name)
    observations, actions = _inputs()
    values = QFunction(loaded.critic, loaded.readout)(observations, actions)
    expected = QFunction(saved.critic, saved.readout)(observations, actions)
    np.testing.assert_allclose(values, expected, rtol=1e-5)
    assert not values.requires_grad, "its critic takes no gradient"
    mode = saved.actor(observations)
    assert not torch.equal(loaded(observations), mode), "some proposals are better than the mode"


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
    save_artifact(path, "policy", make_artifacts()["policy"])
    with pytest.raises(InputError, match=r"x\.safetensors contains a policy, not a critic"):
        load_artifact(path, "critic")


@pytest.mark.parametrize("kind", ["critic", "rewards", "readout", "policy"])
def test_a_file_whose_content_does_not_fit_its_kind_is_named(tmp_path: Path, kind: str) -> None:
    # Written by this format's rules, whole, but by a program of another version.
    path = tmp_path / "x.safetensors"
    write_tensors(path, kind, {"other": torch.ones(1)}, {"hidden": [3], "depth": 1})
    with pytest.raises(InputError, match=r"x\.safetensors"):
        load_artifact(path, kind)


@pytest.mark.parametrize("name", ["readout", "readout, regressed", "policy", "policy, best of n"])
def test_a_file_that_lacks_a_tensor_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.safetensors"
    save_artifact(path, kind_of(name), make_artifacts()[name])
    _, tensors, config = read_tensors(path, None)
    for missing in tensors:
        write_tensors(path, kind_of(name), {key: tensors[key] for key in tensors if key != missing}, config)
        with pytest.raises(InputError, match=r"x\.safetensors"):
            load_artifact(path)


def test_a_readout_of_an_older_version_has_no_regression(tmp_path: Path) -> None:
    path, names = tmp_path / "x.safetensors", ("temperature", "horizons", "psi", "rewards", "log_weights")
    saved = make_artifacts()["readout"]
    tensors = {name: getattr(saved, name) for name in names}
    config = {"discount": 0.9, "self_normalised": True, "class": "ExactReadout"}
    write_tensors(path, "readout", tensors, config)
    loaded = load_artifact(path)
    assert_alike(loaded, saved)
    assert loaded.alone is loaded


@pytest.mark.parametrize("name", ["readout", "policy"])
def test_a_file_of_an_unknown_class_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.safetensors"
    save_artifact(path, kind_of(name), make_artifacts()[name])
    _, tensors, config = read_tensors(path, None)
    write_tensors(path, kind_of(name), tensors, {**config, "class": "Another"})
    with pytest.raises(InputError, match=rf"x\.safetensors: its content is not a valid {name} \(.*'Another'"):
        load_artifact(path)


def test_an_encoder_that_no_longer_has_a_setting_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_artifact(path, "critic", make_artifacts()["critic"])
    _, tensors, config = read_tensors(path, None)
    write_tensors(path, "critic", tensors, {**config, "encoder": {"name": "mlp", "gone": 3}})
    with pytest.raises(
        InputError, match=r"x\.safetensors: its content is not a valid critic \(.*gone.*\); delete it"
    ):
        load_artifact(path)
