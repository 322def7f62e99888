"""What one-step methods share: Q first, then CVL's extraction, on problems with exact values."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor

from cvl_pipeline.episodes.container import Rewards
from cvl_pipeline.episodes.data import EpisodeData
from cvl_pipeline.errors import InputError
from cvl_pipeline.methods import one_step
from cvl_pipeline.methods.base import METHODS
from cvl_pipeline.methods.off_policy import Ensemble
from cvl_pipeline.methods.one_step import (
    LearnedValues,
    OneStep,
    Phases,
    ReturnRegression,
    Unit,
)
from cvl_pipeline.methods.sarsa import SarsaLearning
from cvl_pipeline.networks.actor import CategoricalActor, GaussianActor
from cvl_pipeline.objectives.training import PolicyExtraction, train_policy
from cvl_pipeline.testing.builders import make_rewards, make_transitions, names_in, policy_parameters
from cvl_pipeline.testing.finite_mdp import grid_world
from cvl_pipeline.training.keeping import kept_checkpoints
from cvl_pipeline.training.module import OfflineModule
from tests.methods.toys import check_resumption, make_episodes, make_images, method_parameters, policy_value

NAMES = ["mc_awr", "sarsa"]


def method(name: str, steps: int = 12, **settings: Any) -> Any:
    training = settings.pop("training", {})
    made = METHODS.create(method_parameters(name, training={"steps": steps, **training}, **settings))
    assert isinstance(made, OneStep)
    return made


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("terminal", [False, True])
def test_q_is_that_of_the_behaviour_and_the_policy_improves_on_cloning(name: str, terminal: bool) -> None:
    mdp = grid_world(terminal=terminal)
    data = EpisodeData.prepare(*mdp.log_episodes(150, 40, seed=0))
    training = {"batch_size": 128, "validation_interval": 800, "learning_rate": 3e-3}
    settings: dict[str, Any] = {"hidden": (32,), "training": training}
    rival = method(name, 800, discount=mdp.discount, **settings)
    values = rival.learn(data, 0, Phases(None, None))
    alive = ~mdp.terminal
    q = values.of_all_actions(torch.eye(mdp.states)).detach().numpy()[alive]
    exact = mdp.q()[alive]
    assert np.corrcoef(q.ravel(), exact.ravel())[0, 1] > 0.9
    assert q.mean() == pytest.approx(exact.mean(), rel=0.05)
    policy, _ = rival.train(data, 0)
    clone, _ = METHODS.create(
        method_parameters("bc", hidden=(32,), training={**training, "steps": 300})
    ).train(data, 0)
    assert policy_value(mdp, policy) > policy_value(mdp, clone) + 0.02 * abs(exact.mean())


@pytest.mark.parametrize("name", NAMES)
def test_values_and_policy_have_the_weight_decay_of_cvl_unless_it_is_set(name: str) -> None:
    data = make_episodes()

    def weights(decay: float | None) -> tuple[Tensor, Tensor]:
        rival = method(name, training={"weight_decay": decay})
        learned = rival.learn(data, 0, Phases(None, None)).ensemble.state_dict()["networks.0.0.weight"]
        return learned, rival.train(data, 0)[0].state_dict()["network.0.weight"]

    default, one, none = weights(None), weights(1.0), weights(0.0)
    assert all(map(torch.equal, default, one))
    assert not any(map(torch.equal, default, none))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("discrete", [False, True])
def test_history_joins_the_phases(name: str, discrete: bool) -> None:
    data = make_episodes(discrete)
    policy, history = method(name, 16, value_share=0.5, training={"validation_interval": 4}).train(data, 0)
    assert isinstance(policy, CategoricalActor if discrete else GaussianActor)
    assert not policy.training
    assert history["step"].tolist() == [4, 8, 12, 16]
    assert history["train/q_loss"].notna().tolist() == [True, True, False, False]
    assert history["train/loss"].notna().tolist() == [False, False, True, True]
    assert history["validation/action_error"].notna().tolist() == [False, False, True, True]
    assert history["validation/q_return_correlation"].abs().max() <= 1.0 + 1e-6


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("phase", ["q", "policy"])
def test_interrupted_training_resumes_in_its_phase_to_the_same_policy(
    name: str, phase: str, tmp_path: Path
) -> None:
    rival = method(name, 120, value_share=0.5, training={"validation_interval": 60})
    q: type[OfflineModule] = {"mc_awr": ReturnRegression, "sarsa": SarsaLearning}[name]
    train = partial(rival.train, make_episodes(), 0)
    check_resumption(train, tmp_path, q if phase == "q" else PolicyExtraction, 40, q)
    assert names_in(tmp_path / "c") in ([], ["policy"])


def test_a_phase_whose_end_could_not_be_written_resumes_and_nothing_goes_before_the_policy_is_stored(
    tmp_path: Path,
) -> None:
    train = partial(method("mc_awr", 120, value_share=0.5).train, make_episodes(), 0, checkpoints=tmp_path)
    with (
        patch.object(one_step, "write_checkpoint", side_effect=OSError("No space left on device")),
        pytest.raises(OSError, match="No space"),
    ):
        train()
    with patch.object(ReturnRegression, "training_loss", side_effect=RuntimeError("a step is repeated")):
        with kept_checkpoints():
            policy = train().policy
        again = train().policy
    torch.testing.assert_close(again.state_dict(), policy.state_dict(), rtol=0, atol=0)
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.parametrize("name", NAMES)
def test_neither_scale_nor_offset_of_the_rewards_matters_and_held_out_ones_are_not_learnt(name: str) -> None:
    data = make_episodes()
    assert data.rewards is not None
    held_out = data.transitions.transition_index(data.split.validation)
    changed = 100.0 * data.rewards.rewards
    changed[held_out] = 7.0
    other = data.with_rewards(Rewards(changed, data.rewards.successes))
    one, two = (method(name, 40).train(part, 0).policy.state_dict() for part in (data, other))
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("reward", [0.0, -5.0])
def test_equal_rewards_without_an_end_give_equal_values_and_plain_cloning(name: str, reward: float) -> None:
    log = make_transitions([8] * 10, [False] * 10)
    labels = make_rewards(log)
    data = EpisodeData.prepare(log, replace(labels, rewards=torch.full_like(labels.rewards, reward)))
    history = method(name, 40).train(data, 0).history
    assert float(history["train/weight_mean"].iloc[-1]) == pytest.approx(1.0, abs=1e-4)
    assert float(history["train/weight_max"].iloc[-1]) == pytest.approx(1.0, abs=1e-4)
    assert float(history["validation/q_gain"].iloc[-1]) == 0.0


def test_learned_values_are_action_values() -> None:
    data = make_episodes()
    torch.manual_seed(0)
    values = LearnedValues(Ensemble(data.normalisation, (8,)), Unit(2.0, 3.0, 0.9))
    states, actions = data.transitions.states(), data.transitions.actions
    q = values(states, actions)
    torch.testing.assert_close(q, 10.0 * (2.0 + 3.0 * values.ensemble(states, actions).mean(0)))
    index = torch.arange(len(actions))
    got, size = values.of_transitions(data.transitions, index)
    torch.testing.assert_close(got, q.detach())
    assert size.isnan().all()
    several = torch.stack([actions, actions.flip(0)], 1)
    torch.testing.assert_close(
        values.of_actions(states, several), torch.stack([q, values(states, actions.flip(0))], 1)
    )
    copied = values.frozen("cpu")
    assert not any(p.requires_grad for p in copied.ensemble.parameters())
    assert all(p.requires_grad for p in values.ensemble.parameters())
    torch.testing.assert_close(copied(states, actions), q.detach())


@pytest.mark.parametrize(
    ("objective", "changes"),
    [
        ("awr", {"state_value": {"name": "marginal_actions"}}),
        ("awr", {"state_value": {"name": "fitted_value", "steps": 3}}),
        ("ddpg_bc", {}),
    ],
)
def test_objectives_take_learned_values(objective: str, changes: dict[str, Any]) -> None:
    """With exact advantages for Q, the policy's favourite actions gain most of what the best ones do."""
    mdp = grid_world()
    q = mdp.q()
    advantage = q - (mdp.policy * q).sum(1, keepdims=True)

    class Exact(Ensemble):
        """Advantages of the behaviour, linear between the actions."""

        def forward(self, observations: Tensor, actions: Tensor, members: int | None = None) -> Tensor:
            table = torch.from_numpy(advantage).float()
            return torch.einsum("...s,sa,...a->...", observations, table, actions).unsqueeze(0)

    data = EpisodeData.prepare(*mdp.log_episodes(60, 40, seed=0))
    values = LearnedValues(Exact(data.normalisation, (8,)), Unit(0.0, 1.0, 0.9))
    training = {"steps": 200, "batch_size": 128, "validation_interval": 200, "learning_rate": 3e-3}
    parameters = policy_parameters(objective=objective, hidden=(32,), training=training, **changes)
    policy, _ = train_policy(data, parameters, 0, values=values)
    with torch.no_grad():
        favourites = policy(torch.eye(mdp.states)).argmax(1)
    gains = advantage[np.arange(mdp.states), favourites]
    common = advantage[np.arange(mdp.states), mdp.policy.argmax(1)]
    assert gains.mean() > 0.5 * advantage.max(1).mean() > common.mean()


