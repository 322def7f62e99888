"""Q from rollouts of a learned model, on problems with exact values."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor, nn

from cvl_pipeline.episodes.data import EpisodeData
from cvl_pipeline.errors import InputError
from cvl_pipeline.methods.base import METHODS
from cvl_pipeline.methods.one_step import Phases, ReturnRegression
from cvl_pipeline.methods.one_step_model import OneStepModel, model_returns
from cvl_pipeline.methods.world_model import ModelLearning, Prediction
from cvl_pipeline.networks.actor import make_actor
from cvl_pipeline.objectives.training import PolicyExtraction
from cvl_pipeline.testing.finite_mdp import grid_world
from cvl_pipeline.testing.linear_gaussian import linear_gaussian
from cvl_pipeline.training.module import OfflineModule
from tests.methods.toys import check_resumption, make_episodes, method_parameters, policy_value


def _method(steps: int, training: dict[str, Any] | None = None, **settings: Any) -> OneStepModel:
    small = {"members": 2, "elites": 2, "rollouts": 40, "horizon": 5}
    parameters = method_parameters(
        "one_step_model", training={"steps": steps, **(training or {})}, **{**small, **settings}
    )
    return OneStepModel(parameters)


TRAINING = {"batch_size": 128, "validation_interval": 500, "learning_rate": 3e-3}
SETTINGS: dict[str, Any] = {"hidden": (32,), "horizon": 40, "rollouts": 4000, "training": TRAINING}


def test_q_is_that_of_the_behaviour_in_a_continuous_world() -> None:
    world = linear_gaussian(size=3, actions=2, discount=0.9, seed=0)
    log, rewards = world.log_episodes(60, 60, seed=0)
    values = _method(3000, discount=0.9, **SETTINGS).learn(
        EpisodeData.prepare(log, rewards), 0, Phases(None, None)
    )
    fresh, _ = world.log_episodes(10, 60, seed=1)
    q = values.of_transitions(fresh, torch.arange(len(fresh)))[0].numpy()
    exact = world.q(fresh.states().double().numpy(), fresh.actions.double().numpy())
    assert np.corrcoef(q, exact)[0, 1] > 0.9
    assert abs(q.mean() - exact.mean()) < 0.5 * exact.std()


def test_policy_improves_on_cloning_in_a_world_with_terminations() -> None:
    mdp = grid_world(terminal=True)
    data = EpisodeData.prepare(*mdp.log_episodes(150, 40, seed=0))
    rival = _method(3000, discount=mdp.discount, **{**SETTINGS, "rollouts": 20_000})
    values = rival.learn(data, 0, Phases(None, None))
    alive = ~mdp.terminal
    q = values.of_all_actions(torch.eye(mdp.states)).detach().numpy()[alive]
    assert np.corrcoef(q.ravel(), mdp.q()[alive].ravel())[0, 1] > 0.9
    policy, _ = rival.train(data, 0)
    cloning = method_parameters("bc", hidden=(32,), training={**TRAINING, "steps": 400})
    clone, _ = METHODS.create(cloning).train(data, 0)
    assert policy_value(mdp, policy) > policy_value(mdp, clone) + 0.1


class Ending(nn.Module):
    """A model with reward two that ends with a known probability."""

    def __init__(self, goes_on: float) -> None:
        super().__init__()
        self.elites, self.probability = torch.arange(1), goes_on

    def predict(self, states: Tensor, actions: Tensor, noise: Tensor, member: int) -> Prediction:
        ones = torch.ones(len(states))
        return Prediction(states, 2.0 * ones, self.probability * ones, 0.0 * ones)


@pytest.mark.parametrize("goes_on", [1.0, 0.7, 0.0])
def test_returns_count_the_future_after_the_horizon_as_the_rollout_before_it(goes_on: float) -> None:
    log, gamma, horizon = make_episodes().transitions, 0.9, 4
    actor = make_actor(log, make_episodes().normalisation, (4,))
    model: Any = Ending(goes_on)
    states, actions = log.states()[:5], log.actions[:5]
    returns, shares = model_returns(model, actor, states, actions, horizon, gamma, Generator().manual_seed(0))
    total = sum(2.0 * (gamma * goes_on) ** t for t in range(horizon))
    share = 1.0 - (gamma * goes_on) ** horizon
    torch.testing.assert_close(shares, torch.full((5,), share, dtype=torch.float64))
    torch.testing.assert_close(returns, torch.full((5,), (1.0 - gamma) * total / share, dtype=torch.float64))


def test_every_elite_makes_rollouts_however_few_they_are() -> None:
    class Asked(Ending):
        def predict(self, states: Tensor, actions: Tensor, noise: Tensor, member: int) -> Prediction:
            asked.add(member)
            return super().predict(states, actions, noise, member)

    asked: set[int] = set()
    log = make_episodes().transitions
    actor = make_actor(log, make_episodes().normalisation, (4,))
    model: Any = Asked(1.0)
    model.elites = torch.arange(3)
    returns, _ = model_returns(
        model, actor, log.states()[:7], log.actions[:7], 2, 0.9, Generator().manual_seed(0)
    )
    assert asked == {0, 1, 2}
    assert returns.shape == (7,)


@pytest.mark.parametrize(
    ("module", "step"), [(ModelLearning, 30), (PolicyExtraction, 30), (ReturnRegression, 30)]
)
def test_interrupted_training_resumes_to_the_same_policy(
    module: type[OfflineModule], step: int, tmp_path: Path
) -> None:
    method = _method(200, {"validation_interval": 50}, model_share=0.25, clone_share=0.25, value_share=0.75)
    history = check_resumption(
        partial(method.train, make_episodes(), 0), tmp_path, module, step, ModelLearning
    )
    assert history["step"].tolist() == [50, 100, 150, 200]


def test_unfit_episodes_and_settings_are_refused() -> None:
    with pytest.raises(InputError, match="method 'one_step_model' needs rewards"):
        _method(4).train(make_episodes(rewards=False), 0)
    with pytest.raises(ValueError, match=r"model_share 0.6 and clone_share 0.2 leave no step for Q"):
        _method(4, model_share=0.6, clone_share=0.2)
    with pytest.raises(ValueError, match=r"elites is 3, but there are only 2 members"):
        _method(4, elites=3)
