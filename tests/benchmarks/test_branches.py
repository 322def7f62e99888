"""Branches of logged episodes in Meta-World and PointMaze, at small size."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.branches import Brancher, Snapshot, horizon

from cvl_pipeline.api import EpisodeData, load_episodes
from cvl_pipeline.environments.base import Environment
from cvl_pipeline.sources.base import SOURCES
from cvl_pipeline.sources.simulated import SimulatedSource

# The controller ignores it once; pytest forgets that after every test.
pytestmark = pytest.mark.filterwarnings(r"ignore:Constant\(s\) may be too high")

SEED, STEPS = 3, 30
DATASETS: dict[str, dict[str, Any]] = {
    "push": {"source": "metaworld", "task": "push-v3", "episodes": 3, "episode_steps": STEPS},
    "door": {"source": "metaworld", "task": "door-open-v3", "episodes": 3, "episode_steps": STEPS},
    "maze": {"source": "pointmaze", "episodes": 3, "episode_steps": STEPS},
}


def make_source(name: str, **settings: Any) -> SimulatedSource:
    source = SOURCES.create(SOURCES.validate(DATASETS[name] | settings))
    assert isinstance(source, SimulatedSource)
    return source


@pytest.fixture(scope="module", params=list(DATASETS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def data(name: str) -> EpisodeData:
    return load_episodes(make_source(name).parameters, SEED)


@pytest.fixture(scope="module")
def brancher(name: str, data: EpisodeData) -> Brancher:
    return Brancher(make_source(name), data.transitions, SEED)


def continued(environment: Environment, actions: list[np.ndarray[Any, Any]]) -> list[bytes]:
    """Observations and rewards of actions, as bytes."""
    steps = [environment.step(action)[:2] for action in actions]
    return [np.append(observation, float(reward)).tobytes() for observation, reward in steps]


def test_a_restored_state_goes_on_bit_for_bit_and_as_the_log_does(
    name: str, data: EpisodeData, brancher: Brancher
) -> None:
    environment, first = brancher._environment, STEPS  # the second episode
    logged = list(data.transitions.actions[first + 12 : first + STEPS].numpy())
    brancher.bring_to(1, 12)
    snapshot = Snapshot(environment)
    expected = continued(environment, logged)
    # Other actions, and more of them than the time limit allows.
    continued(environment, [-action for action in logged] * 3)
    snapshot.restore()
    assert continued(environment, logged) == expected
    snapshot.restore()
    assert continued(environment, logged) == expected
    # The last observation of an episode.
    last = np.frombuffer(expected[-1])[:-1].astype(np.float32)
    assert np.array_equal(last, data.transitions.arrivals(torch.tensor([first + STEPS - 1]))[0].numpy())


def test_a_replay_that_leads_elsewhere_is_refused(data: EpisodeData, name: str) -> None:
    actions = data.transitions.actions.clone()
    actions[2] = -actions[2] + 0.1
    other = Brancher(make_source(name), replace(data.transitions, actions=actions), SEED)
    with pytest.raises(RuntimeError, match="the replay of episode 0 does not reach its logged step 6"):
        other.bring_to(0, 6)
    other.close()


@pytest.mark.parametrize("name", ["door"], indirect=True, scope="module")
def test_rollouts_share_their_random_numbers(brancher: Brancher, data: EpisodeData) -> None:
    settings: dict[str, Any] = {"choices": 4, "rollouts": 2, "discount": 0.5}
    once = brancher.branch(1, 5, **settings, after="once")
    again = brancher.branch(1, 5, **settings, after="once")
    assert np.array_equal(once.returns, again.returns)
    assert once.returns.shape == (4, 2)
    assert once.actions.shape == (4, 4)
    assert np.abs(once.actions).max() <= 1.0
    held = brancher.branch(1, 5, **settings, after="held")
    assert np.array_equal(held.actions, once.actions)
    assert np.array_equal(held.bursts, once.bursts)
    same = (held.returns == once.returns).all(1)
    assert same[~once.bursts].all()
    logged = {tuple(action) for action in data.transitions.actions.numpy()}
    assert [tuple(action) in logged for action in once.actions] == [False, False, True, True]


@pytest.mark.parametrize("name", ["maze"], indirect=True, scope="module")
def test_actions_of_bursts_are_recognised(brancher: Brancher, data: EpisodeData) -> None:
    actions = data.transitions.actions.numpy()

    class Index:
        """A generator that draws one number."""

        def __init__(self, value: int) -> None:
            self.value = value

        def integers(self, _: int) -> int:
            return self.value

    bursts = []
    for index in range(len(actions)):
        action, burst = brancher._logged_action(Index(index))  # type: ignore[arg-type]
        assert np.array_equal(action, actions[index])
        bursts.append(burst)
    # A burst repeats its action; noise never does.
    repeated = [
        bool((actions[i] == actions[i - 1]).all()) for i in range(len(actions)) if i % STEPS and bursts[i]
    ]
    assert 0 < sum(bursts) < len(bursts)
    assert np.mean(repeated) > 0.7
    inside = np.abs(actions).max(1) < 1.0
    for i in range(1, len(actions)):
        if i % STEPS and inside[i] and (actions[i] == actions[i - 1]).all():
            assert bursts[i]


def test_the_horizon_leaves_out_a_twentieth() -> None:
    assert horizon(0.97) == 99
    assert 0.97 ** horizon(0.97) <= 0.05 < 0.97 ** (horizon(0.97) - 1)


@pytest.mark.parametrize("name", ["door"], indirect=True, scope="module")
def test_the_return_is_discounted_and_counted_on_arrival(brancher: Brancher) -> None:
    brancher.bring_to(1, 5)
    snapshot = Snapshot(brancher._environment)
    action = brancher._transitions.actions[0].numpy()

    class Repeat:
        """Disturbance that ignores the controller."""

        def apply(self, _: Any) -> Any:
            return action

    total = brancher._rollout(action, Repeat(), 0.5)  # type: ignore[arg-type]
    snapshot.restore()
    rewards = [float(brancher._environment.step(action)[1]) for _ in range(horizon(0.5))]
    weights = 0.5 ** np.arange(len(rewards))
    assert total == pytest.approx(rewards @ weights / (1.0 - 0.5 ** len(rewards)))
