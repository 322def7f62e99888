"""MOPO: soft actor-critic on rollouts of a learned model."""

from __future__ import annotations

import copy
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor
from torch.distributions import Normal

from cvl_pipeline.episodes.data import EpisodeData
from cvl_pipeline.errors import InputError
from cvl_pipeline.methods.base import METHODS
from cvl_pipeline.methods.mopo import MOPO, MOPOLearning
from cvl_pipeline.methods.off_policy import follow
from cvl_pipeline.methods.world_model import ModelLearning
from cvl_pipeline.networks.actor import GaussianActor
from cvl_pipeline.testing.linear_gaussian import LinearGaussian, linear_gaussian
from cvl_pipeline.training.module import OfflineModule
from tests.methods.toys import Logged, check_resumption, make_episodes, method_parameters

SMALL = {"members": 3, "elites": 2, "rollouts": 10, "horizon": 3, "refresh": 20}


def _parameters(steps: int = 8, **settings: Any) -> Any:
    training = {"steps": steps, **settings.pop("training", {})}
    return method_parameters("mopo", training=training, **{**SMALL, **settings})


def _module(**settings: Any) -> MOPOLearning:
    data, parameters = make_episodes(), _parameters(**settings)
    learning = ModelLearning(data, parameters.model_copy(update={"scale_rewards": False}), 0)
    module = MOPOLearning(data, parameters, 0, learning.trained())
    module.simulate()
    return module


def _return(world: LinearGaussian, policy: Any) -> float:
    """Discounted return of a policy from the behaviour's states, the same noise each time."""
    generator = np.random.default_rng(1)
    states = generator.standard_normal((400, world.size)) @ np.linalg.cholesky(world.covariance()).T
    total = 0.0
    for t in range(50):
        with torch.no_grad():
            actions = policy(torch.from_numpy(states).float()).double().numpy()
        states = states @ world.drift.T + actions @ world.push.T
        states = states + world.noise * generator.standard_normal(states.shape)
        labels = np.einsum("ni,ij,nj->n", states, world.quadratic, states) + states @ world.linear
        total += world.discount**t * float(labels.mean())
    return total


@pytest.mark.slow  # after 1200 steps, Q is not learnt and the policy is worse than the clone
def test_policy_improves_on_cloning() -> None:
    world = linear_gaussian(size=3, actions=2, discount=0.9, seed=0)
    data = EpisodeData.prepare(*world.log_episodes(60, 60, seed=0))
    training = {"batch_size": 128, "validation_interval": 600, "learning_rate": 3e-3}
    common: dict[str, Any] = {"hidden": (32,), "training": {**training, "steps": 4000}}
    policy, _ = MOPO(
        method_parameters("mopo", discount=0.9, members=3, elites=2, rollouts=1000, **common)
    ).train(data, 0)
    clone, _ = METHODS.create(method_parameters("bc", **common)).train(data, 0)
    assert _return(world, policy) > _return(world, clone) + 0.5


def test_simulated_rewards_have_the_penalty_and_the_unit_of_the_logged_ones() -> None:
    free, penalised = _module(penalty=0.0), _module(penalty=2.0)
    observation, action = free._observations.shape[1], free._actions.shape[1]
    rewards = [part.simulated[:10, 2 * observation + action] for part in (free, penalised)]
    states, actions = free.simulated[:10, :observation], free.simulated[:10, observation:][:, :action]
    torch.testing.assert_close(
        states, penalised.simulated[:10, :observation]
    )  # the first steps of all rollouts
    predicted = free.model.predict(
        states, actions, torch.zeros_like(states), torch.zeros(10, dtype=torch.int64), True
    )
    torch.testing.assert_close(rewards[0] - rewards[1], 2.0 * predicted.spread)
    logged = free.steps(torch.arange(len(free._rows))).rewards  # in their unit
    assert float(logged.std(correction=0)) == pytest.approx(1.0)
    assert free.reward_scale == pytest.approx(1.0 / float(free.model.standardise_output.std[-1]), rel=0.05)


@pytest.mark.parametrize("real", [0.0, 1.0])
def test_share_of_logged_transitions(real: float) -> None:
    module = _module(real_share=real)
    batch = module.draw(1, Generator().manual_seed(0))[0]
    step, logged = module.mixed(batch), module.steps(batch.logged)
    same = torch.equal(step.states, logged.states) and torch.equal(step.rewards, logged.rewards)
    assert same == (real == 1.0)
    rows = module.simulated[batch.simulated]
    assert torch.equal(step.states, rows[:, : step.states.shape[1]]) == (real == 0.0)


