from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from cvl_pipeline.episodes.container import Rewards, Transitions
from cvl_pipeline.errors import InputError
from cvl_pipeline.networks.actor import CategoricalActor, GaussianActor, make_actor
from cvl_pipeline.objectives.base import OBJECTIVES
from cvl_pipeline.objectives.training import PolicyExtraction, fit_noise, train_policy
from cvl_pipeline.readout.q_function import QFunction
from cvl_pipeline.testing.builders import make_data, make_rewards, policy_parameters
from cvl_pipeline.training.fit import fit
from tests.objectives.toys import (
    TRAIN,
    distance,
    episodes,
    hits,
    known_q,
    make_module,
    network_q,
    train,
)

NEED_CRITIC = [name for name in OBJECTIVES.names if OBJECTIVES[name].needs_critic]


def test_only_cloning_needs_no_critic() -> None:
    assert set(OBJECTIVES.names) - set(NEED_CRITIC) == {"bc"}


def test_actor_type_follows_the_action_type() -> None:
    assert isinstance(make_module(episodes(discrete=True)).actor, CategoricalActor)
    actor = make_module(episodes()).actor
    assert isinstance(actor, GaussianActor)
    assert torch.equal(actor.action_low, -torch.ones(2))


@pytest.mark.parametrize("objective", NEED_CRITIC)
@pytest.mark.parametrize("discrete", [False, True])
def test_critic_stays_unchanged_and_the_callers_critic_stays_trainable(
    objective: str, discrete: bool
) -> None:
    transitions = episodes(discrete)
    q = network_q(transitions)
    before = copy.deepcopy(q.critic.state_dict())
    changes = {"alpha": 10.0} if objective == "ddpg_bc" else {}
    module = make_module(transitions, q, objective=objective, **changes)
    actor = copy.deepcopy(module.actor.state_dict())
    fit(module, description="test")
    values = module.objective.setting.q
    assert isinstance(values, QFunction)
    used = values.critic
    assert used is not q.critic
    for critic in (q.critic, used):
        torch.testing.assert_close(critic.state_dict(), before, rtol=0, atol=0)
    assert not torch.equal(module.actor.state_dict()["network.0.weight"], actor["network.0.weight"])
    assert all(parameter.requires_grad for parameter in q.critic.parameters())
    assert not any(parameter.requires_grad for parameter in used.parameters())


def test_frozen_critic_is_no_part_of_the_checkpoint() -> None:
    assert all(name.startswith("actor.") for name in make_module(episodes()).state_dict())


SETTINGS: dict[str, dict[str, Any]] = {
    "awr": {"state_value": {"actions": 16}}, "ddpg_bc": {"alpha": 2.0}, "best_of_n": {"proposals": 32},
}  # fmt: skip


@pytest.mark.parametrize("discrete", [False, True])
def test_extraction_beats_cloning_with_a_critic_that_knows_better(discrete: bool) -> None:
    transitions = episodes(discrete)
    training = {"steps": 300, "batch_size": 64, "learning_rate": 3e-3, "validation_interval": 150}
    clone, clone_history = train(transitions, "bc", training=training)
    assert "validation/q_gain" not in clone_history
    # Cloning takes the most frequent action of the log.
    assert not discrete or hits(clone, transitions) < 0.7
    for objective in NEED_CRITIC:
        policy, history = train(transitions, objective, training=training, **SETTINGS.get(objective, {}))
        assert np.isfinite(history.to_numpy()).all(), objective
        if discrete:
            assert hits(policy, transitions) > 0.9, objective
        else:
            assert distance(policy, transitions) < 0.6 * distance(clone, transitions), objective
        if objective != "best_of_n":  # its history is that of the cloned proposals
            assert history["validation/q_gain"].iloc[-1] > 0.02, objective


@pytest.mark.parametrize(
    ("objective", "given", "expected"),
    [("awr", None, 1.0), ("awr", 0.0, 0.0), ("bc", None, 0.0), ("bc", 4.0, 4.0)],
)
@pytest.mark.parametrize("discrete", [False, True])
def test_all_but_the_noise_decays(
    monkeypatch: pytest.MonkeyPatch, objective: str, given: float | None, expected: float, discrete: bool
) -> None:
    transitions = episodes(discrete)
    monkeypatch.setattr(PolicyExtraction, "gradient_step", _loss_that_asks_for_nothing)
    q = network_q(transitions) if objective == "awr" else None
    module = make_module(transitions, q, objective=objective, training={"steps": 50, "weight_decay": given})
    before = copy.deepcopy(module.actor.state_dict())
    fit(module, description="test")
    rates = [module.learning_rate(step) for step in range(50)]
    left = math.prod(1.0 - rate * expected for rate in rates)
    for name, value in module.actor.named_parameters():
        kept = 1.0 if name == "log_std" else left
        torch.testing.assert_close(value.detach(), kept * before[name], msg=name)


