from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cvl_pipeline.dynamics import losses
from cvl_pipeline.dynamics.losses import logsumexp_penalty
from cvl_pipeline.dynamics.module import ContrastiveDynamics, train_dynamics
from cvl_pipeline.episodes.container import Rewards, Transitions
from cvl_pipeline.episodes.data import EpisodeData
from cvl_pipeline.episodes.sampling import Draws, Segments, SegmentSampler
from cvl_pipeline.errors import InputError
from cvl_pipeline.testing.builders import dynamics_parameters, make_data, make_transitions
from cvl_pipeline.training import module as offline
from cvl_pipeline.training.fit import fit
from cvl_pipeline.training.seeds import stream_seed


def _module(transitions: Transitions, seed: int = 0, **changes: Any) -> ContrastiveDynamics:
    return ContrastiveDynamics(make_data(transitions, 4), dynamics_parameters(**changes), seed)


@pytest.mark.parametrize(
    ("loss", "penalty", "conditioned", "per_episode"),
    [
        ("symmetric_infonce", 0.0, False, 1),
        ("symmetric_infonce", 0.0, False, 4),
        ("infonce", 0.5, False, 1),
        ("nce", 0.0, False, 1),
        ("symmetric_infonce", 0.0, True, 1),
    ],
)
def test_training_loss_is_that_of_segments_of_the_training_episodes(
    transitions: Transitions, loss: str, penalty: float, conditioned: bool, per_episode: int
) -> None:
    module = _module(
        transitions,
        loss={"name": loss, "logsumexp_penalty": penalty},
        horizon_conditioning=conditioned,
        segments_per_episode=per_episode,
    )
    module.on_fit_start()
    result, _ = module.training_loss(module.draw(1, torch.Generator().manual_seed(3))[0])
    train = transitions.select(torch.arange(4))
    segments = SegmentSampler(train, 0.9).sample(16, torch.Generator().manual_seed(3), per_episode)
    logits = module.critic.logits(
        module.critic.phi(segments.observations, segments.actions, segments.offsets if conditioned else None),
        module.critic.psi(segments.futures, segments.absorbed),
    )
    assert segments.absorbed.any(), "the batch must hold the absorbing state"
    expected = getattr(losses, loss)(logits) + penalty * logsumexp_penalty(logits)
    assert float(result.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)


def _gradient(module: ContrastiveDynamics, batch: Draws) -> tuple[Tensor, Tensor]:
    """Loss and gradient of a batch, as training has them; the networks are joined afterwards."""
    module.on_fit_start()
    module.configure_optimizers()
    loss, _ = module.gradient_step(batch)
    gradient = module._vector.values.grad
    assert gradient is not None
    return loss, gradient


def _reference(module: ContrastiveDynamics, batch: Draws) -> tuple[Tensor, Tensor]:
    """Loss and gradient of a batch, by autograd through torch's modules."""
    module.on_fit_start()
    segments = module._train_sampler.gather(batch)
    offsets = segments.offsets if module.critic.shape.horizon_conditioning else None
    phi = module.critic.phi(segments.observations, segments.actions, offsets)
    loss = module._loss(module.critic.logits(phi, module.critic.psi(segments.futures, segments.absorbed)))
    gradients = torch.autograd.grad(loss, module.trained_parameters())
    return loss, torch.cat([gradient.flatten() for gradient in gradients])


class WithoutAutograd(ContrastiveDynamics):
    """Training that fails if it needs autograd."""

    def differentiate(self, loss: Tensor) -> None:
        raise AssertionError("the step needs autograd")


@given(
    # LayerNorm of one unit and spheres of one dimension are constant: their gradient is nothing but rounding.
    hidden=st.lists(st.integers(2, 40), max_size=3),
    size=st.integers(2, 20),
    observation_size=st.integers(1, 9),
    batch=st.integers(2, 40),
    ends=st.lists(st.booleans(), min_size=5, max_size=5),
    conditioned=st.booleans(),
    raw=st.booleans(),
    temperature=st.sampled_from([0.02, 0.1, 1.0]),
    seed=st.integers(0, 1000),
)
def test_the_step_without_autograd_has_the_loss_and_the_gradient_of_the_modules(
    hidden: list[int],
    size: int,
    observation_size: int,
    batch: int,
    ends: list[bool],
    conditioned: bool,
    raw: bool,
    temperature: float,
    seed: int,
) -> None:
    transitions = make_transitions([5, 1, 7, 3, 9], ends, observation_size, seed=seed)
    parameters = dynamics_parameters(
        hidden=hidden,
        representation_size=size,
        horizon_conditioning=conditioned,
        representation="raw" if raw else "unit_norm",
        temperature=temperature,
        training={"batch_size": batch},
    )
    arguments = (make_data(transitions, 4), parameters, seed)
    reference, module = ContrastiveDynamics(*arguments), WithoutAutograd(*arguments)
    module.on_fit_start()
    draws = module.draw(1, torch.Generator().manual_seed(seed))[0]
    expected, wanted = _reference(reference, draws)
    loss, gradient = _gradient(module, draws)
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-4, atol=1e-5)
    # Terms as large as 1 / temperature may cancel, and leave their rounding.
    largest = max(float(wanted.abs().max()), 1.0 / temperature)
    torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-5 * largest)