def test_loss_equals_the_formula() -> None:
    """A batch of logged and simulated transitions, some of which terminate."""
    settings = {"discount": 0.9, "target_rate": 0.25, "real_share": 0.5, "training": {"batch_size": 64}}
    data, module = make_episodes(), _module(**settings)
    with torch.no_grad():
        for parameter in module.target_q.parameters():  # a target that differs from the online Q
            parameter.mul_(0.5)
        module.log_alpha.fill_(-0.7)  # a weight of the entropy that is not 1
        module.simulated[:, -1] = (torch.arange(len(module.simulated)) % 3 > 0).float()
        target_q = copy.deepcopy(module.target_q)
        follow(target_q, module.q, 0.25)
    module.simulate = lambda: None  # type: ignore[method-assign]  # the terminations stay
    (batch,) = module.draw(1, Generator().manual_seed(0))
    loss, metrics = module.training_loss(batch)

    log, actor, real = Logged(data, batch.logged), module.actor, batch.real
    assert isinstance(actor, GaussianActor)
    rival = torch.split(module.simulated[batch.simulated], [3, 2, 3, 1, 1], dim=1)
    states, actions, next_states = (
        torch.where(real.unsqueeze(1), ours, theirs)
        for ours, theirs in zip((log.states, log.actions, log.next_states), rival[:3], strict=True)
    )
    rewards = torch.where(real, log.rewards, rival[3].squeeze(1))
    goes_on = torch.where(real, (~log.terminated).float(), rival[4].squeeze(1))
    assert (goes_on[real] == 0.0).any()
    assert (goes_on[~real] == 0.0).any()
    with torch.no_grad():
        std = actor.log_std.exp()  # actions are from -1 to 1

        def sampled(where: Tensor, of: Tensor) -> tuple[Tensor, Tensor]:
            """Actions of the actor with that noise, and their log-densities before they are clipped."""
            density = Normal(0.0, std).log_prob(std * of)  # type: ignore[no-untyped-call]
            return (actor(where) + std * of).clamp(-1.0, 1.0), density.sum(-1)

        alpha = math.exp(-0.7)
        following, log_prob = sampled(next_states, batch.noise[:, 0])
        soft = torch.minimum(*target_q(next_states, following)) - alpha * log_prob
        target = rewards + 0.9 * goes_on * soft
        q_loss = sum((q - target).square().mean() for q in module.q(states, actions))
        chosen, log_prob = sampled(states, batch.noise[:, 1])
        actor_loss = (alpha * log_prob - torch.minimum(*module.q(states, chosen))).mean()
        alpha_loss = 0.7 * (log_prob - 2.0).mean()  # the wanted entropy is minus the number of actions
    assert float(loss.detach()) == pytest.approx(float(q_loss + actor_loss + alpha_loss), rel=1e-5)
    assert float(metrics["q"]) == pytest.approx(float(target.mean()), rel=1e-5)
    assert float(metrics["entropy"]) == pytest.approx(-float(log_prob.mean()), rel=1e-5)
    assert float(metrics["entropy_weight"]) == pytest.approx(alpha, rel=1e-6)


def test_each_loss_reaches_its_own_parameters_alone() -> None:
    module = _module()
    loss, metrics = module.training_loss(module.draw(1, Generator().manual_seed(0))[0])
    loss.backward()  # type: ignore[no-untyped-call]
    for frozen in (module.model, module.target_q):
        assert all(parameter.grad is None for parameter in frozen.parameters())
    for network in (module.q, module.actor):
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
    assert module.log_alpha.grad is not None
    # Too much entropy lowers its weight.
    excess = float(metrics["entropy"]) - module._wanted_entropy
    assert float(module.log_alpha.grad) == pytest.approx(excess, rel=1e-4)
    trained = {id(parameter) for parameter in module.trained_parameters()}
    assert not any(id(parameter) in trained for parameter in module.model.parameters())


def test_noise_begins_with_the_wanted_entropy() -> None:
    module = _module()
    assert isinstance(module.actor, GaussianActor)
    entropy = (module.actor.log_std + 0.5 * np.log(2.0 * np.pi * np.e)).sum()
    assert float(entropy.detach()) == pytest.approx(module._wanted_entropy, rel=1e-5)


@pytest.mark.parametrize(("module", "step"), [(ModelLearning, 40), (MOPOLearning, 40)])
def test_interrupted_training_resumes_to_the_same_policy(
    module: type[OfflineModule], step: int, tmp_path: Path
) -> None:
    method = MOPO(_parameters(120, model_share=0.5, training={"validation_interval": 60}))
    train = partial(method.train, make_episodes(), 0)
    history = check_resumption(train, tmp_path, module, step, ModelLearning)
    assert history["step"].tolist() == [60, 120]


def test_rollouts_are_renewed_at_their_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    simulate = MOPOLearning.simulate

    def recorded(module: MOPOLearning) -> None:
        steps.append(module.global_step)
        simulate(module)

    monkeypatch.setattr(MOPOLearning, "simulate", recorded)
    MOPO(_parameters(100, model_share=0.5, refresh=20, training={"validation_interval": 50})).train(
        make_episodes(), 0
    )
    assert steps == [0, 20, 40]


def test_defaults_are_the_published_ones() -> None:
    parameters = MOPO.Parameters()
    assert (parameters.members, parameters.elites, parameters.horizon) == (7, 5, 5)
    assert (parameters.penalty, parameters.real_share, parameters.target_rate) == (1.0, 0.05, 0.005)


@pytest.mark.parametrize(
    ("data", "message"),
    [(make_episodes(rewards=False), "needs rewards"), (make_episodes(discrete=True), "continuous actions")],
)
def test_unfit_episodes_are_refused(data: EpisodeData, message: str) -> None:
    with pytest.raises(InputError, match=f"method 'mopo'.*{message}"):
        MOPO(_parameters()).train(data, 0)


def test_more_elites_than_members_are_refused() -> None:
    with pytest.raises(ValueError, match=r"elites is 4, but there are only 3 members"):
        _parameters(elites=4)
