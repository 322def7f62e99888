from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cvl_pipeline.errors import InputError
from cvl_pipeline.networks.critic import ContrastiveCritic, CriticShape
from cvl_pipeline.policies.advantages import advantages
from cvl_pipeline.policies.module import (
    OBJECTIVES,
    Batch,
    PolicyExtraction,
    policy_objective,
    train_policy,
)
from cvl_pipeline.readout.exact import Readout
from cvl_pipeline.training.fit import fit
from cvl_pipeline.trajectories.container import Transitions
from tests.builders import (
    identity_normalisation,
    make_transitions,
    policy_parameters,
    split_first,
)


class TargetCritic(ContrastiveCritic):
    """Q is highest at the action (0.5, -0.5), whatever the state."""

    TARGET = (0.5, -0.5)

    def __init__(self) -> None:
        super().__init__(CriticShape(3, 2, (), 2, "raw", 1.0, False, 0.9))

    def phi(self, observations: Tensor, actions: Tensor) -> Tensor:
        distance = (actions - torch.tensor(self.TARGET)).square().sum(-1)
        return torch.stack([-distance, torch.zeros_like(distance)], dim=-1)


READOUT = Readout(torch.eye(2), torch.tensor([1.0, 0.0]), torch.tensor(1.0), torch.tensor(0.5))


@pytest.fixture
def data() -> Transitions:
    return make_transitions([50] * 6, [False] * 6)


def _module(data: Transitions, with_critic: bool = True, **changes: Any) -> PolicyExtraction:
    return PolicyExtraction(
        data,
        split_first(data, 4),
        identity_normalisation(data),
        policy_parameters(**changes),
        0,
        TargetCritic() if with_critic else None,
        READOUT if with_critic else None,
    )


def _batch(data: Transitions, advantage: float = 0.0) -> Batch:
    return Batch(data.states(), data.actions, torch.full((len(data),), advantage))


def _distance(module: PolicyExtraction, data: Transitions) -> float:
    with torch.no_grad():
        return float((module.actor(data.states()) - torch.tensor(TargetCritic.TARGET)).square().mean())


def test_bc_is_the_negative_mean_log_probability(data: Transitions) -> None:
    module = _module(data, with_critic=False, objective="bc")
    loss, metrics = policy_objective("bc")(module, _batch(data))
    expected = -module.actor.log_prob(data.states(), data.actions).mean()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    assert metrics == {}


def test_awr_without_beta_is_bc(data: Transitions) -> None:
    module = _module(data, beta=0.0)
    batch = Batch(data.states(), data.actions, torch.randn(len(data)))
    awr, metrics = policy_objective("awr")(module, batch)
    bc, _ = policy_objective("bc")(module, batch)
    assert float(awr.detach()) == pytest.approx(float(bc.detach()), rel=1e-6)
    assert float(metrics["weight_mean"]) == float(metrics["weight_max"]) == 1.0


def test_awr_weighs_by_the_exponential_of_the_advantage_up_to_a_limit(data: Transitions) -> None:
    module = _module(data, beta=2.0, max_weight=5.0)
    advantage = torch.linspace(-3.0, 3.0, len(data))
    loss, metrics = policy_objective("awr")(module, Batch(data.states(), data.actions, advantage))
    weights = np.minimum(np.exp(2.0 * advantage.double().numpy()), 5.0)
    log_prob = module.actor.log_prob(data.states(), data.actions).detach().double().numpy()
    assert float(loss.detach()) == pytest.approx(-(weights * log_prob).mean(), rel=1e-5)
    assert float(metrics["weight_max"]) == pytest.approx(5.0)
    assert float(metrics["weight_mean"]) == pytest.approx(weights.mean(), rel=1e-5)


def test_ddpg_bc_is_the_formula(data: Transitions) -> None:
    module = _module(data, objective="ddpg_bc", alpha=2.5)
    loss, metrics = policy_objective("ddpg_bc")(module, _batch(data))
    with torch.no_grad():
        actions = module.actor(data.states())
    distance = (actions - torch.tensor(TargetCritic.TARGET)).double().square().sum(-1)
    q = 2.0 * (-distance).sigmoid()
    expected = (actions - data.actions).double().square().mean() - 2.5 * q.mean() / q.abs().mean()
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-5)
    assert float(metrics["q"].detach()) == pytest.approx(float(q.mean()), rel=1e-5)


def test_a_step_of_ddpg_bc_raises_q_and_moves_towards_the_best_action(data: Transitions) -> None:
    module = _module(data, objective="ddpg_bc", alpha=1e6)  # Q alone
    before = _distance(module, data)
    values = []
    optimizer = torch.optim.SGD(module.actor.parameters(), lr=1e-7)
    for _ in range(20):
        loss, metrics = policy_objective("ddpg_bc")(module, _batch(data))
        values.append(float(metrics["q"].detach()))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert all(later > earlier for earlier, later in pairwise(values))
    assert _distance(module, data) < before


