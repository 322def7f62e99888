from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Generator

from cvl_pipeline.methods.base import METHODS
from cvl_pipeline.methods.td3_bc import TD3BC, TD3PlusBC
from tests.methods.toys import Logged, gradients_of, make_bandit, make_episodes, method_parameters


def _module(**settings: Any) -> TD3PlusBC:
    training = {"steps": 100, "batch_size": 128}
    return TD3PlusBC(make_episodes(), method_parameters("td3_bc", training, **settings), 0)


def test_loss_equals_the_formula() -> None:
    data, module = make_episodes(), _module(alpha=2.0, discount=0.9, target_noise=0.3, noise_clip=0.4)
    with torch.no_grad():  # targets that differ from the online networks
        for parameter in (*module.target_q.parameters(), *module.target_actor.parameters()):
            parameter.mul_(0.5)
    ((batch, noise),) = module.draw(1, Generator().manual_seed(0))
    loss, metrics = module.training_loss((batch, noise))
    log = Logged(data, batch)
    with torch.no_grad():
        smoothing = (0.3 * noise).clamp(-0.4, 0.4)
        next_actions = (module.target_actor(log.next_states) + smoothing).clamp(-1.0, 1.0)
        next_q = torch.minimum(*module.target_q(log.next_states, next_actions))
        target = log.rewards + 0.9 * ~log.terminated * next_q
        q_loss = sum((q - target).square().mean() for q in module.q(log.states, log.actions))
        actions = module.actor(log.states)
        first = module.q(log.states, actions)[0]
        cloning = (actions - log.actions).square().mean()
        policy_loss = cloning - 2.0 * first.mean() / first.abs().mean()
    assert (smoothing.abs() == 0.4).any()
    assert float(loss.detach()) == pytest.approx(float(q_loss + policy_loss), rel=1e-5)
    assert float(metrics["q"]) == pytest.approx(float(target.mean()), rel=1e-5)
    assert float(metrics["cloning_error"].detach()) == pytest.approx(float(cloning), rel=1e-5)


def test_each_loss_reaches_its_own_network_alone() -> None:
    gradients = []
    for alpha in (2.5, 0.0):
        module = _module(alpha=alpha)
        loss, _ = module.training_loss(module.draw(1, Generator().manual_seed(0))[0])
        loss.backward()  # type: ignore[no-untyped-call]
        for target in (module.target_q, module.target_actor):
            assert all(p.grad is None for p in target.parameters())
        gradients.append([gradients_of(part) for part in (module.q, module.actor.network)])
    (q, actor), (q_of_cloning, actor_of_cloning) = gradients
    # The actor's Q is not a loss of Q ...
    torch.testing.assert_close(q, q_of_cloning)
    # ... but moves the actor.
    assert not any(torch.allclose(*pair) for pair in zip(actor, actor_of_cloning, strict=True))


@pytest.mark.parametrize(("alpha", "expected"), [(2.5, 0.36), (0.0, 0.0), (100.0, 0.5)])
def test_policy_weighs_cloning_against_the_best_action(alpha: float, expected: float) -> None:
    """The maximum of ``alpha (1 - (a - 0.5)^2) / mean Q - a^2``, where the logged actions have mean 0."""
    training = {"steps": 800, "validation_interval": 800, "batch_size": 128, "learning_rate": 3e-3}
    data = make_bandit(best=0.5)
    parameters = method_parameters("td3_bc", training, alpha=alpha, hidden=(64,))
    policy, _ = METHODS.create(parameters).train(data, 0)
    assert float(policy(data.transitions.states()).detach().mean()) == pytest.approx(expected, abs=0.08)


def test_defaults_are_the_published_ones() -> None:
    assert TD3BC.Parameters().alpha == 2.5


def test_values_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="alpha"):
        method_parameters("td3_bc", alpha=-1.0)
