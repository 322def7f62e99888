"""Contrastive RL: goals in hindsight, its two extractions, and the goals of a reward."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from cvl_pipeline import api
from cvl_pipeline.dynamics.module import ContrastiveDynamics
from cvl_pipeline.episodes.container import Rewards, Transitions
from cvl_pipeline.episodes.data import EpisodeData
from cvl_pipeline.errors import InputError
from cvl_pipeline.methods.crl import CRL, GoalReaching, HindsightBatch, Positions, goal_states
from cvl_pipeline.networks.actor import CategoricalActor, GaussianActor
from cvl_pipeline.networks.critic import ContrastiveCritic, CriticShape
from cvl_pipeline.networks.goal_policy import GoalPolicy
from cvl_pipeline.testing.builders import (
    labelled_transitions,
    make_data,
    make_rewards,
    make_transitions,
    training_parameters,
)
from cvl_pipeline.training.module import OfflineModule
from tests.methods.points import log_points, share_that_arrives
from tests.methods.toys import check_resumption, make_episodes
from tests.objectives.toys import network_q

CPU: dict[str, Any] = {"accelerator": "cpu", "loggers": ()}


def _parameters(training: dict[str, Any] | None = None, **changes: Any) -> CRL.Parameters:
    small = {"hidden": (8,), "training": training_parameters(**(training or {})).model_dump()}
    return CRL.Parameters.model_validate(small | changes)


def _module(data: EpisodeData, critic: ContrastiveCritic | None = None, **changes: Any) -> GoalReaching:
    critic = critic or network_q(data.transitions).critic
    module = GoalReaching(data.without_rewards(), _parameters(**changes), 0, critic)
    module.on_fit_start()
    return module


def _labels(
    transitions: Transitions, rewards: Tensor | None = None, successes: Tensor | None = None
) -> Rewards:
    count = len(transitions)
    return Rewards(
        torch.zeros(count) if rewards is None else rewards,
        torch.zeros(count, dtype=torch.bool) if successes is None else successes,
        torch.tensor(successes is not None),
    )


# Goals in hindsight. Observations are (episode, time).

LENGTHS, ENDS = [4, 9, 6, 5], [True, False, True, False]


def _drawn(count: int, **changes: Any) -> tuple[Transitions, Positions, Tensor, Tensor]:
    """Places, observations and goals of one large batch of three training episodes."""
    transitions = labelled_transitions(LENGTHS, ENDS)
    shape = CriticShape((2,), 2, (8,), 4, "unit_norm", 0.5, False, 0.9, False)
    critic = ContrastiveCritic(shape)
    data = make_data(transitions, 3, make_rewards(transitions))
    module = _module(data, critic, training={"batch_size": count}, **changes)
    (places,) = module.draw(1, Generator().manual_seed(0))
    rows = module.read(places)
    return transitions, places, rows.observations, rows.goals


@pytest.mark.parametrize("sampling", ["uniform", "geometric"])
def test_goals_are_later_states_of_the_same_episode(sampling: str) -> None:
    _, _, states, goals = _drawn(5000, goal_sampling=sampling)
    assert torch.equal(states[:, 0], goals[:, 0])
    assert set(states[:, 0].tolist()) == {0.0, 1.0, 2.0}, "held-out episodes do not train"
    assert (goals[:, 1] > states[:, 1]).all()
    last = torch.tensor(LENGTHS).float()[goals[:, 0].long()]
    assert (goals[:, 1] <= last).all(), "nothing is observed in the absorbing state"
    assert (goals[:, 1] == last).any()


@pytest.mark.parametrize(("sampling", "discount"), [("uniform", 0.99), ("geometric", 0.6)])
def test_offsets_of_goals_follow_their_law(sampling: str, discount: float) -> None:
    _, _, states, goals = _drawn(40_000, goal_sampling=sampling, goal_discount=discount)
    from_start = (states[:, 0] == 1.0) & (states[:, 1] == 0.0)
    offsets = goals[from_start, 1].long()
    frequency = torch.bincount(offsets, minlength=10)[1:].double() / len(offsets)
    law = torch.ones(9) if sampling == "uniform" else discount ** torch.arange(9)
    np.testing.assert_allclose(frequency, law / law.sum(), atol=0.035)


def test_share_of_goals_is_random() -> None:
    _, _, states, goals = _drawn(5000, random_goals=0.5)
    # Half of the goals are states after a random transition; of 19 transitions, 81, 36 and 16 / 361 share the episode.
    same = float((states[:, 0] == goals[:, 0]).float().mean())
    assert same == pytest.approx(0.5 + 0.5 * (16 + 81 + 36) / 361, abs=0.03)
    assert set(goals[:, 0].tolist()) == {0.0, 1.0, 2.0}
    assert (goals[:, 1] > 0.0).all()


# The loss.


def _f(critic: ContrastiveCritic, states: Tensor, actions: Tensor, goals: Tensor) -> Tensor:
    """The critic's logits of matching rows, from its documented parts."""
    psi = critic.psi(goals, torch.zeros(len(goals), dtype=torch.bool))
    return critic.logits(critic.phi(states, actions), psi).diagonal()


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("extraction", ["ddpg_bc", "awr"])
def test_loss_equals_the_formula(extraction: str, discrete: bool) -> None:
    data = make_episodes(discrete)
    q = network_q(data.transitions).critic
    module = _module(data, q, extraction=extraction, bc_weight=0.7, beta=2.0, max_weight=1.5, other_actions=3)
    (places,) = module.draw(1, Generator().manual_seed(0))
    loss, metrics = module.training_loss(places)
    rows = module.read(places)
    states, actions, goals = rows.observations, rows.actions, rows.goals
    inputs = torch.cat([states, goals], dim=1)
    actor = module.actor
    count, size = actions.shape
    with torch.no_grad():
        of_all = torch.stack([_f(q, states, row.expand(count, -1), goals) for row in torch.eye(size)], dim=1)
        if extraction == "ddpg_bc" and isinstance(actor, CategoricalActor):
            log_probs = actor.log_probs(inputs)
            f = (log_probs.exp() * of_all).sum(1)
            error = -(log_probs * actions).sum(1).mean()
        elif extraction == "ddpg_bc":
            f = _f(q, states, actor(inputs), goals)
            error = 0.5 * (actor(inputs) - actions).square().sum(1).mean()
        else:
            if discrete:
                train = data.transitions.transition_index(data.split.train)
                mean = of_all @ data.transitions.actions[train].mean(0)
            else:
                assert rows.others.shape == (count, 3, size)
                mean = torch.stack([_f(q, states, rows.others[:, i], goals) for i in range(3)]).mean(0)
            weights = (2.0 * (_f(q, states, actions, goals) - mean)).exp().clamp(max=1.5)
    if extraction == "ddpg_bc":
        expected = 0.7 * error - f.mean() / f.abs().mean()
        assert float(metrics["closeness"].detach()) == pytest.approx(float(f.mean()), rel=1e-4, abs=1e-6)
    else:
        assert (weights == 1.5).any()
        assert (weights < 1.0).any()
        expected = -(weights * actor.log_prob(inputs, actions)).mean()
        assert float(metrics["weight_mean"]) == pytest.approx(float(weights.mean()), rel=1e-4)
        assert float(metrics["weight_max"]) == pytest.approx(float(weights.max()), rel=1e-4)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-4, abs=1e-6)