class OwnLoss(ContrastiveDynamics):
    """Training with another loss than the critic's."""

    def training_loss(self, batch: Draws | Segments) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = super().training_loss(batch)
        return 2.0 * loss, metrics


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": "infonce"},
        {"loss": {"name": "symmetric_infonce", "logsumexp_penalty": 0.5}},
        {"learned_temperature": True},
        {"training": {"precision": "bfloat16"}},
        {"loss": "tests.dynamics.test_losses:Doubled"},
    ],
)
def test_other_steps_are_differentiated_by_autograd(
    transitions: Transitions, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    reference, module = _module(transitions, **changes), _module(transitions, **changes)
    module.on_fit_start()
    draws = module.draw(1, torch.Generator().manual_seed(0))[0]
    _, wanted = _reference(reference, draws)
    calls = []
    differentiate = module.differentiate

    def noted(loss: Tensor) -> None:
        calls.append(loss)
        differentiate(loss)

    monkeypatch.setattr(module, "differentiate", noted)
    _, gradient = _gradient(module, draws)
    assert len(calls) == 1
    torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-4)


def test_an_extended_loss_and_the_loss_of_several_processes_are_differentiated_by_autograd(
    transitions: Transitions, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (make_data(transitions, 4), dynamics_parameters(), 0)
    module = OwnLoss(*arguments)
    module.on_fit_start()
    draws = module.draw(1, torch.Generator().manual_seed(0))[0]
    expected, wanted = _reference(ContrastiveDynamics(*arguments), draws)
    loss, gradient = _gradient(module, draws)
    torch.testing.assert_close(loss.detach(), 2.0 * expected.detach())
    torch.testing.assert_close(gradient, 2.0 * wanted, rtol=1e-3, atol=1e-4)
    monkeypatch.setattr("cvl_pipeline.dynamics.module.world_size", lambda: 2)
    with pytest.raises(AssertionError, match="the step needs autograd"):
        _gradient(WithoutAutograd(*arguments), draws)


def test_validation_uses_the_held_out_episodes_alone(transitions: Transitions) -> None:
    module = _module(transitions)
    module.on_fit_start()
    spoilt = transitions.observations.clone()
    spoilt[: 16 + 4] = torch.nan  # the training episodes
    other = _module(replace(transitions, observations=spoilt))
    other.critic.load_state_dict(module.critic.state_dict())
    other.on_fit_start()
    with torch.no_grad():
        metrics = module.validation_metrics(torch.Generator().manual_seed(0))
        same = other.validation_metrics(torch.Generator().manual_seed(0))
    assert {name: float(value) for name, value in metrics.items()} == {
        name: float(value) for name, value in same.items()
    }
    assert set(metrics) == {
        "loss",
        "categorical_accuracy_future",
        "categorical_accuracy_anchor",
        "mutual_information_bound",
        "logit_positive",
        "logit_negative",
        "temperature",
    }


def test_module_holds_no_rewards(transitions: Transitions, rewards: Rewards) -> None:
    module = ContrastiveDynamics(make_data(transitions, 4, rewards), dynamics_parameters(), 0)
    assert not any(isinstance(value, Rewards | EpisodeData) for value in vars(module).values())
    assert not {"rewards", "successes"} & {field.name for field in fields(Transitions)}


def test_rewards_change_neither_the_critic_nor_its_fingerprint(
    monkeypatch: pytest.MonkeyPatch, transitions: Transitions, rewards: Rewards
) -> None:
    fingerprints = []

    def record(module: ContrastiveDynamics, *, fingerprint: str, **options: Any) -> pd.DataFrame:
        fingerprints.append(fingerprint)
        return fit(module, fingerprint=fingerprint, **options)

    monkeypatch.setattr("cvl_pipeline.dynamics.module.fit", record)
    plain = train_dynamics(make_data(transitions, 4), dynamics_parameters(), 0)
    with_rewards = train_dynamics(make_data(transitions, 4, rewards), dynamics_parameters(), 0)
    assert len(set(fingerprints)) == 1
    assert with_rewards.history.equals(plain.history)
    torch.testing.assert_close(with_rewards.critic.state_dict(), plain.critic.state_dict(), rtol=0, atol=0)


def test_encoder_of_the_critic_is_the_chosen_one(transitions: Transitions) -> None:
    assert _module(transitions, encoder="identity").critic.shape.encoder == {"name": "identity"}
    with pytest.raises(InputError, match="encoder 'convolutional' needs images"):
        _module(transitions, encoder="convolutional")


def test_seed_determines_the_initial_weights_and_leaves_the_global_generator_alone(
    transitions: Transitions,
) -> None:
    torch.manual_seed(11)
    before = torch.random.get_rng_state()
    first, again, other = (_module(transitions, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.testing.assert_close(again.critic.state_dict(), first.critic.state_dict(), rtol=0, atol=0)
    name = "phi_network.0.weight"
    assert not torch.equal(first.critic.state_dict()[name], other.critic.state_dict()[name])


def test_same_seed_trains_the_same_critic_bit_for_bit(transitions: Transitions) -> None:
    runs = []
    for seed in (0, 0, 1):
        critic, history = train_dynamics(make_data(transitions, 4), dynamics_parameters(), seed)
        assert not critic.training
        runs.append((critic.state_dict(), history))
    (first, first_history), (again, again_history), (other, _) = runs
    for name, value in first.items():
        assert torch.equal(value, again[name]), name
    assert first_history.equals(again_history)
    assert not torch.equal(first["phi_network.0.weight"], other["phi_network.0.weight"])


class Recorder:
    """An observer that stores its inputs."""

    def __init__(self) -> None:
        self.batches: list[tuple[Segments, Tensor]] = []

    def __call__(self, segments: Segments, psi: Tensor) -> None:
        self.batches.append((segments, psi))


def test_observer_receives_every_training_batch_and_changes_nothing(transitions: Transitions) -> None:
    arguments = (make_data(transitions, 4), dynamics_parameters(), 0)
    recorder = Recorder()
    unseen, unseen_history = train_dynamics(*arguments)
    seen, seen_history = train_dynamics(*arguments, observer=recorder)
    torch.testing.assert_close(seen.state_dict(), unseen.state_dict(), rtol=0, atol=0)
    assert seen_history.equals(unseen_history)
    # Eight training steps, but no held-out batches.
    sampler = SegmentSampler(transitions.select(torch.arange(4)), 0.9)
    assert len(recorder.batches) == 8
    generator = torch.Generator().manual_seed(stream_seed(0, "training", 0))
    block = sampler.draw(offline.DRAWN * 16, generator).split(16)
    for (segments, psi), drawn in zip(recorder.batches, block, strict=False):
        assert torch.equal(segments.anchors, drawn.anchors)
        assert torch.equal(segments.offsets, drawn.offsets)
        assert psi.shape == (16, 4)
        assert not psi.requires_grad


def test_observer_receives_psi_of_that_step(transitions: Transitions) -> None:
    recorder = Recorder()
    module = ContrastiveDynamics(make_data(transitions, 4), dynamics_parameters(), 0, recorder)
    module.on_fit_start()
    module.training_loss(module.draw(1, torch.Generator().manual_seed(3))[0])
    ((segments, psi),) = recorder.batches
    assert torch.equal(psi, module.critic.psi(segments.futures, segments.absorbed).detach())


def test_training_in_bfloat16_ends_near_training_in_float32() -> None:
    data = make_transitions([30] * 6, [False, True] * 3)
    losses = {}
    for precision in ("float32", "bfloat16"):
        critic, history = train_dynamics(
            make_data(data, 4),
            dynamics_parameters(
                hidden=(32,), training={"precision": precision, "steps": 100, "validation_interval": 50}
            ),
            0,
        )
        assert np.isfinite(history.to_numpy()).all()
        losses[precision] = history["train/loss"].iloc[-1]
        # Weights stay in single precision for any precision of the products.
        assert {value.dtype for value in critic.state_dict().values()} == {torch.float32}
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.02)


def test_penalty_keeps_the_normalisers_near_one() -> None:
    """The row loss does not determine c(s, a); its drift appears in the log-sum-exp of the logits."""
    data = make_transitions([20] * 8, [False] * 8)
    drift = {}
    for penalty in (0.0, 1.0):
        module = ContrastiveDynamics(
            make_data(data, 6),
            dynamics_parameters(
                loss={"name": "infonce", "logsumexp_penalty": penalty},
                representation="raw",
                temperature=1.0,
                hidden=(32,),
                training={"steps": 150, "validation_interval": 150, "learning_rate": 1e-2, "batch_size": 64},
            ),
            0,
        )
        fit(module, description="test")
        with torch.no_grad():
            segments = module._train_sampler.sample(64, torch.Generator().manual_seed(0))
            logits = module.critic.logits(*module._representations(segments))
        drift[penalty] = float(logsumexp_penalty(logits))
    assert drift[1.0] < 0.1
    assert drift[1.0] < 0.2 * drift[0.0]


def test_conditioned_critic_learns_where_each_offset_leads() -> None:
    """A clock: the state k steps after time t is t + k, so phi must use k."""
    length = 12
    data = make_transitions([length] * 40, [False] * 40, observation_size=1)
    clock = torch.arange(length + 1, dtype=torch.float32).repeat(40)[:, None]
    data = replace(data, observations=clock - length / 2)
    critic, _ = train_dynamics(
        make_data(data, 36),
        dynamics_parameters(
            horizon_conditioning=True,
            hidden=(64, 64),
            representation_size=16,
            temperature=0.1,
            training={"steps": 400, "batch_size": 64, "validation_interval": 200, "learning_rate": 3e-3},
        ),
        0,
    )
    assert critic.shape.horizon_conditioning
    times = torch.arange(length + 1)
    anchors, offsets = (grid.flatten() for grid in torch.meshgrid(times[:-1], times[1:8], indexing="ij"))
    inside = anchors + offsets <= length
    anchors, offsets = anchors[inside], offsets[inside]
    with torch.no_grad():
        states = times.float()[:, None] - length / 2
        phi = critic.phi(states[anchors], torch.zeros(len(anchors), 2), offsets)
        psi = critic.psi(states, torch.zeros(length + 1, dtype=torch.bool))
        likeliest = critic.logits(phi, psi).argmax(1)
    assert float((likeliest - anchors - offsets).abs().double().mean()) < 0.5


def test_a_learned_temperature_does_not_decay(transitions: Transitions) -> None:
    module = _module(transitions, learned_temperature=True, training={"weight_decay": 1.0})
    (temperature, part), (others, rest) = module.parts()
    assert list(temperature) == [module.critic.log_temperature]
    assert (part.decay, rest.decay) == (0.0, 1.0)
    assert len(list(others)) == sum(each.requires_grad for each in module.parameters()) - 1
    assert _module(transitions).parts() == ()


def test_learned_temperature_changes_and_is_reported() -> None:
    data = make_transitions([30] * 6, [False] * 6)
    critic, history = train_dynamics(
        make_data(data, 4),
        dynamics_parameters(learned_temperature=True, temperature=1.0, training={"learning_rate": 0.05}),
        0,
    )
    assert float(critic.temperature.detach()) != pytest.approx(1.0, abs=1e-3)
    assert history["validation/temperature"].iloc[-1] == pytest.approx(float(critic.temperature.detach()))


def test_observations_that_hold_the_goal_predict_the_future() -> None:
    """The goal in the observation predicts the future, so held-out accuracy is far above chance."""
    data = make_transitions([10] * 60, [False] * 60, observation_size=4)
    goals = torch.randn(60, 4, generator=torch.Generator().manual_seed(5))
    data = replace(data, observations=goals.repeat_interleave(11, dim=0) + 0.1 * data.observations)
    _, history = train_dynamics(
        make_data(data, 40),
        dynamics_parameters(
            hidden=(32,),
            representation_size=8,
            validation_batches=2,
            training={"steps": 300, "batch_size": 64, "validation_interval": 150, "learning_rate": 3e-3},
        ),
        0,
    )
    assert history["step"].tolist() == [150, 300]
    last = history.iloc[-1]
    # With twenty held-out goals, about three of 64 futures fit an anchor, and one of them is right.
    assert last["validation/categorical_accuracy_future"] > 0.2
    assert last["validation/mutual_information_bound"] > 1.5
    assert last["validation/mutual_information_bound"] < np.log(64)
    assert last["validation/logit_positive"] > last["validation/logit_negative"] + 1.0
