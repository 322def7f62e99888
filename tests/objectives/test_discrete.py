"""A log of clumsy CartPole episodes is enough for a policy that is far better than the log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from cvl_pipeline.dynamics.module import train_dynamics
from cvl_pipeline.environments.base import Array
from cvl_pipeline.environments.collection import episode_seeds
from cvl_pipeline.environments.evaluation import evaluate
from cvl_pipeline.environments.gymnasium import GymnasiumEnvironment
from cvl_pipeline.environments.rollouts import RolloutTask, run_episodes, stack_episodes
from cvl_pipeline.episodes.data import EpisodeData
from cvl_pipeline.episodes.preparation import episode_summary
from cvl_pipeline.networks.critic import ContrastiveCritic
from cvl_pipeline.objectives.training import train_policy
from cvl_pipeline.readout.build import build_readout
from cvl_pipeline.readout.q_function import QFunction
from cvl_pipeline.testing.builders import dynamics_parameters, policy_parameters, readout_parameters

SEED = 1
MAKE = partial(GymnasiumEnvironment, "CartPole-v1")


class Learned(NamedTuple):
    """Episodes with rewards, and the critic trained on them."""

    data: EpisodeData
    critic: ContrastiveCritic

    @property
    def q(self) -> QFunction:
        """Q of the clumsy policy."""
        data = self.data
        assert data.rewards is not None
        readout = build_readout(
            self.critic, data.transitions, data.rewards, data.split, readout_parameters(), SEED
        )
        return QFunction(self.critic, readout)


class Clumsy:
    """Pushes to the side to which the pole leans, whatever its speed; three steps out of four are random."""

    def start(self, seeds: Sequence[int]) -> None:
        self._generators = [np.random.default_rng([seed, 1]) for seed in seeds]

    def act(self, observations: list[Array], running: list[int]) -> list[Array]:
        chosen = []
        for observation, i in zip(observations, running, strict=True):
            generator = self._generators[i]
            random = generator.random() < 0.75
            chosen.append(int(generator.integers(2)) if random else int(observation[2] > 0.0))
        return list(np.eye(2)[chosen])


@pytest.fixture(scope="module")
def learned() -> Learned:
    """Train a critic for a few hundred steps on sixty episodes."""
    recorded = run_episodes(
        RolloutTask(MAKE, Clumsy), episode_seeds(SEED, "collection", 60), workers=1, description="Collecting"
    )
    data = EpisodeData.prepare(*stack_episodes(recorded, MAKE()), seed=SEED)
    critic, _ = train_dynamics(
        data,
        dynamics_parameters(
            discount=0.9,
            hidden=(64, 64),
            representation_size=16,
            temperature=0.1,
            training={"steps": 600, "batch_size": 256, "learning_rate": 3e-3, "validation_interval": 600},
        ),
        SEED,
    )
    return Learned(data, critic)


@pytest.mark.parametrize(("objective", "changes"), [("awr", {"beta": 3.0}), ("ddpg_bc", {"alpha": 5.0})])
def test_policy_balances_the_pole_far_longer_than_the_log(
    learned: Learned, objective: str, changes: dict[str, Any]
) -> None:
    data = learned.data
    policy, _ = train_policy(
        data,
        policy_parameters(
            objective=objective,
            hidden=(64,),
            training={"steps": 300, "batch_size": 256, "learning_rate": 3e-3, "validation_interval": 300},
            **changes,
        ),
        SEED,
        values=learned.q,
    )
    rollouts, labels = evaluate(policy, MAKE, episodes=10, seed=SEED, workers=1, name=objective)
    assert data.rewards is not None
    behaviour = float(episode_summary(data.transitions, data.rewards)["return"].mean())
    reached = float(episode_summary(rollouts, labels)["return"].mean())
    assert 20.0 < behaviour < 50.0
    # Over six seeds it was 2.9 to 15 times the behaviour; for this one it is more than ten times.
    assert reached > 3.0 * behaviour


def test_values_of_actions_differ_because_the_pole_falls(learned: Learned) -> None:
    """Every step is worth 1, so values differ only by the time until the absorbing state."""
    transitions = learned.data.transitions
    states, actions = transitions.states(), transitions.actions
    values, _ = learned.q.in_batches(states, actions)
    assert float(values.std()) > 0.5
    # Where the pole leans and falls further but can be saved, pushing to that side is worth more.
    falling = (states[:, 2] * states[:, 3] > 0.0) & (states[:, 2].abs() > 0.03) & (states[:, 2].abs() < 0.1)
    to_the_right = (states[falling, 2] > 0.0).long()
    with torch.no_grad():
        of_actions = learned.q.of_all_actions(states[falling])
    assert float((of_actions.argmax(1) == to_the_right).double().mean()) > 0.7
    # If the log called its falls timeouts, no action would be better than another.
    blind = replace(transitions, terminated=transitions.truncated, truncated=transitions.terminated)
    values, _ = learned._replace(data=replace(learned.data, transitions=blind)).q.in_batches(states, actions)
    np.testing.assert_allclose(values, 10.0, rtol=1e-4)