def test_only_the_actor_is_trained() -> None:
    data = make_episodes()
    critic = network_q(data.transitions).critic
    module = _module(data, critic)
    trained = {id(parameter) for parameter in module.trained_parameters()}
    assert trained == {id(parameter) for parameter in module.actor.parameters()}
    assert all(parameter.requires_grad for parameter in critic.phi_network.parameters()), "it is a copy"


def test_critic_is_that_of_cvl_with_the_method_s_own_discount() -> None:
    data = make_episodes()
    parameters = _parameters({"steps": 20}, discount=0.7, critic_share=0.25)
    policy, history = CRL(parameters).train(data, 0)
    assert isinstance(policy, GoalPolicy)
    assert history["step"].iloc[-1] == 20
    settings = CRL(parameters).critic_parameters(parameters.training.model_copy(update={"steps": 5}))
    assert (settings.discount, settings.hidden) == (0.7, (8,))
    critic, _ = api.train_critic(data, settings)
    torch.testing.assert_close(policy.critic.state_dict(), critic.state_dict(), rtol=0, atol=0)


def test_rewards_do_not_reach_the_training() -> None:
    data = make_episodes()
    other = data.with_rewards(make_rewards(data.transitions, seed=5))
    one, two = (CRL(_parameters()).train(part, 0) for part in (data, other))
    assert one.history.equals(two.history)
    assert isinstance(one.policy, GoalPolicy)
    assert isinstance(two.policy, GoalPolicy)
    torch.testing.assert_close(one.policy.actor.state_dict(), two.policy.actor.state_dict(), rtol=0, atol=0)
    assert not torch.equal(one.policy.goals, two.policy.goals)


