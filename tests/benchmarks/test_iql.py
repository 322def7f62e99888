"""IQL, the baseline for CVL, on problems with known solutions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from benchmarks.iql import ImplicitQLearning, IQLParameters, train_iql
from torch import Generator

from cvl_pipeline.episodes.preparation import split_episodes
from cvl_pipeline.testing.builders import (
    identity_normalisation,
    make_rewards,
    make_transitions,
    training_parameters,
)
from cvl_pipeline.testing.finite_mdp import chain


def parameters(steps: int, **changes: float) -> IQLParameters:
    values = {
        "discount": 0.9, "expectile": 0.7, "beta": 3.0, "max_weight": 100.0, "target_rate": 0.02,
    } | changes  # fmt: skip
    return IQLParameters(
        **values,
        hidden=(32,),
        scale_advantage=False,
        training=training_parameters(
            steps=steps, validation_interval=steps, batch_size=128, learning_rate=3e-3
        ),
    )


def test_its_values_order_the_actions_of_a_chain_as_the_exact_ones_do() -> None:
    mdp = chain(states=6, terminal=True)
    transitions, rewards = mdp.log_episodes(200, 40, seed=0)
    split = split_episodes(transitions, 0.1, 0)
    normalisation = identity_normalisation(transitions)
    module = ImplicitQLearning(transitions, rewards, split, normalisation, parameters(1500), seed=0)
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
    transitions = make_transitions([10, 12, 8], [False, True, False])
    module = ImplicitQLearning(
        transitions, make_rewards(transitions), split_episodes(transitions, 0.3, 0),
        identity_normalisation(transitions), parameters(4), seed=0,
    )  # fmt: skip
    loss, _ = module.training_loss(module.draw(1, Generator().manual_seed(0))[0])
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is None for p in module.target_q.parameters())
    for network in (module.q, module.v, module.actor):
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_it_trains_to_a_policy_within_the_bounds() -> None:
    transitions = make_transitions([10, 12, 8], [False, True, False])
    actor = train_iql(
        transitions, make_rewards(transitions), split_episodes(transitions, 0.3, 0),
        identity_normalisation(transitions), parameters(6), seed=0,
    )  # fmt: skip
    actions = actor(transitions.states())
    assert actions.abs().max() <= 1.0


def test_an_expectile_below_a_half_is_refused() -> None:
    with pytest.raises(ValueError, match="expectile"):
        parameters(1, expectile=0.3)
