from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from cvl_pipeline.api import ingest
from cvl_pipeline.environments.collection import Controller, Disturbances
from cvl_pipeline.environments.gymnasium import GymnasiumEnvironment
from cvl_pipeline.errors import InputError
from cvl_pipeline.sources.gymnasium import Gymnasium, UserController

HERE = "tests.sources.test_gymnasium"


def always_right(observation: np.ndarray) -> int:
    """A user's policy for CartPole."""
    return 1


def swings(observation: np.ndarray) -> np.ndarray:
    """A user's policy for Pendulum."""
    return np.array([2.0 * np.sign(observation[2])])


def wrong_action(observation: np.ndarray) -> Any:
    """A policy that returns neither 0 nor 1."""
    return 7


def nan_action(observation: np.ndarray) -> Any:
    return np.array([np.nan])


def _source(**settings: Any) -> Gymnasium:
    return Gymnasium(Gymnasium.Parameters(**settings))


def _controller(task: str, policy: str) -> Controller:
    return _source(task=task, policy=policy).make_controller()()


def test_an_environment_is_made_by_its_id_with_the_length_of_the_collection() -> None:
    factory: Any = _source(task="Pendulum-v1", episode_steps=10).make_environment(3)
    assert (factory.func, factory.args) == (GymnasiumEnvironment, ("Pendulum-v1", 10))


def test_without_a_policy_every_step_is_random() -> None:
    source = _source(random_hold=3)
    assert source.disturbances() == Disturbances(0.0, 1.0, 3, random_min=1.0)


def test_random_actions_differ_from_episode_to_episode() -> None:
    parameters = Gymnasium.Parameters(task="CartPole-v1", random_hold=1, episodes=4, episode_steps=10)
    transitions, _ = ingest(parameters, seed=0, workers=1)
    assert transitions.discrete
    starts = transitions.episode_starts[:-1]
    beginnings = {tuple(transitions.actions[start : start + 8, 0].tolist()) for start in starts}
    assert len(beginnings) > 1


def test_a_policy_of_your_own_acts_in_the_terms_of_its_environment() -> None:
    discrete = _controller("CartPole-v1", f"{HERE}:always_right")
    np.testing.assert_array_equal(discrete(np.zeros(4)), [0.0, 1.0])
    vector = _controller("Pendulum-v1", f"{HERE}:swings")
    np.testing.assert_array_equal(vector(np.array([1.0, 0.0, -0.5])), [-2.0])


class FromOne(GymnasiumEnvironment):
    """An environment whose choices are 1 and 2."""

    def __init__(self) -> None:
        super().__init__("CartPole-v1", 5)
        self.first_action = 1


def test_choices_of_a_policy_of_your_own_count_from_the_first_one_of_the_environment() -> None:
    controller = UserController(f"{HERE}:always_right", FromOne)
    np.testing.assert_array_equal(controller(np.zeros(4)), [1.0, 0.0])
    with pytest.raises(InputError, match=r"returned array\(7\), not one of 1\.\.2"):
        UserController(f"{HERE}:wrong_action", FromOne)(np.zeros(4))


def test_a_policy_of_your_own_collects_episodes() -> None:
    parameters = Gymnasium.Parameters(
        task="CartPole-v1", policy=f"{HERE}:always_right", noise_max=0.0, random_max=0.0, episodes=2,
    )  # fmt: skip
    transitions, _ = ingest(parameters, seed=0, workers=1)
    assert (transitions.actions[:, 1] == 1.0).all()


@pytest.mark.parametrize(
    ("task", "function", "wanted"),
    [
        ("CartPole-v1", "wrong_action", "one of 0..1"),
        ("Pendulum-v1", "wrong_action", "1 finite numbers"),
        ("Pendulum-v1", "nan_action", "1 finite numbers"),
        ("CartPole-v1", "swings", "one of 0..1"),
    ],
)
def test_a_policy_that_returns_no_action_is_named(task: str, function: str, wanted: str) -> None:
    controller = _controller(task, f"{HERE}:{function}")
    with pytest.raises(InputError, match=rf"dataset\.policy '{HERE}:{function}' returned .*, not {wanted}"):
        controller(np.zeros(3))


def test_a_policy_that_cannot_be_imported_is_reported_before_anything_runs() -> None:
    with pytest.raises(InputError, match=r"dataset\.policy 'nowhere:f' cannot be imported"):
        _source(task="CartPole-v1", policy="nowhere:f").make_controller()


@pytest.mark.parametrize("preset", ["noisy", "expert_few"])
def test_a_preset_that_disturbs_a_policy_needs_one(preset: str) -> None:
    with pytest.raises(ValidationError, match=rf"preset {preset} disturbs a policy: set dataset\.policy"):
        _source(preset=preset)
    assert _source(preset=preset, policy=f"{HERE}:always_right").parameters.preset == preset


@pytest.mark.parametrize("name", ["noise_max", "random_max"])
def test_what_disturbs_a_policy_needs_one(name: str) -> None:
    with pytest.raises(
        ValidationError, match=rf"dataset\.{name} disturbs a policy: set dataset\.policy, or leave"
    ):
        _source(**{name: 0.1})
    assert getattr(_source(**{name: 0.1}, policy=f"{HERE}:always_right").parameters, name) == 0.1