# The goals of a reward. Observations are (episode, time), and three of four episodes train.


def _goals(labels: Rewards, share: float = 0.2, count: int = 99, seed: int = 0) -> set[tuple[int, ...]]:
    transitions = labelled_transitions(LENGTHS, ENDS)
    rows = goal_states(make_data(transitions, 3, labels), share, count, seed)
    assert len(rows) <= count
    return {tuple(row) for row in rows.int().tolist()}


def _of_all(function: Any) -> Tensor:
    """A label per transition, from the episode and time of the state that it leads to."""
    return torch.tensor([function(e, t + 1) for e, length in enumerate(LENGTHS) for t in range(length)])


def test_goals_are_the_successes_of_the_training_episodes() -> None:
    transitions = labelled_transitions(LENGTHS, ENDS)
    successes = _of_all(lambda episode, time: time >= 5)
    rewards = _of_all(lambda episode, time: float(-time))  # says the opposite
    assert _goals(_labels(transitions, rewards, successes)) == {(1, t) for t in range(5, 10)} | {
        (2, 5),
        (2, 6),
    }


def test_without_successes_goals_are_the_states_with_the_highest_rewards() -> None:
    transitions = labelled_transitions(LENGTHS, ENDS)
    rewards = _of_all(lambda episode, time: float(time))
    expected = {(1, t) for t in (6, 7, 8, 9)} | {(2, 6)}  # 4 of 19 transitions, and one with the same reward
    assert _goals(_labels(transitions, rewards)) == expected
    never = torch.zeros(len(transitions), dtype=torch.bool)
    assert _goals(_labels(transitions, rewards, never)) == expected


def test_states_with_the_lowest_reward_are_no_goals() -> None:
    transitions = labelled_transitions(LENGTHS, ENDS)
    sparse = _of_all(lambda episode, time: float((episode, time) == (2, 3)))
    assert _goals(_labels(transitions, sparse), share=0.5) == {(2, 3)}
    with pytest.raises(
        InputError, match=r"'crl' chooses its goals by reward or success, and all .* the same"
    ):
        _goals(_labels(transitions))


def test_of_too_many_goals_some_are_chosen_by_the_seed() -> None:
    transitions = labelled_transitions(LENGTHS, ENDS)
    labels = _labels(transitions, successes=torch.ones(len(transitions), dtype=torch.bool))
    assert len(_goals(labels)) == 19
    assert len(_goals(labels, count=5)) == 5
    assert _goals(labels, count=5) == _goals(labels, count=5)
    assert _goals(labels, count=5) != _goals(labels, count=5, seed=1)


# The method.


@pytest.mark.parametrize("extraction", ["ddpg_bc", "awr"])
@pytest.mark.parametrize("discrete", [False, True])
def test_trained_policy_acts_and_is_stored(discrete: bool, extraction: str, tmp_path: Path) -> None:
    data = make_episodes(discrete)
    policy, history = api.train_method(data, _parameters(extraction=extraction, goals=6))
    assert isinstance(policy, GoalPolicy)
    assert isinstance(policy.actor, CategoricalActor if discrete else GaussianActor)
    assert not policy.training
    assert policy.goals.shape == (6, 3)
    own = {"closeness"} if extraction == "ddpg_bc" else {"weight_mean", "weight_max"}
    assert set(history.columns) == {
        "step", "train/loss", *(f"train/{name}" for name in own), "validation/action_error",
        "validation/log_prob", "validation/closeness_gain",
    } | {name for name in history.columns if "/critic_" in str(name)}  # fmt: skip
    assert np.isfinite(history.iloc[-1].dropna()).all()
    states = data.transitions.states()
    actions = policy(states)
    assert actions.shape == data.transitions.actions.shape
    api.save(policy, tmp_path / "policy.safetensors")
    loaded = api.load(tmp_path / "policy.safetensors")
    assert torch.equal(loaded(states), actions)
    goal = np.array([0.3, -0.2, 0.1])
    assert torch.equal(loaded.toward(goal)(states), policy.toward(goal)(states))


