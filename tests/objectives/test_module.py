from __future__ import annotations

import copy
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Generator, Tensor

from cvl_pipeline.episodes.container import Rewards, Transitions
from cvl_pipeline.episodes.sampling import SegmentSampler
from cvl_pipeline.errors import InputError
from cvl_pipeline.networks.actor import Actor, CategoricalActor, GaussianActor
from cvl_pipeline.networks.critic import ContrastiveCritic, CriticShape
from cvl_pipeline.objectives.advantages import advantages
from cvl_pipeline.objectives.best_of_n import BestOfN
from cvl_pipeline.objectives.module import (
    OBJECTIVES,
    Batch,
    Drawn,
    PolicyExtraction,
    policy_objective,
    train_policy,
)
from cvl_pipeline.readout.build import build_readout
from cvl_pipeline.readout.q_function import QFunction
from cvl_pipeline.testing.builders import (
    identity_normalisation,
    make_discrete_transitions,
    make_rewards,
    make_transitions,
    policy_parameters,
    readout_parameters,
    split_first,
)
from cvl_pipeline.training.fit import fit
from cvl_pipeline.training.seeds import stream_seed
from tests.objectives.toys import DISCOUNT, SignCritic, TargetCritic, q_of

EVERY_OBJECTIVE = sorted(OBJECTIVES)
NEED_Q = [name for name in EVERY_OBJECTIVE if name != "bc"]


@pytest.fixture
def data() -> Transitions:
    return make_transitions([50] * 6, [False] * 6)


def _data(discrete: bool) -> Transitions:
    make = make_discrete_transitions if discrete else make_transitions
    return make([50] * 6, [False, True] * 3)


def _q(data: Transitions) -> QFunction:
    return q_of(SignCritic() if data.discrete else TargetCritic())


def _ones(data: Transitions) -> Rewards:
    return Rewards(torch.ones(len(data)), torch.zeros(len(data), dtype=torch.bool))


def _module(data: Transitions, with_q: bool = True, **changes: Any) -> PolicyExtraction:
    return PolicyExtraction(
        data,
        split_first(data, 4),
        identity_normalisation(data),
        policy_parameters(**changes),
        0,
        _q(data) if with_q else None,
        make_rewards(data) if with_q else None,
    )


def _train(
    data: Transitions, objective: str, checkpoints: Path | None = None, **changes: Any
) -> tuple[Actor | BestOfN, pd.DataFrame]:
    return train_policy(
        data,
        split_first(data, 4),
        identity_normalisation(data),
        policy_parameters(objective=objective, **changes),
        0,
        checkpoints,
        q=_q(data) if objective != "bc" else None,
        labels=_ones(data) if objective == "published" else None,
    )


def _batch(data: Transitions, advantage: float = 0.0) -> Batch:
    return Batch(data.states(), data.actions, torch.full((len(data),), advantage))


def _loss(module: PolicyExtraction, batch: Batch) -> tuple[float, dict[str, Tensor]]:
    objective = policy_objective(module.parameters_of_stage.objective)
    loss, metrics = objective(module, batch)
    return float(loss.detach()), metrics


def _distance(policy: torch.nn.Module, data: Transitions) -> float:
    with torch.no_grad():
        return float((policy(data.states()) - torch.tensor(TargetCritic.TARGET)).square().mean())


def _hits(policy: torch.nn.Module, data: Transitions) -> float:
    """Share of states in which the policy takes the best discrete action."""
    with torch.no_grad():
        chosen = policy(data.states()).argmax(1)
    return float((chosen == SignCritic.best(data.states())).double().mean())


@pytest.mark.parametrize("objective", ["bc", "best_of_n"])
@pytest.mark.parametrize("discrete", [False, True])
def test_cloning_is_the_negative_mean_log_probability(objective: str, discrete: bool) -> None:
    data = _data(discrete)
    module = _module(data, objective=objective)
    loss, metrics = _loss(module, _batch(data))
    expected = -module.actor.log_prob(data.states(), data.actions).mean()
    assert loss == pytest.approx(float(expected.detach()), rel=1e-6)
    assert metrics == {}


def test_the_actor_is_of_the_kind_that_the_actions_are() -> None:
    assert isinstance(_module(_data(discrete=True)).actor, CategoricalActor)
    actor = _module(_data(discrete=False)).actor
    assert isinstance(actor, GaussianActor)
    assert torch.equal(actor.action_low, -torch.ones(2))


