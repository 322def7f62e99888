from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Generator

from cvl_pipeline.methods.base import METHODS
from cvl_pipeline.methods.rebrac import BehaviourRegularised, ReBRAC
from tests.methods.toys import Logged, gradients_of, make_bandit, make_episodes, method_parameters


def _module(**settings: Any) -> BehaviourRegularised:
    training = {"steps": 100, "batch_size": 128}
    return BehaviourRegularised(make_episodes(), method_parameters("rebrac", training, **settings), 0)


def test_loss_equals_the_formula() -> None:
    data, module = make_episodes(), _module(actor_bc=0.7, critic_bc=0.3, discount=0.9)
    with torch.no_grad():  # targets that differ from the online networks
        for parameter in (*module.target_q.parameters(), *module.target_actor.parameters()):
            parameter.mul_(0.5)
    ((batch, noise),) = module.draw(1, Generator().manual_seed(0))
    loss, metrics = module.training_loss((batch, noise))
    log = Logged(data, batch)
    with torch.no_grad():
        smoothing = (0.2 * noise).clamp(-0.5, 0.5)
        next_actions = (module.target_actor(log.next_states) + smoothing).clamp(-1.0, 1.0)
        penalty = ~log.last * (next_actions - log.next_actions).square().sum(-1)
        next_q = torch.minimum(*module.target_q(log.next_states, next_actions)) - 0.3 * penalty
        target = log.rewards + 0.9 * ~log.terminated * next_q
        q_loss = sum((q - target).square().mean() for q in module.q(log.states, log.actions))
        actions = module.actor(log.states)
        lowest = torch.minimum(*module.q(log.states, actions))
        cloning = (actions - log.actions).square()
        policy_loss = (0.7 * cloning.sum(-1) - lowest / lowest.abs().mean()).mean()
    assert float(loss.detach()) == pytest.approx(float(q_loss + policy_loss), rel=1e-5)
    assert float(metrics["q"]) == pytest.approx(float(target.mean()), rel=1e-5)
    assert float(metrics["critic_penalty"]) == pytest.approx(float(penalty.mean()), rel=1e-5)
    assert float(metrics["cloning_error"].detach()) == pytest.approx(float(cloning.mean()), rel=1e-5)


def test_each_penalty_reaches_its_own_network_alone() -> None:
    gradients = []
    for settings in ({}, {"actor_bc": 9.0}, {"critic_bc": 9.0}):
        module = _module(**settings)
        loss, _ = module.training_loss(module.draw(1, Generator().manual_seed(0))[0])
        loss.backward()  # type: ignore[no-untyped-call]
        for target in (module.target_q, module.target_actor):
            assert all(p.grad is None for p in target.parameters())
        gradients.append([gradients_of(part) for part in (module.q, module.actor.network)])
    (q, actor), (q_same, actor_cloned), (q_penalised, actor_same) = gradients
    torch.testing.assert_close(q, q_same)
    torch.testing.assert_close(actor, actor_same)
    assert not any(torch.allclose(*pair) for pair in zip(actor, actor_cloned, strict=True))
    assert not any(torch.allclose(*pair) for pair in zip(q, q_penalised, strict=True))


@pytest.mark.parametrize(("actor_bc", "expected"), [(0.0, 0.5), (0.05, 0.48), (1.0, 0.26), (30.0, 0.0)])
def test_policy_weighs_cloning_against_the_best_action(actor_bc: float, expected: float) -> None:
    """The maximum of ``(1 - (a - 0.5)^2) / mean Q - actor_bc a^2``, where the logged actions have mean 0."""
    training = {"steps": 800, "validation_interval": 800, "batch_size": 128, "learning_rate": 3e-3}
    data = make_bandit(best=0.5)
    policy, _ = METHODS.create(method_parameters("rebrac", training, actor_bc=actor_bc, hidden=(64,))).train(
        data, 0
    )
    assert float(policy(data.transitions.states()).detach().mean()) == pytest.approx(expected, abs=0.08)


def test_defaults_are_the_published_ones() -> None:
    parameters = ReBRAC.Parameters()
    assert (parameters.actor_bc, parameters.critic_bc) == (0.05, 0.1)
    assert (parameters.discount, parameters.policy_delay, parameters.target_rate) == (0.99, 2, 0.005)


@pytest.mark.parametrize("field", ["actor_bc", "critic_bc"])
def test_values_out_of_range_are_refused(field: str) -> None:
    with pytest.raises(ValueError, match=field):
        method_parameters("rebrac", None, **{field: -0.1})