@pytest.mark.parametrize("extraction", ["ddpg_bc", "awr"])
def test_images_are_supported(extraction: str, tmp_path: Path) -> None:
    transitions = make_transitions([6, 5, 7], [True, False, False])
    generator = Generator().manual_seed(0)
    pictures = torch.randint(256, (len(transitions.observations), 8, 8, 3), generator=generator)
    transitions = replace(transitions, observations=pictures.to(torch.uint8))
    labels = make_rewards(transitions)
    data = replace(EpisodeData.prepare(transitions, labels), rewards=labels)
    policy, _ = api.train_method(data, _parameters(CPU | {"steps": 4}, extraction=extraction))
    assert isinstance(policy, GoalPolicy)
    assert policy.goals.dtype == torch.uint8
    actions = policy.act(pictures[:4].numpy())
    assert actions.shape == (4, 2)
    api.save(policy, tmp_path / "policy.safetensors")
    np.testing.assert_array_equal(
        api.load(tmp_path / "policy.safetensors").act(pictures[:4].numpy()), actions
    )
    assert policy.toward(pictures[0].numpy()).act(pictures[1].numpy()).shape == (2,)


def test_validation_measures_the_held_out_episodes() -> None:
    data = make_episodes()
    module = _module(data)
    seen: list[HindsightBatch] = []
    read = module._rows

    def record(places: Positions) -> HindsightBatch:
        seen.append(read(places))
        return seen[-1]

    module._rows = record  # type: ignore[method-assign]
    with torch.no_grad():
        metrics = module.validation_metrics(Generator().manual_seed(0))
    (batch,) = seen
    held_out = data.transitions.select(data.split.validation).states()
    assert (batch.observations.unsqueeze(1) == held_out).all(-1).any(1).all()
    with torch.no_grad():
        actions = module.actor(torch.cat([batch.observations, batch.goals], 1))
    assert float(metrics["action_error"]) == pytest.approx(float((actions - batch.actions).square().mean()))


@pytest.mark.parametrize("module", [ContrastiveDynamics, GoalReaching])
def test_interrupted_training_resumes_to_the_same_policy(module: type[OfflineModule], tmp_path: Path) -> None:
    method = CRL(_parameters({"steps": 120, "validation_interval": 60}, critic_share=0.5))
    train = partial(method.train, make_episodes(), 0)
    history = check_resumption(train, tmp_path, module, 40, ContrastiveDynamics)
    assert history["step"].tolist() == [60, 120]


def test_missing_rewards_are_refused() -> None:
    with pytest.raises(InputError, match="'crl' needs rewards, which choose the goals"):
        CRL(_parameters()).train(make_episodes(rewards=False), 0)


# A world of points: one policy reaches every goal.


CORNER = torch.tensor([0.7, 0.7])
GOALS = torch.rand(8, 2, generator=Generator().manual_seed(5)) * 1.6 - 0.8
"""Drawn at random, so that no observation of the log is one of them."""


@pytest.mark.parametrize("extraction", ["ddpg_bc", "awr"])
def test_policy_reaches_new_goals_and_behaviour_cloning_does_not(extraction: str) -> None:
    transitions = log_points(100, 60)  # without a task; the reward is in one corner
    distance = (transitions.arrivals() - CORNER).norm(dim=1)
    data = EpisodeData.prepare(transitions, Rewards((distance < 0.2).float(), distance < 0.2))
    common: dict[str, Any] = {"hidden": (64, 64), "training": CPU | {"steps": 1000}}
    policy, _ = api.train_method(
        data, "crl", extraction=extraction, critic_share=0.6, representation_size=16, **common
    )
    assert isinstance(policy, GoalPolicy)
    clone, _ = api.train_method(data, "bc", **common)
    reached = [share_that_arrives(policy.toward(goal.numpy()), goal) for goal in GOALS]
    cloned = [share_that_arrives(clone, goal) for goal in GOALS]
    assert math.fsum(reached) / len(reached) > 0.9
    assert math.fsum(cloned) / len(cloned) < 0.3
    # The reward's own goals, among which the policy chooses.
    assert share_that_arrives(policy, CORNER) > 0.9
    assert share_that_arrives(clone, CORNER) < 0.3