def test_awr_without_beta_is_bc(data: Transitions) -> None:
    module = _module(data, beta=0.0)
    batch = Batch(data.states(), data.actions, torch.randn(len(data)))
    awr, metrics = _loss(module, batch)
    bc = -module.actor.log_prob(data.states(), data.actions).mean()
    assert awr == pytest.approx(float(bc.detach()), rel=1e-6)
    assert float(metrics["weight_mean"]) == float(metrics["weight_max"]) == 1.0


@pytest.mark.parametrize("discrete", [False, True])
def test_awr_weighs_by_the_exponential_of_the_advantage_up_to_a_limit(discrete: bool) -> None:
    data = _data(discrete)
    module = _module(data, beta=2.0, max_weight=5.0)
    advantage = torch.linspace(-3.0, 3.0, len(data))
    loss, metrics = _loss(module, Batch(data.states(), data.actions, advantage))
    weights = np.minimum(np.exp(2.0 * advantage.double().numpy()), 5.0)
    log_prob = module.actor.log_prob(data.states(), data.actions).detach().double().numpy()
    assert loss == pytest.approx(-(weights * log_prob).mean(), rel=1e-5)
    assert float(metrics["weight_max"]) == pytest.approx(5.0)
    assert float(metrics["weight_mean"]) == pytest.approx(weights.mean(), rel=1e-5)


def test_ddpg_bc_is_the_formula(data: Transitions) -> None:
    module = _module(data, objective="ddpg_bc", alpha=2.5)
    loss, metrics = _loss(module, _batch(data))
    with torch.no_grad():
        actions = module.actor(data.states())
    distance = (actions - torch.tensor(TargetCritic.TARGET)).double().square().sum(-1)
    q = (-distance).sigmoid() / (1.0 - DISCOUNT)
    expected = (actions - data.actions).double().square().mean() - 2.5 * q.mean() / q.abs().mean()
    assert loss == pytest.approx(float(expected), rel=1e-5)
    assert float(metrics["q"].detach()) == pytest.approx(float(q.mean()), rel=1e-5)


def test_ddpg_bc_of_discrete_actions_is_the_mean_over_all_of_them() -> None:
    data = _data(discrete=True)
    module = _module(data, objective="ddpg_bc", alpha=2.5)
    loss, metrics = _loss(module, _batch(data))
    assert isinstance(module.actor, CategoricalActor)
    with torch.no_grad():
        log_probs = module.actor.log_probs(data.states()).double()
    place = 2.0 * data.states()[:, 0].double()
    of_actions = torch.stack([place, -place, torch.zeros_like(place)], dim=1).sigmoid() / (1.0 - DISCOUNT)
    q = (log_probs.exp() * of_actions).sum(1)
    cloning = -log_probs[torch.arange(len(data)), data.actions.argmax(1)].mean()
    assert loss == pytest.approx(float(cloning - 2.5 * q.mean() / q.abs().mean()), rel=1e-5)
    assert float(metrics["q"].detach()) == pytest.approx(float(q.mean()), rel=1e-5)


@pytest.mark.parametrize("discrete", [False, True])
def test_published_is_the_formula(discrete: bool) -> None:
    data = _data(discrete)
    module = _module(
        data, objective="published", cloning_share=0.2, entropy_weight=0.3, training={"batch_size": 256}
    )
    module.on_fit_start()
    (drawn,) = module.draw(1, Generator().manual_seed(8))
    found, metrics = module.training_loss(drawn)
    loss = float(found.detach())

    # The same segments and the same noise, and from there on written out.
    generator = Generator().manual_seed(8)
    train = data.select(torch.arange(4))
    segments = SegmentSampler(train, DISCOUNT).sample(256, generator)
    assert segments.absorbed.any()
    rewards = make_rewards(data).rewards[:200][segments.arrivals].masked_fill(segments.absorbed, 0.0).double()
    states = segments.observations
    with torch.no_grad():
        cloning = -module.actor.log_prob(states, segments.actions).mean()
        if isinstance(module.actor, CategoricalActor):
            log_pi = module.actor.log_probs(states).double()
            place = 2.0 * states[:, 0].double()
            ratio = torch.stack([place, -place, torch.zeros_like(place)], dim=1).exp()
            gain = (log_pi.exp() * (ratio * rewards[:, None] - 0.3 * log_pi)).sum(1).mean()
        else:
            noise = torch.randn(len(states), 2, generator=generator)
            actions = module.actor.act_with_noise(states, noise[:, None]).squeeze(1)
            ratio = (-(actions - torch.tensor(TargetCritic.TARGET)).double().square().sum(-1)).exp()
            gain = (ratio * rewards - 0.3 * module.actor.log_prob(states, actions)).mean()
    assert loss == pytest.approx(float(0.2 * cloning - 0.8 * gain), rel=1e-5)
    assert float(metrics["gain"].detach()) == pytest.approx(float(gain), rel=1e-5)


