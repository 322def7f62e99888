"""Conservative Q-Learning, on problems with known solutions."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator
from torch.distributions import Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform

from cvl_pipeline.episodes.data import EpisodeData
from cvl_pipeline.methods.base import METHODS
from cvl_pipeline.methods.cql import CQL, ConservativeActorCritic, ConservativeDQN
from cvl_pipeline.networks.actor import CategoricalActor
from cvl_pipeline.testing.builders import identity_normalisation, split_first
from cvl_pipeline.testing.finite_mdp import chain
from cvl_pipeline.training.vector import Adam
from tests.methods.toys import (
    Logged,
    gradients_of,
    make_bandit,
    make_episodes,
    make_images,
    method_parameters,
)

SAMPLES = 3


def _parameters(**settings: Any) -> Any:
    training = {"steps": 100, "batch_size": 128}
    return method_parameters("cql", training, **{"samples": SAMPLES, "discount": 0.9, **settings})


def _continuous(**settings: Any) -> ConservativeActorCritic:
    module = ConservativeActorCritic(make_episodes(), _parameters(**settings), 0)
    with torch.no_grad():  # a target that differs from the online Q, and a temperature that is not 1
        for parameter in module.target_q.parameters():
            parameter.mul_(0.5)
        module.log_temperature.fill_(-0.7)
    return module


def test_loss_equals_the_formula() -> None:
    data, module = make_episodes(), _continuous(conservative_weight=2.0)
    ((batch, uniform, normal),) = module.draw(1, Generator().manual_seed(0))
    assert uniform.shape == (128, SAMPLES, 2)
    assert normal.shape == (128, 2, SAMPLES + 1, 2)
    loss, metrics = module.training_loss((batch, uniform, normal))
    log = Logged(data, batch)
    policies = []
    with torch.no_grad():
        for states, noise in ((log.states, normal[:, 0]), (log.next_states, normal[:, 1])):
            mean = module.actor.network(module.actor.encode_observation(states)).unsqueeze(1)
            std = module.log_std(states).exp().unsqueeze(1)  # the observations' statistics are 0 and 1
            squash = TanhTransform(cache_size=1)  # remembers what it squashed
            law = TransformedDistribution(Normal(mean, std), squash)
            actions = squash(mean + std * noise)
            policies.append((actions, law.log_prob(actions).sum(-1)))  # type: ignore[no-untyped-call]
        (now, now_density), (later, later_density) = policies
        next_q = torch.minimum(*module.target_q(log.next_states, later[:, -1]))
        target = log.rewards + 0.9 * ~log.terminated * next_q
        q_loss = torch.zeros(())
        gaps = []
        for member in range(2):
            logged = module.q(log.states, log.actions)[member]
            ratios = []
            for actions, density in (
                (uniform * 2.0 - 1.0, torch.full((128, SAMPLES), math.log(0.25))),
                (later[:, :SAMPLES], later_density[:, :SAMPLES]),
                (now[:, :SAMPLES], now_density[:, :SAMPLES]),
            ):
                for place in range(SAMPLES):
                    value = module.q(log.states, actions[:, place])[member]
                    ratios.append(value.exp() / density[:, place].exp())
            gaps.append((torch.stack(ratios).mean(0).log() - logged).mean())
            q_loss += (logged - target).square().mean() + 2.0 * gaps[-1]
        entropy = -now_density[:, -1].mean()
        q_of_policy = torch.minimum(*module.q(log.states, now[:, -1])).mean()
        policy_loss = -q_of_policy - math.exp(-0.7) * entropy
        temperature_loss = -0.7 * (entropy + 2.0)
    expected = q_loss + policy_loss + temperature_loss
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-4)
    assert float(metrics["q"]) == pytest.approx(float(target.mean()), rel=1e-4)
    assert float(metrics["gap"].detach()) == pytest.approx(float(sum(gaps) / 2.0), rel=1e-4)
    assert float(metrics["entropy"].detach()) == pytest.approx(float(entropy), rel=1e-4)
    assert float(metrics["temperature"]) == pytest.approx(math.exp(-0.7))


def test_each_loss_reaches_its_own_networks_alone() -> None:
    gradients = []
    for weight in (0.0, 50.0):
        module = _continuous(conservative_weight=weight)
        loss, metrics = module.training_loss(module.draw(1, Generator().manual_seed(0))[0])
        loss.backward()  # type: ignore[no-untyped-call]
        assert all(p.grad is None for p in module.target_q.parameters())
        networks = (module.q, module.actor.network, module.log_std)
        gradients.append([gradients_of(part) for part in networks])
        # The temperature falls if the entropy is above -A.
        assert module.log_temperature.grad is not None
        expected = float(metrics["entropy"].detach()) + 2.0
        assert float(module.log_temperature.grad) == pytest.approx(expected, rel=1e-5)
    (q, *policy), (q_conservative, *policy_same) = gradients
    # But for the last bias: the conservative term compares values.
    assert sum(torch.allclose(*pair) for pair in zip(q, q_conservative, strict=True)) == 2
    torch.testing.assert_close(policy, policy_same)  # the conservative term is Q's alone
    assert all(gradient.abs().sum() > 0 for part in policy for gradient in part)


def test_the_policy_does_not_train_the_encoder_of_q() -> None:
    """With images; the loss of Q is left out by a weight of zero and targets that equal Q."""
    parameters = method_parameters("cql", hidden=(8,), conservative_weight=0.0)
    module = ConservativeActorCritic(make_images(packed=True), parameters, 0)
    states = module.steps(torch.arange(6)).states
    noise = torch.randn(6, 2, module.actor.shape.action_size, generator=Generator().manual_seed(0))
    actions, log_probs = module.sample(states, noise)
    (actions.sum() + log_probs.sum()).backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is None for parameter in module.q.parameters())
    assert any(parameter.grad is not None for parameter in module.log_std.parameters())
    assert any(parameter.grad is not None for parameter in module.actor.parameters())


def test_the_policy_learns_at_its_own_rate() -> None:
    module = _continuous(actor_rate=0.25)
    optimizer = module.configure_optimizers()
    assert isinstance(optimizer, Adam)
    parts = (module.q, module.actor.network, module.log_std)
    before = [torch.cat([p.detach().flatten() for p in part.parameters()]) for part in parts]
    temperature = module.log_temperature.detach().clone()
    loss, _ = module.training_loss(module.draw(1, Generator().manual_seed(0))[0])
    module.differentiate(loss)
    optimizer.step()
    module.release()
    steps = [
        float((torch.cat([p.detach().flatten() for p in part.parameters()]) - old).abs().max())
        for part, old in zip(parts, before, strict=True)
    ]
    steps.append(float((module.log_temperature.detach() - temperature).abs()))
    rate = module.training_parameters.learning_rate  # the size of Adam's first step
    assert steps == pytest.approx([rate, rate / 4.0, rate / 4.0, rate / 4.0], rel=1e-2)


def _trained(data: EpisodeData, weight: float) -> float:
    training = {"steps": 800, "validation_interval": 800, "batch_size": 128, "learning_rate": 3e-3}
    parameters = method_parameters(
        "cql", training, samples=4, conservative_weight=weight, actor_rate=1.0, hidden=(64,)
    )
    policy, _ = METHODS.create(parameters).train(data, 0)
    return float(policy(data.transitions.states()).detach().mean())


def test_policy_finds_the_best_action() -> None:
    assert _trained(make_bandit(best=0.5), 0.1) == pytest.approx(0.5, abs=0.15)


def test_the_conservative_term_keeps_the_policy_in_the_data() -> None:
    """Actions above 0 are not in the data; rewards grow towards them."""
    data = make_bandit(best=1.0)
    log = data.transitions
    data = replace(data, transitions=replace(log, actions=-log.actions.abs()))
    assert data.rewards is not None
    data = data.with_rewards(replace(data.rewards, rewards=data.transitions.actions[:, 0]))
    careless, careful = _trained(data, 0.0), _trained(data, 5.0)
    assert careless > 0.5
    assert -0.6 < careful < 0.15


def test_discrete_loss_equals_the_formula() -> None:
    data = make_episodes(discrete=True)
    module = ConservativeDQN(data, _parameters(conservative_weight=2.0), 0)
    with torch.no_grad():
        for parameter in module.target_actor.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=Generator().manual_seed(1)))
    (batch,) = module.draw(1, Generator().manual_seed(0))
    loss, metrics = module.training_loss(batch)
    log, rows = Logged(data, batch), torch.arange(128)
    with torch.no_grad():
        q, next_q = module.actor.network(log.states), module.actor.network(log.next_states)
        of_target = module.target_actor.network(log.next_states)
        assert (of_target.argmax(-1) != next_q.argmax(-1)).any()
        target = log.rewards + 0.9 * ~log.terminated * of_target[rows, next_q.argmax(-1)]
        logged = q[rows, log.actions.argmax(-1)]
        gap = (q.exp().sum(-1).log() - logged).mean()
        expected = (logged - target).square().mean() + 2.0 * gap
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-5)
    assert float(metrics["q"]) == pytest.approx(float(target.mean()), rel=1e-5)
    assert float(metrics["gap"].detach()) == pytest.approx(float(gap), rel=1e-5)
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is None for parameter in module.target_actor.parameters())


def test_values_order_the_actions_of_a_chain_like_the_optimal_ones() -> None:
    mdp = chain(states=6, terminal=True)
    transitions, rewards = mdp.log_episodes(200, 40, seed=0)
    transitions = replace(transitions, discrete=torch.tensor(True))
    data = EpisodeData(
        transitions, split_first(transitions, 180), identity_normalisation(transitions), rewards
    )
    training = {"steps": 800, "validation_interval": 800, "batch_size": 128, "learning_rate": 3e-3}
    parameters = method_parameters(
        "cql", training, discount=0.9, target_rate=0.05, conservative_weight=0.01, hidden=(32,),
        scale_rewards=False,
    )  # fmt: skip
    policy, _ = METHODS.create(parameters).train(data, 0)
    assert isinstance(policy, CategoricalActor)
    optimal = np.zeros((6, 2))
    for _ in range(500):
        value = np.where(mdp.terminal, 0.0, optimal.max(1))
        optimal = mdp.step @ (mdp.reward + 0.9 * value)
    with torch.no_grad():
        values = policy.outputs(torch.eye(6)).numpy()
    alive = ~mdp.terminal
    assert (values.argmax(1) == optimal.argmax(1))[alive].all()
    assert np.corrcoef(values[alive].ravel(), optimal[alive].ravel())[0, 1] > 0.95


def test_a_large_weight_clones_discrete_actions() -> None:
    """The conservative term alone is ``-log softmax(Q)(a)``, so the policy has the frequencies of the log."""
    mdp = chain(states=6, terminal=True)
    transitions, rewards = mdp.log_episodes(200, 40, seed=0)
    transitions = replace(transitions, discrete=torch.tensor(True))
    data = EpisodeData(
        transitions, split_first(transitions, 180), identity_normalisation(transitions), rewards
    )
    training = {"steps": 800, "validation_interval": 800, "batch_size": 128, "learning_rate": 3e-3}
    parameters = method_parameters("cql", training, conservative_weight=1e4, hidden=(32,))
    policy, _ = METHODS.create(parameters).train(data, 0)
    assert isinstance(policy, CategoricalActor)
    with torch.no_grad():
        law = policy.log_probs(torch.eye(6)).exp().numpy()
    np.testing.assert_allclose(law[~mdp.terminal], mdp.policy[~mdp.terminal], atol=0.06)


def test_defaults_are_the_published_ones() -> None:
    parameters = CQL.Parameters()
    assert (parameters.weight(discrete=False), parameters.weight(discrete=True), parameters.samples) == (
        5.0,
        1.0,
        10,
    )
    assert parameters.actor_rate == pytest.approx(1e-4 / 3e-4)
    assert (parameters.discount, parameters.target_rate) == (0.99, 0.005)


@pytest.mark.parametrize(
    ("field", "value"),
    [("conservative_weight", -1.0), ("samples", 0), ("samples", 1001), ("actor_rate", 0.0)],
)
def test_values_out_of_range_are_refused(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field):
        method_parameters("cql", **{field: value})
