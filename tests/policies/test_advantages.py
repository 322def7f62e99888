from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from cvl_pipeline.errors import InputError
from cvl_pipeline.networks.critic import ContrastiveCritic, CriticShape
from cvl_pipeline.policies import advantages as module
from cvl_pipeline.policies.advantages import advantages, fitted_value, marginal_actions
from cvl_pipeline.readout.exact import Readout, state_action_values
from cvl_pipeline.trajectories.container import Transitions
from tests.builders import make_transitions, policy_parameters

DISCOUNT = 0.5


class LogitCritic(ContrastiveCritic):
    """Two references worth 1 and 0: Q = 2 sigmoid(g(s) + h(a)), with g and h given."""

    def __init__(self, state_weight: float, action_weight: float) -> None:
        super().__init__(CriticShape(3, 2, (), 2, "raw", 1.0, False, 0.9))
        self.weights = (state_weight, action_weight)

    def phi(self, observations: Tensor, actions: Tensor) -> Tensor:
        logit = self.weights[0] * observations[:, 0] + self.weights[1] * actions[:, 0]
        return torch.stack([logit, torch.zeros_like(logit)], dim=-1)


READOUT = Readout(torch.eye(2), torch.tensor([1.0, 0.0]), torch.tensor(1.0), torch.tensor(DISCOUNT))


@pytest.fixture
def data() -> Transitions:
    return make_transitions([40] * 5, [False] * 5)


def _values(critic: ContrastiveCritic, data: Transitions) -> Tensor:
    return state_action_values(critic, READOUT, data.states(), data.actions)[0]


def test_a_value_of_the_state_alone_cancels_exactly_against_marginal_actions(data: Transitions) -> None:
    critic = LogitCritic(2.0, 0.0)
    values = _values(critic, data)
    assert values.std() > 0.1
    baseline = marginal_actions(critic, READOUT, data, values, policy_parameters(baseline_actions=4), 0)
    assert torch.equal(values - baseline, torch.zeros_like(values))
    assert torch.equal(advantages(critic, READOUT, data, policy_parameters(), 0), torch.zeros(200))


def test_marginal_actions_averages_q_over_logged_actions(data: Transitions) -> None:
    critic = LogitCritic(1.0, 2.0)
    values = _values(critic, data)
    baseline = marginal_actions(critic, READOUT, data, values, policy_parameters(baseline_actions=400), 0)
    logits = data.states()[:, None, 0] + 2.0 * data.actions[None, :, 0]
    expected = (logits.sigmoid() / (1.0 - DISCOUNT)).mean(1)
    np.testing.assert_allclose(baseline, expected, atol=0.12)  # the spread of Q over actions is about 0.4
    assert abs(float((baseline - expected).mean())) < 0.01


def test_marginal_actions_is_determined_by_the_seed(data: Transitions) -> None:
    critic = LogitCritic(1.0, 2.0)
    values = _values(critic, data)
    first, again, other = (
        marginal_actions(critic, READOUT, data, values, policy_parameters(), seed) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("baseline", ["marginal_actions", "fitted_value"])
def test_advantages_have_unit_standard_deviation_and_rank_actions(data: Transitions, baseline: str) -> None:
    critic = LogitCritic(1.5, 1.0)
    parameters = policy_parameters(
        baseline=baseline, baseline_actions=64, value_steps=300, training={"learning_rate": 3e-3}
    )
    result = advantages(critic, READOUT, data, parameters, 0)
    assert result.shape == (200,)
    assert float(result.std(unbiased=False)) == pytest.approx(1.0, rel=1e-5)
    correlation = np.corrcoef(result, data.actions[:, 0])[0, 1]
    # Q itself says more about the state than about the action: the baseline turns that round.
    assert correlation > 0.8 > np.corrcoef(_values(critic, data), data.actions[:, 0])[0, 1]


def test_advantages_do_not_depend_on_the_scale_of_the_rewards(data: Transitions) -> None:
    critic = LogitCritic(1.0, 2.0)
    scaled = replace(READOUT, rewards=1000.0 * READOUT.rewards)
    plain = advantages(critic, READOUT, data, policy_parameters(), 0)
    np.testing.assert_allclose(advantages(critic, scaled, data, policy_parameters(), 0), plain, atol=1e-3)


def test_a_fitted_value_is_the_mean_of_q_given_the_state(data: Transitions) -> None:
    critic = LogitCritic(1.5, 1.0)
    values = _values(critic, data)
    parameters = policy_parameters(value_steps=400, hidden=(32,), training={"learning_rate": 3e-3})
    fitted = fitted_value(critic, READOUT, data, values, parameters, 0)
    assert fitted.shape == values.shape
    state_only = (1.5 * data.states()[:, 0]).sigmoid() / (1.0 - DISCOUNT)
    assert np.corrcoef(fitted.detach(), state_only)[0, 1] > 0.95
    assert float(fitted.detach().mean()) == pytest.approx(float(values.mean()), abs=0.05)


def test_fitting_leaves_the_global_generator_alone(data: Transitions) -> None:
    critic = LogitCritic(1.0, 1.0)
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    advantages(critic, READOUT, data, policy_parameters(baseline="fitted_value"), 0)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_an_unknown_baseline_is_refused_with_the_known_ones(data: Transitions) -> None:
    parameters = policy_parameters().model_copy(update={"baseline": "mean"})
    with pytest.raises(InputError, match="unknown baseline 'mean': known: fitted_value, marginal_actions"):
        advantages(LogitCritic(1.0, 1.0), READOUT, data, parameters, 0)


def test_every_baseline_that_the_parameters_allow_is_there() -> None:
    for name in module.BASELINES:
        assert policy_parameters(baseline=name).baseline == name
