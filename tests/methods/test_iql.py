"""Implicit Q-Learning, on problems with known solutions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator

from cvl_pipeline.episodes.data import EpisodeData
from cvl_pipeline.methods.iql import IQL, ImplicitQLearning
from cvl_pipeline.testing.builders import make_data, training_parameters
from cvl_pipeline.testing.finite_mdp import chain
from tests.methods.toys import Logged, make_episodes


def _parameters(steps: int, **changes: Any) -> IQL.Parameters:
    training = training_parameters(
        steps=steps,
        validation_interval=steps,
        batch_size=128,
        learning_rate=3e-3,
        **changes.pop("training", {}),
    )
    values = {"discount": 0.9, "target_rate": 0.02, "hidden": (32,)}
    return IQL.Parameters.model_validate({**values, **changes, "training": training.model_dump()})


def test_values_order_the_actions_of_a_chain_like_the_exact_ones() -> None:
    mdp = chain(states=6, terminal=True)
    transitions, rewards = mdp.log_episodes(200, 40, seed=0)
    data = EpisodeData.prepare(transitions, rewards)
    data = replace(data, normalisation=make_data(transitions, 1).normalisation)
    module = ImplicitQLearning(data, _parameters(1500), seed=0)
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    generator = Generator().manual_seed(0)
    for batch in module.draw(600, generator):
        loss, _ = module.training_loss(batch)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    states, actions = torch.eye(6).repeat_interleave(2, 0), torch.eye(2).repeat(6, 1)
    with torch.no_grad():
        values = module.q(states, actions).mean(0).reshape(6, 2).numpy()
    alive = ~mdp.terminal
    assert (values.argmax(1) == mdp.q().argmax(1))[alive].all()
    assert np.corrcoef(values[alive].ravel(), mdp.q()[alive].ravel())[0, 1] > 0.95


def test_each_loss_reaches_its_own_network_alone() -> None:
    module = ImplicitQLearning(make_episodes(), _parameters(4), seed=0)
    loss, _ = module.training_loss(module.draw(1, Generator().manual_seed(0))[0])
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is None for p in module.target_q.parameters())
    for network in (module.q, module.v, module.actor):
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
    # Each network's gradient is that of its own loss: without weights, the policy learns nothing.
    silent = ImplicitQLearning(make_episodes(), _parameters(4, max_weight=1e-12), seed=0)
    other, _ = silent.training_loss(silent.draw(1, Generator().manual_seed(0))[0])
    other.backward()  # type: ignore[no-untyped-call]
    for name in ("q", "v"):
        for one, two in zip(
            getattr(module, name).parameters(), getattr(silent, name).parameters(), strict=True
        ):
            assert one.grad is not None
            assert two.grad is not None
            torch.testing.assert_close(one.grad, two.grad)
    assert all(p.grad is None or p.grad.abs().max() < 1e-6 for p in silent.actor.parameters())


@pytest.mark.parametrize("scaled", [False, True])
def test_loss_equals_the_formula(scaled: bool) -> None:
    data = make_episodes()
    parameters = _parameters(4, expectile=0.8, beta=2.0, max_weight=3.0, scale_advantage=scaled)
    module = ImplicitQLearning(data, parameters, seed=0)
    with torch.no_grad():  # a target that differs from the online Q
        for parameter in module.target_q.parameters():
            parameter.mul_(0.5)
    batch = module.draw(1, Generator().manual_seed(0))[0]
    loss, metrics = module.training_loss(batch)

    log = Logged(data, batch)
    with torch.no_grad():
        value, next_value = module.v(log.states).squeeze(-1), module.v(log.next_states).squeeze(-1)
        target = log.rewards + 0.9 * ~log.terminated * next_value
        q_loss = sum((q - target).square().mean() for q in module.q(log.states, log.actions))
        advantage = module.target_q(log.states, log.actions).amin(0) - value
        v_loss = (torch.where(advantage > 0.0, 0.8, 0.2) * advantage.square()).mean()
        spread = advantage.std() if scaled else 1.0
        weights = (2.0 * advantage / spread).exp().clamp(max=3.0)
        policy_loss = -(weights * module.actor.log_prob(log.states, log.actions)).mean()
    assert float(loss.detach()) == pytest.approx(float(v_loss + q_loss + policy_loss), rel=1e-5)
    assert float(metrics["q"]) == pytest.approx(float(target.mean()), rel=1e-5)
    assert float(metrics["advantage_std"]) == pytest.approx(float(advantage.std()), rel=1e-5)


def test_defaults_are_the_published_ones() -> None:
    parameters = IQL.Parameters()
    assert (parameters.discount, parameters.expectile, parameters.beta) == (0.99, 0.7, 3.0)
    assert (parameters.max_weight, parameters.target_rate, parameters.scale_advantage) == (
        100.0,
        0.005,
        False,
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("expectile", 0.3), ("expectile", 0.5), ("expectile", 1.0), ("discount", 1.0), ("target_rate", 0.0),
        ("target_rate", 1.1), ("beta", -1.0), ("max_weight", 0.0), ("alpha", 1.0),
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        _parameters(1, **{field: value})