@pytest.mark.parametrize("objective", ["awr", "ddpg_bc"])
def test_the_critic_stays_as_it_is_and_the_callers_stays_trainable(data: Transitions, objective: str) -> None:
    torch.manual_seed(0)
    critic = ContrastiveCritic(CriticShape(3, 2, (8,), 2, "unit_norm", 0.5, True, 0.9))
    before = copy.deepcopy(critic.state_dict())
    module = PolicyExtraction(
        data,
        split_first(data, 4),
        identity_normalisation(data),
        policy_parameters(objective=objective, alpha=10.0),
        0,
        critic,
        READOUT,
    )
    actor = copy.deepcopy(module.actor.state_dict())
    fit(module, description="test")
    for used in (critic, *module._frozen):
        for name, value in used.state_dict().items():
            assert torch.equal(value, before[name]), name
    assert not torch.equal(module.actor.state_dict()["network.0.weight"], actor["network.0.weight"])
    assert all(parameter.requires_grad for parameter in critic.parameters())
    assert not any(parameter.requires_grad for parameter in module._frozen[0].parameters())


def test_the_frozen_critic_is_no_part_of_the_checkpoint(data: Transitions) -> None:
    assert all(name.startswith("actor.") for name in _module(data).state_dict())


def test_awr_uses_the_advantages_of_the_training_episodes(data: Transitions) -> None:
    module = _module(data, beta=1.0)
    module.on_fit_start()
    train = data.select(torch.arange(4))
    expected = advantages(TargetCritic(), READOUT, train, policy_parameters(), 0)
    index = torch.randint(200, (16,), generator=torch.Generator().manual_seed(8))
    loss, _ = module.training_loss(torch.Generator().manual_seed(8))
    by_hand, _ = policy_objective("awr")(
        module, Batch(train.states()[index], train.actions[index], expected[index])
    )
    assert float(loss.detach()) == pytest.approx(float(by_hand.detach()), rel=1e-5)


@pytest.mark.parametrize("objective", ["awr", "ddpg_bc"])
def test_extraction_beats_cloning_on_a_critic_that_knows_better(data: Transitions, objective: str) -> None:
    training = {"steps": 400, "batch_size": 64, "learning_rate": 3e-3, "validation_interval": 200}
    split, normalisation = split_first(data, 4), identity_normalisation(data)
    distances = {}
    for name in (objective, "bc"):
        actor, history = train_policy(
            data,
            split,
            normalisation,
            policy_parameters(objective=name, training=training, alpha=2.0, baseline_actions=16),
            0,
            critic=TargetCritic() if name != "bc" else None,
            readout=READOUT if name != "bc" else None,
        )
        with torch.no_grad():
            actions = actor(data.states())
        distances[name] = float((actions - torch.tensor(TargetCritic.TARGET)).square().mean())
        assert ("validation/q_gain" in history) == (name != "bc")
        if name != "bc":
            assert history["validation/q_gain"].iloc[-1] > 0.02
    assert distances[objective] < 0.6 * distances["bc"]


@pytest.mark.parametrize("objective", ["awr", "ddpg_bc"])
def test_an_objective_that_needs_a_critic_says_so(data: Transitions, objective: str) -> None:
    with pytest.raises(InputError, match=f"'{objective}' needs a critic.*only 'bc' does without"):
        train_policy(
            data,
            split_first(data, 4),
            identity_normalisation(data),
            policy_parameters(objective=objective),
            0,
        )


def test_validation_measures_the_held_out_episodes(data: Transitions) -> None:
    module = _module(data)
    module.on_fit_start()
    with torch.no_grad():
        metrics = module.validation_metrics(torch.Generator().manual_seed(0))
        held_out = data.select(torch.arange(4, 6))
        actions = module.actor(held_out.states())
        gain = module.q_values(held_out.states(), actions) - module.q_values(
            held_out.states(), held_out.actions
        )
        error = (actions - held_out.actions).square().mean()
        log_prob = module.actor.log_prob(held_out.states(), held_out.actions).mean()
    # 2048 draws with replacement from 100 held-out transitions: equal up to their sampling error.
    assert float(metrics["action_error"]) == pytest.approx(float(error), rel=0.1)
    assert float(metrics["log_prob"]) == pytest.approx(float(log_prob), rel=0.1)
    assert float(metrics["q_gain"]) == pytest.approx(float(gain.mean()), abs=0.05)


def test_an_unknown_objective_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="unknown objective 'sac': known: awr, bc, ddpg_bc"):
        policy_objective("sac")


def test_every_objective_that_the_parameters_allow_is_there() -> None:
    for name in OBJECTIVES:
        assert policy_parameters(objective=name).objective == name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("objective", ["awr", "ddpg_bc", "bc"])
def test_policies_train_on_a_gpu_and_come_back_to_the_cpu(data: Transitions, objective: str) -> None:
    critic = ContrastiveCritic(CriticShape(3, 2, (8,), 2, "unit_norm", 0.5, False, 0.9))
    actor, history = train_policy(
        data,
        split_first(data, 4),
        identity_normalisation(data),
        policy_parameters(objective=objective, training={"accelerator": "gpu"}),
        0,
        critic=None if objective == "bc" else critic,
        readout=None if objective == "bc" else READOUT,
    )
    assert actor.action_low.device.type == "cpu"
    assert np.isfinite(history["validation/action_error"]).all()