def test_published_draws_its_futures_at_the_discount_of_the_readout(data: Transitions) -> None:
    # Which is not the critic's where that is conditioned on the horizon.
    q = _learned_q(data, conditioned=True, discount=0.2)
    assert q.critic.shape.discount == 0.9
    module = PolicyExtraction(
        data,
        split_first(data, 4),
        identity_normalisation(data),
        policy_parameters(objective="published"),
        0,
        q,
        make_rewards(data),
    )
    module.on_fit_start()
    assert module.sampler.discount == 0.2


def test_published_draws_another_noise_for_every_state(data: Transitions) -> None:
    module = _module(data, objective="published")
    module.on_fit_start()
    seen: list[Tensor] = []
    draw = module.actor.act_with_noise

    def watch(observations: Tensor, noise: Tensor) -> Tensor:
        seen.append(noise)
        return draw(observations, noise)

    module.actor.act_with_noise = watch  # type: ignore[method-assign]
    module.training_loss(module.draw(1, Generator().manual_seed(0))[0])
    assert len(np.unique(seen[0].squeeze(1).numpy(), axis=0)) == 16


def test_a_step_of_ddpg_bc_raises_q_and_moves_towards_the_best_action(data: Transitions) -> None:
    module = _module(data, objective="ddpg_bc", alpha=1e6)  # Q alone
    before = _distance(module.actor, data)
    values = []
    optimizer = torch.optim.SGD(module.actor.parameters(), lr=1e-7)
    for _ in range(20):
        loss, metrics = policy_objective("ddpg_bc")(module, _batch(data))
        values.append(float(metrics["q"].detach()))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert all(later > earlier for earlier, later in pairwise(values))
    assert _distance(module.actor, data) < before


def _learned_q(data: Transitions, conditioned: bool = False, discount: float | None = None) -> QFunction:
    """A critic of real networks, untrained, and the readout that the pipeline would make of it."""
    torch.manual_seed(0)
    size = data.actions.shape[1]
    critic = ContrastiveCritic(CriticShape((3,), size, (8,), 4, "unit_norm", 0.5, True, 0.9, conditioned))
    labels = make_rewards(data)
    parameters = readout_parameters(discount=discount)
    return QFunction(critic, build_readout(critic, data, labels, split_first(data, 4), parameters, 0))


@pytest.mark.parametrize("objective", NEED_Q)
@pytest.mark.parametrize("discrete", [False, True])
def test_the_critic_stays_as_it_is_and_the_callers_stays_trainable(objective: str, discrete: bool) -> None:
    data = _data(discrete)
    q = _learned_q(data)
    before = copy.deepcopy(q.critic.state_dict())
    module = PolicyExtraction(
        data,
        split_first(data, 4),
        identity_normalisation(data),
        policy_parameters(objective=objective, alpha=10.0),
        0,
        q,
        make_rewards(data),
    )
    actor = copy.deepcopy(module.actor.state_dict())
    fit(module, description="test")
    assert module.q.critic is not q.critic
    for used in (q.critic, module.q.critic):
        for name, value in used.state_dict().items():
            assert torch.equal(value, before[name]), name
    assert not torch.equal(module.actor.state_dict()["network.0.weight"], actor["network.0.weight"])
    assert all(parameter.requires_grad for parameter in q.critic.parameters())
    assert not any(parameter.requires_grad for parameter in module.q.critic.parameters())


def test_the_frozen_critic_is_no_part_of_the_checkpoint(data: Transitions) -> None:
    module = _module(data)
    module.on_fit_start()
    assert all(name.startswith("actor.") for name in module.state_dict())