@pytest.mark.parametrize("objective", ["best_of_n", "published"])
def test_objectives_that_need_a_critic_refuse_learned_values(objective: str) -> None:
    data = make_episodes()
    values = LearnedValues(Ensemble(data.normalisation, (8,)), Unit(0.0, 1.0, 0.9))
    with pytest.raises(InputError, match=f"'{objective}' needs CVL's critic"):
        train_policy(data, policy_parameters(objective=objective), 0, values=values)


@pytest.mark.parametrize("name", NAMES)
def test_unfit_episodes_are_refused(name: str) -> None:
    data = make_episodes()
    with pytest.raises(InputError, match=f"method '{name}' needs rewards"):
        method(name).train(data.without_rewards(), 0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("packed", [True, False])
def test_methods_learn_from_images(name: str, packed: bool) -> None:
    data = make_images(packed)
    policy, _ = method(name, 4, training={"batch_size": 8, "validation_interval": 2}).train(data, 0)
    actions = policy(data.transitions.states(torch.arange(3)))
    assert actions.shape == (3, 2)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("name", ["mopo", "one_step_model"])
def test_methods_that_predict_observations_refuse_images(name: str, packed: bool) -> None:
    with pytest.raises(InputError, match=f"method '{name}' takes vectors: images and several parts are not"):
        METHODS.create(method_parameters(name)).train(make_images(packed), 0)


@pytest.mark.parametrize(("field", "value"), [("value_share", 1.0), ("discount", 1.0), ("beta", -1.0)])
def test_values_out_of_range_are_refused(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field):
        METHODS.validate({"method": "mc_awr", field: value})
