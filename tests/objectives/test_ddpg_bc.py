from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from cvl_pipeline.networks.actor import CategoricalActor
from tests.objectives.toys import (
    DISCOUNT,
    TargetCritic,
    distance,
    episodes,
    loss_of,
    make_module,
    training_transitions,
)


def test_loss_equals_the_formula() -> None:
    transitions = episodes()
    module = make_module(transitions, objective="ddpg_bc", alpha=2.5)
    loss, metrics = loss_of(module)
    states, logged = training_transitions(transitions)
    with torch.no_grad():
        actions = module.actor(states)
    to_target = (actions - torch.tensor(TargetCritic.TARGET)).double().square().sum(-1)
    q = (-to_target).sigmoid() / (1.0 - DISCOUNT)
    expected = (actions - logged).double().square().mean() - 2.5 * q.mean() / q.abs().mean()
    assert loss == pytest.approx(float(expected), rel=1e-5)
    assert float(metrics["q"].detach()) == pytest.approx(float(q.mean()), rel=1e-5)


def test_loss_of_discrete_actions_averages_q_over_all_of_them() -> None:
    transitions = episodes(discrete=True)
    module = make_module(transitions, objective="ddpg_bc", alpha=2.5)
    loss, metrics = loss_of(module)
    states, logged = training_transitions(transitions)
    assert isinstance(module.actor, CategoricalActor)
    with torch.no_grad():
        log_probs = module.actor.log_probs(states).double()
    place = 2.0 * states[:, 0].double()
    of_actions = torch.stack([place, -place, torch.zeros_like(place)], dim=1).sigmoid() / (1.0 - DISCOUNT)
    q = (log_probs.exp() * of_actions).sum(1)
    cloning = -log_probs[torch.arange(len(states)), logged.argmax(1)].mean()
    assert loss == pytest.approx(float(cloning - 2.5 * q.mean() / q.abs().mean()), rel=1e-5)
    assert float(metrics["q"].detach()) == pytest.approx(float(q.mean()), rel=1e-5)


def test_gradient_step_raises_q_and_moves_towards_the_best_action() -> None:
    transitions = episodes()
    module = make_module(transitions, objective="ddpg_bc", alpha=1e6)  # Q alone
    before = distance(module.actor, transitions)
    values = []
    optimizer = torch.optim.SGD(module.actor.parameters(), lr=1e-7)
    for _ in range(20):
        loss, metrics = module.training_loss(torch.arange(200))
        values.append(float(metrics["q"].detach()))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert all(later > earlier for earlier, later in pairwise(values))
    assert distance(module.actor, transitions) < before