def _loss_that_asks_for_nothing(module: PolicyExtraction, batch: object) -> tuple[Tensor, dict[str, Tensor]]:
    module._vector.values.grad = torch.zeros_like(module._vector.values)
    return torch.zeros(()), {}


def test_noise_of_a_clone_is_its_held_out_error() -> None:
    transitions = episodes()
    data = make_data(transitions, TRAIN)
    actor = make_actor(transitions, data.normalisation, (4,))
    assert isinstance(actor, GaussianActor)
    fit_noise(actor, data)
    held_out = transitions.select(data.split.validation)
    with torch.no_grad():
        error = actor.distance(actor(held_out.states()), held_out.actions).mean(0).sqrt()
    torch.testing.assert_close(actor.log_std.exp(), error)


def test_noise_of_an_exact_clone_is_the_least_that_the_actor_can_have() -> None:
    transitions = replace(episodes(), actions=torch.full_like(episodes().actions, 0.01))
    data = make_data(transitions, TRAIN)
    actor = make_actor(transitions, data.normalisation, (4,))
    assert isinstance(actor, GaussianActor)
    with torch.no_grad():
        for parameter in actor.network[-1].parameters():
            parameter.zero_()
    fit_noise(actor, data)
    assert actor.log_std.tolist() == [actor.LOG_STD_RANGE[0]] * 2


def test_noise_is_fitted_without_a_copy_of_the_held_out_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_data(episodes(), TRAIN)
    actor = make_actor(data.transitions, data.normalisation, (4,))
    monkeypatch.delattr(Transitions, "select")
    fit_noise(actor, data)


@pytest.mark.parametrize("discrete", [False, True])
def test_cloning_learns_the_logged_actions(discrete: bool) -> None:
    transitions = episodes(discrete)
    training = {"steps": 200, "validation_interval": 100, "learning_rate": 1e-2, "batch_size": 64}
    _, history = train(transitions, "bc", training=training)
    if discrete:
        # Actions do not depend on states, so the entropy of their law is the best loss.
        law = transitions.actions.double().mean(0)
        entropy = float(-(law * law.log()).sum())
        assert history["train/loss"].iloc[-1] == pytest.approx(entropy, abs=0.15)
        assert history["train/loss"].iloc[-1] < math.log(3) - 0.03
    else:
        # Uniform actions in [-1, 1] have a standard deviation of 0.58.
        best = 0.5 * math.log(2.0 * math.pi * math.e / 3.0)
        assert history["train/loss"].iloc[-1] == pytest.approx(2.0 * best, abs=0.15)


@pytest.mark.parametrize("objective", NEED_CRITIC)
def test_objective_without_its_critic_is_refused(objective: str) -> None:
    transitions = episodes()
    data = make_data(transitions, TRAIN, make_rewards(transitions))
    with pytest.raises(InputError, match=f"'{objective}' needs a critic and a readout"):
        train_policy(data, policy_parameters(objective=objective), 0)


def test_objective_without_its_rewards_is_refused_and_the_others_need_none() -> None:
    transitions = episodes()
    data, q = make_data(transitions, TRAIN), known_q(transitions)
    with pytest.raises(InputError, match="'published' needs rewards"):
        train_policy(data, policy_parameters(objective="published"), 0, values=q)
    assert [name for name in OBJECTIVES.names if OBJECTIVES[name].needs_rewards] == ["published"]
    for objective in set(NEED_CRITIC) - {"published"}:
        PolicyExtraction(data, policy_parameters(objective=objective), 0, q)