def test_awr_uses_the_advantages_of_the_training_episodes(data: Transitions) -> None:
    module = _module(data, beta=1.0)
    module.on_fit_start()
    train = data.transition_index(torch.arange(4))
    expected = advantages(_q(data), data, train, policy_parameters(), 0)
    drawn = torch.randint(200, (16,), generator=torch.Generator().manual_seed(8))
    loss, _ = module.training_loss(module.draw(1, torch.Generator().manual_seed(8))[0])
    index = train[drawn]
    by_hand, _ = _loss(module, Batch(data.states(index), data.actions[index], expected[drawn]))
    assert float(loss.detach()) == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.parametrize("objective", ["awr", "ddpg_bc", "best_of_n", "published"])
@pytest.mark.parametrize("discrete", [False, True])
def test_extraction_beats_cloning_on_a_critic_that_knows_better(objective: str, discrete: bool) -> None:
    data = _data(discrete)
    changes: dict[str, Any] = {
        "training": {"steps": 300, "batch_size": 64, "learning_rate": 3e-3, "validation_interval": 150},
        "alpha": 2.0,
        "baseline_actions": 16,
        "proposals": 32,
    }
    policy, history = _train(data, objective, **changes)
    clone, clone_history = _train(data, "bc", **changes)
    assert np.isfinite(history.to_numpy()).all()
    if discrete:
        # Cloning takes the action that is commonest in the log.
        assert _hits(clone, data) < 0.7
        assert _hits(policy, data) > 0.9
    else:
        assert _distance(policy, data) < 0.6 * _distance(clone, data)
    assert "validation/q_gain" not in clone_history
    if objective != "best_of_n":  # whose history is that of the cloned proposals
        assert history["validation/q_gain"].iloc[-1] > 0.02


@pytest.mark.parametrize("discrete", [False, True])
def test_cloning_learns_how_the_log_acts(discrete: bool) -> None:
    data = _data(discrete)
    _, history = _train(
        data,
        "bc",
        training={"steps": 200, "validation_interval": 100, "learning_rate": 1e-2, "batch_size": 64},
    )
    if discrete:
        # A law that no state tells anything of: its entropy is the best there is.
        law = data.actions.double().mean(0)
        entropy = float(-(law * law.log()).sum())
        assert history["train/loss"].iloc[-1] == pytest.approx(entropy, abs=0.15)
        assert history["train/loss"].iloc[-1] < math.log(3) - 0.03
    else:
        # Uniform actions in [-1, 1] have a standard deviation of 0.58.
        best = 0.5 * math.log(2.0 * math.pi * math.e / 3.0)
        assert history["train/loss"].iloc[-1] == pytest.approx(2.0 * best, abs=0.15)


@pytest.mark.parametrize("objective", NEED_Q)
def test_an_objective_that_needs_a_critic_says_so(data: Transitions, objective: str) -> None:
    with pytest.raises(InputError, match=f"'{objective}' needs a critic and a readout"):
        train_policy(
            data,
            split_first(data, 4),
            identity_normalisation(data),
            policy_parameters(objective=objective),
            0,
            labels=_ones(data),
        )


def test_an_objective_that_needs_rewards_says_so_and_the_others_need_none(data: Transitions) -> None:
    arguments = (data, split_first(data, 4), identity_normalisation(data))
    with pytest.raises(InputError, match="'published' needs rewards"):
        train_policy(*arguments, policy_parameters(objective="published"), 0, q=_q(data))
    for objective in NEED_Q:
        if objective != "published":
            PolicyExtraction(*arguments, policy_parameters(objective=objective), 0, _q(data))


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("objective", EVERY_OBJECTIVE)
def test_interrupted_extraction_resumes_to_the_very_same_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objective: str, discrete: bool
) -> None:
    data = _data(discrete)
    changes: dict[str, Any] = {"training": {"steps": 30, "validation_interval": 10, "learning_rate": 0.01}}
    whole, expected = _train(data, objective, **changes)
    draw = PolicyExtraction.training_loss
    steps: list[int] = []

    def fails_at_17(module: PolicyExtraction, batch: Drawn) -> tuple[Tensor, dict[str, Tensor]]:
        if module.global_step == 17 and 17 not in steps:
            steps.append(17)
            raise RuntimeError("the machine went away")
        steps.append(module.global_step)
        return draw(module, batch)

    monkeypatch.setattr(PolicyExtraction, "training_loss", fails_at_17)
    with pytest.raises(RuntimeError, match="went away"):
        _train(data, objective, tmp_path, **changes)
    steps[:] = [17]
    resumed, history = _train(data, objective, tmp_path, **changes)
    assert steps[1:] == list(range(10, 30)), "continued, not repeated"
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    pd.testing.assert_frame_equal(history, expected, check_exact=True)


