from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cvl_pipeline.episodes.container import Rewards, Transitions
from cvl_pipeline.episodes.preparation import goes_on
from cvl_pipeline.judging import fqe
from cvl_pipeline.judging.critics import pair_inputs, regress_critics
from cvl_pipeline.judging.judge import Judge, swapped
from cvl_pipeline.judging.measures import MEASURES
from cvl_pipeline.judging.parameters import JudgingParameters
from cvl_pipeline.judging.samples import actions_of
from cvl_pipeline.networks.critic import ContrastiveCritic, CriticShape
from cvl_pipeline.testing.builders import (
    identity_normalisation,
    make_packed_transitions,
    make_rewards,
    make_transitions,
    split_first,
)
from cvl_pipeline.testing.finite_mdp import FiniteMDP, chain

SMALL: dict[str, Any] = {
    "members": 1, "hidden": (32,), "critic_steps": 40, "fqe_steps": 40, "batch_size": 64, "rollouts": 4,
    "rollout_steps": 5,
}  # fmt: skip


class Table(nn.Module):
    """A policy of a finite MDP that takes one action per state."""

    def __init__(self, actions: list[int], count: int) -> None:
        super().__init__()
        self.one_hot = torch.eye(count)[torch.tensor(actions)]

    def forward(self, observations: Tensor) -> Tensor:
        return self.one_hot[observations.argmax(-1)]


class Logged(nn.Module):
    """Repeats the logged action of every observation, which is unique, plus a constant."""

    def __init__(self, log: Transitions, shift: float = 0.0) -> None:
        super().__init__()
        self.states, self.actions, self.shift = log.states(), log.actions, shift

    def forward(self, observations: Tensor) -> Tensor:
        nearest = torch.cdist(observations, self.states).argmin(1)
        return self.actions[nearest] + self.shift


def make_judge(log: Transitions, labels: Rewards, train: int, discount: float = 0.8, **changes: Any) -> Judge:
    normalisation = identity_normalisation(log)
    shape = CriticShape(
        tuple(log.observations.shape[1:]), log.actions.shape[1], (8,), 4, "unit_norm", 0.1, False, 0.7, False,
        {"name": "convolutional", "channels": 4, "features": 5} if log.wide else {}, log.parts,
    )  # fmt: skip
    critic = ContrastiveCritic(shape, normalisation)
    parameters = JudgingParameters(**{**SMALL, **changes})
    return Judge(critic, log, labels, split_first(log, train), normalisation, discount, parameters, 0)


def critics_of(judge: Judge) -> Any:
    return regress_critics(judge.critic, judge.held_out, judge.discount, judge.parameters, judge.seed)


def wide_log(shift: float = 0.0) -> tuple[Transitions, Rewards]:
    log = make_transitions([6] * 8, [True, False] * 4)
    bounds = torch.full((2,), 10.0)
    log = replace(log, action_low=-bounds, action_high=bounds)
    return log, make_rewards(log)


@pytest.mark.parametrize("terminal", [False, True])
def test_fitted_q_evaluation_gives_the_exact_value_in_a_finite_mdp(terminal: bool) -> None:
    world: FiniteMDP = replace(chain(states=5, terminal=terminal), discount=0.8)
    log, labels = world.log_episodes(160, 8, seed=0)
    log = replace(log, discrete=torch.tensor(True))
    judge = make_judge(log, labels, 120, fqe_steps=700)
    firsts = judge.held_out.encoded.states(judge.held_out.encoded.episode_starts[:-1]).argmax(-1).numpy()
    found = {}
    for name, actions in {"right": [1] * 5, "left": [0] * 5}.items():
        law = np.eye(2)[actions]
        exact = float((replace(world, policy=law).q() * law).sum(1)[firsts].mean())
        numbers = judge.fitted_q_evaluation(Table(actions, 2))
        found[name] = numbers["fqe_value"]
        assert numbers["fqe_value"] == pytest.approx(exact, abs=0.2)
        assert numbers["fqe_clipped"] == pytest.approx(0.0, abs=0.2)
    assert found["right"] - found["left"] > 1.0  # type: ignore[operator]


