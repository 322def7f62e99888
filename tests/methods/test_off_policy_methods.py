"""Every method that learns Q from single transitions keeps the same promises."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from cvl_pipeline.episodes.container import Rewards
from cvl_pipeline.episodes.data import EpisodeData
from cvl_pipeline.errors import InputError
from cvl_pipeline.methods.base import METHODS
from cvl_pipeline.methods.off_policy import OffPolicy, OffPolicyMethod, reward_unit
from cvl_pipeline.methods.sarsa import SarsaLearning
from cvl_pipeline.networks.actor import CategoricalActor, GaussianActor
from cvl_pipeline.networks.encoder import ConvolutionalEncoder
from cvl_pipeline.testing.builders import make_rewards
from cvl_pipeline.training.fit import fit
from tests.methods.toys import (
    OFF_POLICY,
    check_resumption,
    make_episodes,
    make_images,
    method_parameters,
    off_policy_module,
)

COLUMNS = {
    "iql": {"q", "advantage_std"},
    "td3_bc": {"q", "cloning_error"},
    "rebrac": {"q", "cloning_error", "critic_penalty"},
    "cql": {"q", "gap", "entropy", "temperature"},
    "cql, discrete": {"q", "gap"},
}
DISCRETE = [name for name in OFF_POLICY if METHODS[name].discrete_actions]  # type: ignore[attr-defined]
ACTIONS = [(name, False) for name in OFF_POLICY] + [(name, True) for name in DISCRETE]
every_method = pytest.mark.parametrize("name", OFF_POLICY)
every_kind = pytest.mark.parametrize(("name", "discrete"), ACTIONS)


def _method(name: str, steps: int = 6, **settings: Any) -> OffPolicyMethod:
    training = {"steps": steps, "validation_interval": steps, "batch_size": 32, "learning_rate": 3e-3}
    method = METHODS.create(method_parameters(name, training, **settings))
    assert isinstance(method, OffPolicyMethod)
    return method


def _module(name: str, data: EpisodeData) -> OffPolicy:
    return off_policy_module(data, _method(name).parameters)


def test_discrete_actions_are_for_those_that_say_so() -> None:
    assert DISCRETE == ["iql", "cql"]


@every_kind
def test_trained_policy_is_the_actor(name: str, discrete: bool) -> None:
    data = make_episodes(discrete)
    policy, history = _method(name).train(data, 0)
    assert isinstance(policy, CategoricalActor if discrete else GaussianActor)
    assert not policy.training
    actions = policy(data.transitions.states())
    assert actions.shape == data.transitions.actions.shape
    assert actions.abs().max() <= 1.0
    own = COLUMNS.get(f"{name}, discrete" if discrete else name, COLUMNS[name])
    assert set(history.columns) == {
        "step", "train/loss", "validation/action_error", "validation/log_prob",
        *(f"train/{column}" for column in own),
    }  # fmt: skip
    assert np.isfinite(history.to_numpy()).all()


@every_kind
def test_batches_depend_on_the_generator_alone(name: str, discrete: bool) -> None:
    data = make_episodes(discrete)
    batches: list[tuple[Tensor, ...]] = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed + len(batches))  # must not matter
        (batch, _) = _module(name, data).draw(2, Generator().manual_seed(seed))
        batches.append(batch if isinstance(batch, tuple) else (batch,))
    for one, same, other in zip(*batches, strict=True):
        assert len(one) == 32
        assert torch.equal(one, same)
        assert not torch.equal(one, other)


@every_kind
def test_loss_depends_on_the_batch_alone(name: str, discrete: bool) -> None:
    data = make_episodes(discrete)
    losses = []
    for seed in (1, 2):
        module = _module(name, data)
        (batch,) = module.draw(1, Generator().manual_seed(0))
        torch.manual_seed(seed)
        losses.append(module.training_loss(batch)[0])
    assert torch.equal(*losses)


@pytest.mark.parametrize(("name", "discrete"), [*ACTIONS, ("sarsa", False)])
def test_targets_follow_their_networks_at_their_rate(name: str, discrete: bool) -> None:
    settings: dict[str, Any] = {"target_rate": 0.25}
    if "policy_delay" in METHODS.parameters(name).model_fields:
        settings["policy_delay"] = 1  # otherwise the targets do not move in every step
    parameters, data = method_parameters(name, **settings), make_episodes(discrete)
    module = SarsaLearning(data, parameters, 0) if name == "sarsa" else off_policy_module(data, parameters)
    pairs = [
        (child, getattr(module, child_name.removeprefix("target_")))
        for child_name, child in module.named_children()
        if child_name.startswith("target_")
    ]
    assert pairs
    expected = []
    with torch.no_grad():
        for target, online in pairs:
            for mine, theirs in zip(target.parameters(), online.parameters(), strict=True):
                mine.mul_(0.5)
                expected.append(0.75 * mine + 0.25 * theirs)
    module.training_loss(module.draw(1, Generator().manual_seed(0))[0])
    moved = [parameter for target, _ in pairs for parameter in target.parameters()]
    torch.testing.assert_close(moved, expected)
    assert not any(parameter.requires_grad for parameter in moved)


@every_kind
def test_scale_of_the_rewards_does_not_matter(name: str, discrete: bool) -> None:
    data = make_episodes(discrete)
    assert data.rewards is not None
    larger = data.with_rewards(Rewards(1000.0 * data.rewards.rewards, data.rewards.successes))
    one, two = (_method(name).train(part, 0) for part in (data, larger))
    np.testing.assert_allclose(one.history.to_numpy(), two.history.to_numpy(), rtol=1e-3)
    unscaled = _method(name, scale_rewards=False).train(larger, 0)
    assert not np.allclose(unscaled.history["train/q"], two.history["train/q"], rtol=0.1)


@pytest.mark.parametrize("rare", [0.0, 1.0, 100.0])
def test_q_has_a_bounded_size_where_nearly_all_rewards_are_equal(rare: float) -> None:
    """-1 per step, and 0 in a few: the standard deviation alone would make thousands of it."""
    rewards = torch.full((10_000,), -1.0)
    rewards[: int(rare)] = 0.0
    scaled = rewards / reward_unit(rewards)
    assert 1.0 <= -float(scaled.mean()) < 2.0


def test_rewards_of_a_small_mean_are_in_their_standard_deviations() -> None:
    rewards = torch.tensor([0.0, 0.0, 0.0, 5.0])
    assert reward_unit(rewards) == pytest.approx(float(rewards.std(correction=0)))
    assert reward_unit(torch.zeros(3)) == 1.0


@every_method
def test_validation_measures_the_held_out_episodes(name: str) -> None:
    data = make_episodes()
    policy, history = _method(name).train(data, 0)
    assert isinstance(policy, GaussianActor)
    held_out = data.transitions.select(data.split.validation)
    with torch.no_grad():
        error = (policy(held_out.states()) - held_out.actions).square().mean()
        log_prob = policy.log_prob(held_out.states(), held_out.actions).mean()
    assert history["validation/action_error"].iloc[-1] == pytest.approx(float(error), rel=1e-5)
    assert history["validation/log_prob"].iloc[-1] == pytest.approx(float(log_prob), rel=1e-5)


@every_method
def test_held_out_episodes_do_not_train(name: str) -> None:
    data = make_episodes()
    assert data.rewards is not None
    rewards = data.rewards.rewards.clone()
    rewards[data.transitions.transition_index(data.split.validation)] = 1e6
    other = data.with_rewards(Rewards(rewards, data.rewards.successes))
    one, two = (_method(name).train(part, 0) for part in (data, other))
    assert one.history.equals(two.history)


@every_kind
def test_interrupted_training_resumes_to_the_same_policy(name: str, discrete: bool, tmp_path: Path) -> None:
    data, method = make_episodes(discrete), _method(name, 60, target_rate=0.1)
    check_resumption(partial(method.train, data, 0), tmp_path, method.module_for(data), 40)


@every_method
def test_fingerprint_depends_on_the_rewards(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fingerprints = []

    def record(module: OffPolicy, *, fingerprint: str, **_: object) -> None:
        fingerprints.append(fingerprint)

    monkeypatch.setattr("cvl_pipeline.methods.off_policy.fit", record)
    data = make_episodes()
    assert data.rewards is not None
    for part in (data, data, data.with_rewards(make_rewards(data.transitions, seed=9))):
        _method(name).train(part, 0)
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


@every_method
def test_episodes_without_rewards_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"method '{name}' needs rewards"):
        _method(name).train(make_episodes().without_rewards(), 0)


@every_method
@pytest.mark.parametrize("packed", [True, False])
def test_values_and_policy_learn_from_images_by_encoders(name: str, packed: bool) -> None:
    data = make_images(packed)
    method = _method(name, 2)
    module = method.module_for(data)(data, method.parameters, 0)
    encoders = [part for part in module.modules() if isinstance(part, ConvolutionalEncoder)]
    assert len(encoders) > 2  # of Q, its target and the policy
    before = [next(encoder.parameters()).detach().clone() for encoder in encoders]
    history = fit(module, description="", checkpoints=None, fingerprint="x")
    after = [next(encoder.parameters()) for encoder in encoders]
    changed = [not torch.equal(*pair) for pair in zip(before, after, strict=True)]
    assert sum(changed) >= 2 * (1 + packed)
    assert history["validation/action_error"].notna().all()


@pytest.mark.parametrize("name", [name for name in OFF_POLICY if name not in DISCRETE])
def test_discrete_actions_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"method '{name}' takes continuous actions: these are discrete"):
        _method(name).train(make_episodes(discrete=True), 0)
