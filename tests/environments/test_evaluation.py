from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import Any, SupportsFloat

import gymnasium
import numpy as np
import pytest
import torch

from cvl_pipeline.environments.base import Array, Environment
from cvl_pipeline.environments.collection import episode_seeds
from cvl_pipeline.environments.d4rl_tasks import Kitchen, Maze2D
from cvl_pipeline.environments.evaluation import ActorPolicy, check_fit, evaluate, rollout_table
from cvl_pipeline.environments.gymnasium import GymnasiumEnvironment
from cvl_pipeline.environments.metaworld import MetaWorldEnvironment
from cvl_pipeline.episodes.container import Rewards
from cvl_pipeline.episodes.validation import validate_rewards, validate_transitions
from cvl_pipeline.errors import InputError
from cvl_pipeline.networks.actor import Actor, ActorShape, CategoricalActor, GaussianActor
from cvl_pipeline.objectives.best_of_n import BestOfN
from cvl_pipeline.testing.builders import make_transitions
from tests.environments.toys import Walk
from tests.objectives.toys import TargetCritic, q_of
from tests.sources.rows import assert_equal


def _actor() -> GaussianActor:
    torch.manual_seed(0)
    return GaussianActor(ActorShape((39,), 4, (16,)))


def test_seed_and_policy_determine_a_rollout() -> None:
    make = partial(MetaWorldEnvironment, "reach-v3", 5)
    transitions, rewards = evaluate(_actor(), make, episodes=3, seed=2, workers=1, name="test")
    validate_transitions(transitions)
    validate_rewards(rewards, transitions)
    assert transitions.lengths.tolist() == [5, 5, 5]
    environment, actor = make(), _actor()
    for episode, seed in enumerate(episode_seeds(2, "evaluation", 3)):
        observation, _ = environment.reset(seed=seed)
        observations, labels = [observation], []
        for _ in range(5):
            with torch.no_grad():
                action = actor(torch.from_numpy(observation.astype(np.float32)))
            observation, reward, *_ = environment.step(action.numpy())
            observations.append(observation)
            labels.append(float(reward))
        part = transitions.select(torch.tensor([episode]))
        # One forward pass for all episodes rounds differently from one pass per episode.
        np.testing.assert_allclose(part.observations, np.stack(observations), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(rewards.rewards[5 * episode : 5 * episode + 5], labels, rtol=1e-4)


def test_the_number_of_processes_does_not_change_a_rollout() -> None:
    torch.manual_seed(0)
    actor = GaussianActor(ActorShape((2,), 1, (8,)))
    one, other = (
        evaluate(actor, Walk, episodes=12, seed=2, workers=workers, name="test") for workers in (1, 2)
    )
    assert_equal(one, other)


def test_acting_is_deterministic_and_needs_no_gradient() -> None:
    policy = ActorPolicy(_actor())
    observations = [np.random.default_rng(i).normal(size=39) for i in range(3)]
    policy.start([1, 2, 3])
    first = policy.act(observations, [0, 1, 2])
    policy.start([4, 5, 6])
    assert np.array_equal(first, policy.act(observations, [0, 1, 2]))
    assert len(first) == 3
    assert np.abs(first).max() <= 1.0


class Bytes(Walk):
    """Observes a vector of bytes, as the memory of a console."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = gymnasium.spaces.Box(0, 255, (2,), np.uint8)  # type: ignore[arg-type]

    def reset(self, *, seed: int) -> tuple[Array, dict[str, Any]]:
        _, info = super().reset(seed=seed)
        return np.array([1, 2], np.uint8), info

    def step(self, action: Array) -> tuple[Array, SupportsFloat, bool, bool, dict[str, Any]]:
        _, *others = super().step(action)
        return np.array([3, 4], np.uint8), *others  # type: ignore[return-value]


def test_vectors_of_bytes_are_numbers_for_the_policy_as_in_training() -> None:
    transitions, _ = evaluate(torch.nn.Linear(2, 1), Bytes, episodes=1, seed=0, workers=1, name="test")
    assert transitions.observations.dtype == torch.float32
    assert transitions.observations[:2].tolist() == [[1.0, 2.0], [3.0, 4.0]]


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1"])
def test_policies_are_evaluated_in_gymnasium(name: str) -> None:
    discrete = name == "CartPole-v1"
    torch.manual_seed(0)
    actor: Actor = (
        CategoricalActor(ActorShape((4,), 2, (8,)))
        if discrete
        else GaussianActor(ActorShape((3,), 1, (8,)), None, (torch.tensor([-2.0]), torch.tensor([2.0])))
    )
    make = partial(GymnasiumEnvironment, name, 15)
    transitions, rewards = evaluate(actor, make, episodes=12, seed=0, workers=1, name="test")
    validate_transitions(transitions)
    validate_rewards(rewards, transitions)
    assert transitions.episodes == 12
    assert bool(transitions.discrete) == discrete
    with torch.no_grad():
        np.testing.assert_allclose(actor(transitions.states()), transitions.actions, atol=1e-5)
    # The seed determines where each episode starts.
    environment = make()
    for episode, seed in enumerate(episode_seeds(0, "evaluation", 12)):
        start = transitions.observations[int(transitions.episode_starts[episode]) + episode]
        np.testing.assert_array_equal(start, environment.reset(seed=seed)[0])


@pytest.mark.parametrize(
    ("make", "observations", "actions"),
    [
        (partial(GymnasiumEnvironment, "AntMaze_UMaze-v5", 5), 109, 8),
        (partial(GymnasiumEnvironment, "FrankaKitchen-v1", 5), 93, 9),
        (partial(Maze2D, "maze2d-umaze-v1", 5), 4, 2),
        (partial(Kitchen, "kitchen-mixed-v0", 5), 60, 9),
    ],
)
def test_policies_are_evaluated_on_robots(
    make: Callable[[], Environment], observations: int, actions: int
) -> None:
    torch.manual_seed(0)
    bounds = torch.ones(actions)
    actor = GaussianActor(ActorShape((observations,), actions, (8,)), None, (-bounds, bounds))
    transitions, rewards = evaluate(actor, make, episodes=1, seed=0, workers=1, name="test")
    validate_transitions(transitions)
    validate_rewards(rewards, transitions)
    assert transitions.episode_starts.tolist() == [0, 5]
    assert transitions.truncated.tolist() == [True]
    with torch.no_grad():
        np.testing.assert_allclose(actor(transitions.states()), transitions.actions, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (ActorShape((5,), 2, (8,)), r"its observations have shape \(4,\), the dataset's \(5,\)"),
        (ActorShape((4,), 3, (8,)), r"its actions have shape \(2,\), the dataset's \(3,\)"),
    ],
)
def test_an_environment_that_does_not_fit_the_policy_is_refused(shape: ActorShape, message: str) -> None:
    make = partial(GymnasiumEnvironment, "CartPole-v1")
    with pytest.raises(InputError, match=rf"^the environment does not fit: {message}; name the environment"):
        evaluate(CategoricalActor(shape), make, episodes=2, seed=0, workers=1, name="test")


def test_an_environment_of_choices_does_not_fit_a_log_of_vectors() -> None:
    make = partial(GymnasiumEnvironment, "CartPole-v1")
    with pytest.raises(InputError, match="its actions are choices, the dataset's vectors"):
        evaluate(GaussianActor(ActorShape((4,), 2, (8,))), make, episodes=2, seed=0, workers=1, name="test")
    with closing(make()) as environment:
        check_fit(environment, (4,), 2, discrete=True)


def test_a_policy_with_a_critic_is_evaluated() -> None:
    torch.manual_seed(0)

    class Padded(torch.nn.Module):
        """The walk observes two numbers, but the critic needs three."""

        def __init__(self, policy: BestOfN) -> None:
            super().__init__()
            self.policy = policy

        def forward(self, observations: torch.Tensor) -> torch.Tensor:
            actions: torch.Tensor = self.policy(torch.nn.functional.pad(observations, (0, 1)))
            return actions[:, :1]

    actor = GaussianActor(ActorShape((3,), 2, (8,)))
    policy = BestOfN(actor, q_of(TargetCritic()), actor.noise(64, torch.Generator().manual_seed(0)))
    transitions, _ = evaluate(Padded(policy), Walk, episodes=3, seed=0, workers=1, name="test")
    assert float((transitions.actions - TargetCritic.TARGET[0]).abs().max()) < 0.4


def test_success_counts_at_any_step_and_returns_are_not_discounted() -> None:
    transitions = make_transitions([3, 1], [False, True])
    labels = Rewards(
        torch.tensor([1.0, 2.0, 4.0, 0.5]), torch.tensor([False, True, False, False], dtype=torch.bool)
    )
    table = rollout_table(transitions, labels, 2)
    assert table["episode_seed"].tolist() == episode_seeds(2, "evaluation", 2)
    assert table["return"].tolist() == [7.0, 0.5]
    assert table["success"].tolist() == [True, False]
    assert table["length"].tolist() == [3, 1]


def test_success_that_nothing_reports_is_missing_in_the_table() -> None:
    transitions = make_transitions([3, 1], [False, True])
    labels = Rewards(torch.arange(4.0), torch.zeros(4, dtype=torch.bool), torch.tensor(False))
    table = rollout_table(transitions, labels, 2)
    assert table["success"].isna().tolist() == [True, True]
    assert table["return"].tolist() == [3.0, 3.0]


def test_an_unknown_task_is_refused_before_any_process_starts() -> None:
    make = partial(MetaWorldEnvironment, "reech-v3", 5)
    with pytest.raises(InputError, match=r"did you mean .*reach-v3"):
        evaluate(_actor(), make, episodes=3, seed=2, workers=2, name="test")