def test_a_policy_that_is_the_behaviour_gains_nothing_where_the_length_depends_on_the_start() -> None:
    """Half of the episodes end after a step; the others never, and are cut off after three."""
    log = make_transitions([1, 3] * 60, [True, False] * 60)
    first = torch.eye(2)[torch.tensor([0, 0, 1, 1, 1, 1] * 60)]
    taken = torch.eye(2)[torch.zeros(len(log), dtype=torch.int64)]
    bounds: Any = {"action_low": torch.zeros(2), "action_high": torch.ones(2), "discrete": torch.tensor(True)}
    log = replace(log, observations=first, actions=taken, **bounds)
    labels = replace(make_rewards(log), rewards=torch.ones(len(log)))
    judge = make_judge(log, labels, 80, discount=0.9, fqe_steps=700)
    numbers = judge.fitted_q_evaluation(Table([0, 0], 2))
    assert numbers["fqe_value"] == pytest.approx((1.0 + 10.0) / 2.0, abs=0.3)
    assert numbers["fqe_gain"] == pytest.approx(0.0, abs=0.2)


@pytest.mark.parametrize("reward", [1.0, -1.0])
def test_equal_rewards_tell_policies_apart_by_how_long_they_last(reward: float) -> None:
    """To the left of the chain is its end; every step pays the same."""
    world: FiniteMDP = replace(chain(states=5, terminal=True), discount=0.9)
    log, labels = world.log_episodes(160, 8, seed=0)
    log = replace(log, discrete=torch.tensor(True))
    labels = replace(labels, rewards=torch.full_like(labels.rewards, reward))
    world = replace(world, reward=np.full_like(world.reward, reward))
    judge = make_judge(log, labels, 120, discount=0.9, fqe_steps=700)
    firsts = judge.held_out.encoded.states(judge.held_out.encoded.episode_starts[:-1]).argmax(-1).numpy()
    for actions in ([1] * 5, [0] * 5):
        law = np.eye(2)[actions]
        exact = float((replace(world, policy=law).q() * law).sum(1)[firsts].mean())
        numbers = judge.fitted_q_evaluation(Table(actions, 2))
        assert numbers["fqe_value"] == pytest.approx(exact, abs=0.5)


def test_the_behaviour_s_value_is_not_that_of_the_survivors() -> None:
    """Each step ends the episode with probability 0.05, the log after 12 steps; a step pays 1."""
    lengths = np.random.default_rng(0).geometric(0.05, 600)
    log = make_transitions(np.minimum(lengths, 12).tolist(), (lengths <= 12).tolist())
    labels = replace(make_rewards(log), rewards=torch.ones(len(log)))
    judge = make_judge(log, labels, 100, discount=0.95, transitions=100_000)
    exact = 1.0 / (1.0 - 0.95 * 0.95)
    assert judge.behaviour_value().value == pytest.approx(exact, rel=0.06)


def test_the_target_arrives_although_the_discount_is_near_one() -> None:
    world: FiniteMDP = replace(chain(states=5), discount=0.99)
    log, labels = world.log_episodes(160, 30, seed=0)
    log = replace(log, discrete=torch.tensor(True))
    judge = make_judge(log, labels, 120, discount=0.99, fqe_steps=1500)
    law = np.eye(2)[[1] * 5]
    firsts = judge.held_out.encoded.states(judge.held_out.encoded.episode_starts[:-1]).argmax(-1).numpy()
    exact = float((replace(world, policy=law).q() * law).sum(1)[firsts].mean())
    behaviour = judge.behaviour_value().value
    value = judge.fitted_q_evaluation(Table([1] * 5, 2))["fqe_value"]
    assert value is not None
    assert (value - behaviour) / (exact - behaviour) == pytest.approx(1.0, abs=0.15)


def test_a_policy_that_repeats_the_log_is_like_the_log() -> None:
    log, labels = wide_log()
    judge = make_judge(log, labels, 5)
    numbers = judge.judge(Logged(log), critics_of(judge))
    assert numbers["action_error"] == pytest.approx(0.0, abs=1e-6)
    assert numbers["advantage"] == pytest.approx(0.0, abs=1e-6)
    assert numbers["action_rank"] == 0.5
    assert set(MEASURES) >= {"action_error", "advantage", "fqe_value", "coverage"}