@pytest.mark.parametrize("discrete", [False, True])
def test_best_of_n_is_the_clone_with_the_critic_at_its_side(discrete: bool) -> None:
    data = _data(discrete)
    policy, history = _train(data, "best_of_n", proposals=5)
    clone, clone_history = _train(data, "bc", proposals=5)
    assert isinstance(policy, BestOfN)
    assert not policy.training
    for name, value in clone.state_dict().items():
        assert torch.equal(policy.actor.state_dict()[name], value), name
    assert history["train/loss"].equals(clone_history["train/loss"])
    generator = Generator().manual_seed(stream_seed(0, "proposals", 0))
    assert torch.equal(policy.proposals, policy.actor.noise(5, generator))
    assert not any(parameter.requires_grad for parameter in policy.critic.parameters())


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("objective", NEED_Q)
def test_every_objective_takes_a_critic_that_is_conditioned_on_the_horizon(
    objective: str, discrete: bool
) -> None:
    data = _data(discrete)
    q = _learned_q(data, conditioned=True)
    assert len(q.readout.horizons) == 4
    policy, history = train_policy(
        data,
        split_first(data, 4),
        identity_normalisation(data),
        policy_parameters(objective=objective),
        0,
        q=q,
        labels=make_rewards(data),
    )
    assert np.isfinite(history.to_numpy()).all()
    assert policy(data.states()).shape == data.actions.shape


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("objective", EVERY_OBJECTIVE)
def test_extraction_in_bfloat16_ends_near_extraction_in_float32(objective: str, discrete: bool) -> None:
    data = _data(discrete)
    losses = []
    for precision in ("float32", "bfloat16"):
        _, history = _train(
            data, objective, training={"precision": precision, "steps": 40, "validation_interval": 20}
        )
        assert np.isfinite(history.to_numpy()).all()
        losses.append(history["train/loss"].iloc[-1])
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_validation_measures_the_held_out_episodes(data: Transitions) -> None:
    module = _module(data)
    module.on_fit_start()
    with torch.no_grad():
        metrics = module.validation_metrics(torch.Generator().manual_seed(0))
        held_out = data.select(torch.arange(4, 6))
        actions = module.actor(held_out.states())
        gain = module.q(held_out.states(), actions) - module.q(held_out.states(), held_out.actions)
        error = (actions - held_out.actions).square().mean()
        log_prob = module.actor.log_prob(held_out.states(), held_out.actions).mean()
    # 2048 draws with replacement from 100 held-out transitions: equal up to their sampling error.
    assert float(metrics["action_error"]) == pytest.approx(float(error), rel=0.1)
    assert float(metrics["log_prob"]) == pytest.approx(float(log_prob), rel=0.1)
    assert float(metrics["q_gain"]) == pytest.approx(float(gain.mean()), abs=0.05)


def test_an_unknown_objective_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="unknown objective 'sac': known: awr, bc, best_of_n, ddpg_bc, publ"):
        policy_objective("sac")


@pytest.mark.parametrize("objective", EVERY_OBJECTIVE)
def test_every_objective_that_the_parameters_allow_is_there(objective: str) -> None:
    assert policy_parameters(objective=objective).objective == objective


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("conditioned", [False, True])
@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("objective", EVERY_OBJECTIVE)
def test_policies_train_on_a_gpu_and_come_back_to_the_cpu(
    objective: str, discrete: bool, conditioned: bool, precision: str
) -> None:
    data = _data(discrete)
    policy, history = train_policy(
        data,
        split_first(data, 4),
        identity_normalisation(data),
        policy_parameters(objective=objective, training={"accelerator": "gpu", "precision": precision}),
        0,
        q=_learned_q(data, conditioned),
        labels=make_rewards(data),
    )
    assert {value.device.type for value in policy.state_dict().values()} == {"cpu"}
    assert policy(data.states()).shape == data.actions.shape
    assert np.isfinite(history.to_numpy()).all()
