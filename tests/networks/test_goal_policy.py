from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from cvl_pipeline.episodes.container import Normalisation, Transitions
from cvl_pipeline.episodes.parts import beside
from cvl_pipeline.errors import InputError
from cvl_pipeline.networks import goal_policy
from cvl_pipeline.networks.critic import ContrastiveCritic, CriticShape
from cvl_pipeline.networks.goal_policy import GoalPolicy, ObservedGoal, closeness, make_goal_actor
from cvl_pipeline.testing.builders import identity_normalisation, make_discrete_transitions, make_transitions


def _episodes(discrete: bool) -> Transitions:
    make = make_discrete_transitions if discrete else make_transitions
    return make([8, 5], [True, False])


def _policy(discrete: bool = False, goals: int = 4) -> tuple[GoalPolicy, Transitions]:
    transitions = _episodes(discrete)
    torch.manual_seed(0)
    actor = make_goal_actor(transitions, identity_normalisation(transitions), (8,), {})
    size = transitions.actions.shape[1]
    critic = ContrastiveCritic(
        CriticShape((3,), size, (8,), 4, "unit_norm", 0.02, False, 0.9, False)
    ).requires_grad_(False)
    return GoalPolicy(actor, critic, transitions.observations[:goals].clone()).eval(), transitions


def test_actor_standardises_state_and_goal_alike() -> None:
    transitions = _episodes(discrete=False)
    statistics = Normalisation(
        torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 4.0, 8.0]), torch.zeros(2), torch.ones(2)
    )
    actor = make_goal_actor(transitions, statistics, (8,), {})
    assert tuple(actor.shape.observation_shape) == (6,)
    states = torch.tensor([[3.0, 6.0, 11.0]])
    features = actor.encode_observation(beside(states, states))
    torch.testing.assert_close(features, torch.ones(1, 6))


@pytest.mark.parametrize("discrete", [False, True])
def test_policy_takes_the_proposal_after_which_the_goals_are_most_likely(discrete: bool) -> None:
    policy, transitions = _policy(discrete, goals=15)
    states = transitions.states()
    count = len(policy.goals)
    chosen = set()
    for state, action in zip(states, policy(states), strict=True):
        proposals = [policy.actor(torch.cat([state, goal]).unsqueeze(0)).detach() for goal in policy.goals]
        likelihood = []
        for proposal in proposals:
            f = closeness(
                policy.critic, state.expand(count, -1), proposal.expand(count, -1),
                policy.critic.psi(policy.goals, torch.zeros(count, dtype=torch.bool)),
            )  # fmt: skip
            likelihood.append(float(f.exp().sum()))
        best = int(np.argmax(likelihood))
        chosen.add(best)
        if discrete:  # proposals may be the same
            assert likelihood[[bool((p == action).all()) for p in proposals].index(True)] == likelihood[best]
        else:
            torch.testing.assert_close(action, proposals[best][0])
    assert discrete or len(chosen) > 1


def test_actions_do_not_depend_on_the_states_beside_them(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, transitions = _policy()
    states = transitions.states()
    whole = policy(states)
    monkeypatch.setattr(goal_policy, "PAIRS", 9)
    torch.testing.assert_close(policy(states), whole)
    torch.testing.assert_close(policy(states[3:4]), whole[3:4])


@pytest.mark.parametrize("discrete", [False, True])
def test_policy_toward_a_goal_is_the_actor_with_that_goal(discrete: bool) -> None:
    policy, transitions = _policy(discrete)
    states, goal = transitions.states(), np.array([0.5, -1.0, 2.0])
    toward = policy.toward(goal)
    row = torch.tensor(goal).float().expand(len(states), -1)
    assert torch.equal(toward(states), policy.actor(torch.cat([states, row], 1)))
    assert torch.equal(toward.toward(policy.goals.numpy())(states), policy(states)), "several goals"
    assert toward.actor is policy.actor
    single = toward.act(states[0].numpy())
    if discrete:
        assert isinstance(single, int)
    else:
        assert single.shape == (2,)


@pytest.mark.parametrize(
    ("goals", "message"),
    [
        (np.zeros(4), r"goals have shape \(4,\); this policy takes \(3,\) or \(B, 3\)"),
        (np.zeros((0, 3)), "there are 0 goals; give at least 1 and at most 4096"),
        (np.zeros((4097, 3)), "there are 4097 goals"),
        (np.array([0.0, np.nan, 0.0]), "goals hold a value that is not a finite number"),
    ],
)
def test_goals_that_are_no_observations_are_refused(goals: np.ndarray[Any, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        _policy()[0].toward(goals)


def test_closeness_is_the_logit_of_state_action_and_goal() -> None:
    policy, transitions = _policy()
    states, actions = transitions.states(), transitions.actions
    critic = policy.critic
    psi = critic.psi(transitions.arrivals(), torch.zeros(len(states), dtype=torch.bool))
    logits = critic.logits(critic.phi(states, actions), psi)
    torch.testing.assert_close(closeness(critic, states, actions, psi), logits.diagonal())


@pytest.mark.parametrize("discrete", [False, True])
def test_an_observed_goal_takes_the_place_of_the_policys_own(discrete: bool) -> None:
    policy, transitions = _policy(discrete)
    states, goals = transitions.observations[:6], transitions.observations[6:12]
    pairs = torch.cat([states, goals], 1)
    observed = ObservedGoal(policy)
    each = torch.cat(
        [policy.toward(goal.numpy())(state[None]) for state, goal in zip(states, goals, strict=True)]
    )
    torch.testing.assert_close(observed(pairs), each)
    assert (tuple(observed.shape.observation_shape), observed.discrete) == ((6,), discrete)
    # Others do not see it.
    plain = torch.nn.Linear(3, 2)
    torch.testing.assert_close(ObservedGoal(plain)(pairs), plain(states))