def test_the_action_error_is_in_standard_deviations_and_coverage_sees_the_distance() -> None:
    log, labels = wide_log()
    judge = make_judge(log, labels, 5)
    scaled = replace(judge.normalisation, action_std=torch.tensor([0.5, 2.0]))
    policy = Logged(log, shift=3.0)
    held_out = actions_of(policy, log, judge.held_out.index)
    numbers = replace(judge, normalisation=scaled).action_error(policy, held_out)
    assert numbers["action_error.0"] == pytest.approx(6.0, abs=1e-4)
    assert numbers["action_error.1"] == pytest.approx(1.5, abs=1e-4)
    assert numbers["action_error"] == pytest.approx(((6.0**2 + 1.5**2) / 2) ** 0.5, abs=1e-4)
    far = judge.judge(policy, critics_of(judge))
    assert far["action_rank"] == far["action_outside"] == 1.0


def test_choices_are_compared_by_agreement() -> None:
    world = chain(states=5)
    log, labels = world.log_episodes(20, 6, seed=0)
    log = replace(log, discrete=torch.tensor(True))
    judge = make_judge(log, labels, 14)
    left, right = (
        judge.action_error(policy, actions_of(policy, log, judge.held_out.index))["agreement"]
        for policy in (Table([0] * 5, 2), Table([1] * 5, 2))
    )
    assert left + right == pytest.approx(1.0)  # type: ignore[operator]
    assert left == pytest.approx(float(judge.held_out.encoded.actions[:, 0].mean()))


def test_rewards_of_training_episodes_do_not_reach_the_advantage() -> None:
    """Cross-fitting: the critics that judge a policy know nothing of what it was chosen by."""
    log, labels = wide_log()
    judge = make_judge(log, labels, 5)
    other = labels.rewards.clone()
    other[: int(log.episode_starts[5])] += 7.0
    changed = replace(judge, labels=replace(labels, rewards=other))
    policy = Logged(log, shift=0.5)
    advantages = [each.advantage(policy, critics_of(each)) for each in (judge, changed)]
    assert advantages[0] == advantages[1]
    assert advantages[0]["advantage"] != 0.0
    values = [each.fitted_q_evaluation(policy)["fqe_value"] for each in (judge, changed)]
    assert values[0] != values[1], "fitted Q evaluation learns from the training episodes"
    assert torch.equal(swapped(judge.split).train, judge.split.validation)


@pytest.mark.parametrize("answer", [1e4, -1e4])
def test_what_follows_stays_within_the_range_of_the_rewards_whatever_the_network_answers(
    monkeypatch: pytest.MonkeyPatch, answer: float
) -> None:
    log, labels = wide_log()
    judge = make_judge(log, labels, 5)
    sample, targets = judge.training, []

    def answering(network: Any, inputs: Tensor, of_rows: Any, *_: object) -> None:
        torch.nn.init.constant_(list(network.parameters())[-1], answer)
        targets.append(of_rows(torch.arange(len(inputs))))

    monkeypatch.setattr(fqe, "fit", answering)
    actions = sample.encoded.actions
    fitted, clipped = fqe.fit_q_of_policy(judge.critic, sample, actions, 0.8, judge.parameters, 0)
    followed = goes_on(sample.encoded)
    assert not followed.all(), "nothing follows a termination, so zero is in the range too"
    limit = sample.rewards.max().clamp(min=0.0) if answer > 0.0 else sample.rewards.min().clamp(max=0.0)
    wanted = 0.2 * sample.rewards + 0.8 * torch.where(followed, limit, 0.0)
    torch.testing.assert_close(fitted.mean + fitted.std * targets[0], wanted, rtol=1e-4, atol=1e-5)
    assert clipped == 1.0


def test_observations_with_parts_are_judged_without_visited_states() -> None:
    class Constant(nn.Module):
        def forward(self, observations: dict[str, Tensor]) -> Tensor:
            return observations["state"][:, :2]

    log = make_packed_transitions([5] * 4, [False] * 4)
    judge = make_judge(log, make_rewards(log), 2)
    numbers = judge.judge(Constant(), critics_of(judge))
    assert numbers["visited_rank"] is None
    assert all(value is not None for name, value in numbers.items() if not name.startswith("visited"))


def test_inputs_of_networks_are_those_of_the_critic() -> None:
    log, labels = wide_log()
    judge = make_judge(log, labels, 5)
    sample = judge.training
    pairs = pair_inputs(judge.critic, sample.encoded.states(), sample.encoded.actions)
    wanted = judge.critic.inputs(log.states(sample.index), log.actions[sample.index])
    torch.testing.assert_close(pairs, wanted)
    few = make_judge(log, labels, 5, transitions=13).training
    assert len(few) == 12, "two whole episodes of six steps"
    assert len(make_judge(log, labels, 5, transitions=1).training) == 6, "at least one episode"