def test_rewards_belong_to_the_fingerprint_only_if_the_objective_reads_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fingerprints: dict[str, set[str]] = {}

    def record(module: PolicyExtraction, *, fingerprint: str, **_: object) -> None:
        fingerprints.setdefault(module.objective.parameters.objective, set()).add(fingerprint)

    monkeypatch.setattr("cvl_pipeline.objectives.training.fit", record)
    transitions = episodes()
    rewards = make_rewards(transitions)
    for factor in (1.0, 2.0):
        scaled = Rewards(factor * rewards.rewards, rewards.successes)
        data = make_data(transitions, TRAIN, scaled)
        for objective in ("bc", "awr", "published"):
            train_policy(data, policy_parameters(objective=objective), 0, values=known_q(transitions))
    assert {name: len(values) for name, values in fingerprints.items()} == {
        "bc": 1, "awr": 1, "published": 2
    }  # fmt: skip


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("objective", OBJECTIVES.names)
def test_interrupted_extraction_resumes_to_the_same_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objective: str, discrete: bool
) -> None:
    transitions = episodes(discrete)
    training = {"steps": 30, "validation_interval": 10, "learning_rate": 0.01}
    whole, expected = train(transitions, objective, training=training)
    training_loss = PolicyExtraction.training_loss
    steps: list[int] = []

    def fail_at_17(module: PolicyExtraction, batch: object) -> tuple[Tensor, dict[str, Tensor]]:
        if module.global_step == 17 and 17 not in steps:
            steps.append(17)
            raise RuntimeError("the machine went away")
        steps.append(module.global_step)
        return training_loss(module, batch)

    monkeypatch.setattr(PolicyExtraction, "training_loss", fail_at_17)
    with pytest.raises(RuntimeError, match="went away"):
        train(transitions, objective, tmp_path, training=training)
    steps[:] = [17]
    resumed, history = train(transitions, objective, tmp_path, training=training)
    assert steps[1:] == list(range(10, 30)), "steps were repeated"
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)
    pd.testing.assert_frame_equal(history, expected, check_exact=True)


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("objective", NEED_CRITIC)
def test_every_objective_accepts_a_horizon_conditioned_critic(objective: str, discrete: bool) -> None:
    transitions = episodes(discrete)
    q = network_q(transitions, conditioned=True)
    assert len(q.readout.horizons) == 4
    policy, history = train_policy(
        make_data(transitions, TRAIN, make_rewards(transitions)),
        policy_parameters(objective=objective),
        0,
        values=q,
    )
    assert np.isfinite(history.to_numpy()).all()
    assert policy(transitions.states()).shape == transitions.actions.shape


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("objective", OBJECTIVES.names)
def test_extraction_in_bfloat16_ends_near_extraction_in_float32(objective: str, discrete: bool) -> None:
    transitions = episodes(discrete)
    losses = []
    for precision in ("float32", "bfloat16"):
        training = {"precision": precision, "steps": 40, "validation_interval": 20}
        _, history = train(transitions, objective, training=training)
        assert np.isfinite(history.to_numpy()).all()
        losses.append(history["train/loss"].iloc[-1])
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_validation_measures_the_held_out_episodes() -> None:
    transitions = episodes()
    module = make_module(transitions)
    with torch.no_grad():
        metrics = module.validation_metrics(torch.Generator().manual_seed(0))
        held_out = transitions.select(torch.arange(4, 6))
        states, logged = held_out.states(), held_out.actions
        actions, q = module.actor(states), known_q(transitions)
        gain = q(states, actions) - q(states, logged)
        error = (actions - logged).square().mean()
        log_prob = module.actor.log_prob(states, logged).mean()
    # 2048 draws with replacement from 100 held-out transitions: equal up to their sampling error.
    assert float(metrics["action_error"]) == pytest.approx(float(error), rel=0.1)
    assert float(metrics["log_prob"]) == pytest.approx(float(log_prob), rel=0.1)
    assert float(metrics["q_gain"]) == pytest.approx(float(gain.mean()), abs=0.05)


def test_training_never_reads_the_held_out_episodes() -> None:
    transitions = episodes()
    start = int(transitions.episode_starts[TRAIN])
    actions = transitions.actions.clone()
    actions[start:] = 0.0
    other = replace(transitions, actions=actions)
    for objective in OBJECTIVES.names:
        one, two = (train(data, objective) for data in (transitions, other))
        assert one.history["train/loss"].tolist() == two.history["train/loss"].tolist(), objective


def test_encoder_of_the_actor_is_the_chosen_one() -> None:
    module = make_module(episodes(), encoder={"name": "identity"})
    assert module.actor.shape.encoder == {"name": "identity"}
    with pytest.raises(InputError, match="encoder 'convolutional' needs images"):
        make_module(episodes(), encoder="convolutional")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("conditioned", [False, True])
@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("objective", OBJECTIVES.names)
def test_policies_train_on_a_gpu_and_return_to_the_cpu(
    objective: str, discrete: bool, conditioned: bool, precision: str
) -> None:
    transitions = episodes(discrete)
    policy, history = train_policy(
        make_data(transitions, TRAIN, make_rewards(transitions)),
        policy_parameters(objective=objective, training={"accelerator": "gpu", "precision": precision}),
        0,
        values=network_q(transitions, conditioned),
    )
    assert {value.device.type for value in policy.state_dict().values()} == {"cpu"}
    assert policy(transitions.states()).shape == transitions.actions.shape
    assert np.isfinite(history.to_numpy()).all()
