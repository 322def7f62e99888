from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cvl_pipeline.episodes.container import Transitions
from cvl_pipeline.errors import InputError
from cvl_pipeline.objectives import advantages as module
from cvl_pipeline.objectives.advantages import advantages, fitted_value, marginal_actions
from cvl_pipeline.readout.q_function import QFunction
from cvl_pipeline.testing.builders import make_discrete_transitions, make_transitions, policy_parameters
from tests.objectives.toys import DISCOUNT, READOUT, LinearCritic, SignCritic, q_of


@pytest.fixture
def data() -> Transitions:
    return make_transitions([40] * 5, [False] * 5)


def _all(data: Transitions) -> Tensor:
    return torch.arange(len(data))


def _values(q: QFunction, data: Transitions) -> Tensor:
    return q.in_batches(data.states(), data.actions)[0]


def _marginal(q: QFunction, data: Transitions, seed: int = 0, **changes: Any) -> Tensor:
    with torch.no_grad():
        return marginal_actions(q, data, _all(data), _values(q, data), policy_parameters(**changes), seed)


def test_a_value_of_the_state_alone_cancels_exactly_against_marginal_actions(data: Transitions) -> None:
    q = q_of(LinearCritic(2.0, 0.0))
    values = _values(q, data)
    assert values.std() > 0.1
    assert torch.equal(values - _marginal(q, data, baseline_actions=4), torch.zeros_like(values))
    assert torch.equal(advantages(q, data, _all(data), policy_parameters(), 0), torch.zeros(200))


def test_marginal_actions_averages_q_over_logged_actions(data: Transitions) -> None:
    baseline = _marginal(q_of(LinearCritic(1.0, 2.0)), data, baseline_actions=400)
    logits = data.states()[:, None, 0] + 2.0 * data.actions[None, :, 0]
    expected = (logits.sigmoid() / (1.0 - DISCOUNT)).mean(1)
    np.testing.assert_allclose(baseline, expected, atol=0.12)  # the spread of Q over actions is about 0.4
    assert abs(float((baseline - expected).mean())) < 0.01


def test_marginal_actions_is_determined_by_the_seed(data: Transitions) -> None:
    q = q_of(LinearCritic(1.0, 2.0))
    first, again, other = (_marginal(q, data, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_mean_over_discrete_actions_is_exact_and_weighs_them_by_their_frequency() -> None:
    data = make_discrete_transitions([40] * 5, [False] * 5)
    frequency = data.actions.double().mean(0)
    assert frequency[0] > frequency[1] > frequency[2], "the frequencies are to differ"
    baseline = _marginal(q_of(SignCritic()), data, baseline_actions=1)
    place = 2.0 * data.states()[:, 0].double()
    of_actions = torch.stack([place, -place, torch.zeros_like(place)], dim=1).sigmoid() / (1.0 - DISCOUNT)
    np.testing.assert_allclose(baseline, of_actions @ frequency, rtol=1e-5)
    # Nothing is drawn.
    assert torch.equal(_marginal(q_of(SignCritic()), data, seed=1, baseline_actions=7), baseline)


def test_advantages_of_discrete_actions_are_those_of_the_better_ones() -> None:
    data = make_discrete_transitions([40] * 5, [False] * 5)
    result = advantages(q_of(SignCritic()), data, _all(data), policy_parameters(), 0)
    chosen, best = data.actions.argmax(1), SignCritic.best(data.states())
    worst = 1 - best
    assert float(result.std(unbiased=False)) == pytest.approx(1.0, rel=1e-5)
    assert (result[chosen == best] > 0.0).all()
    assert (result[chosen == worst] < 0.0).all()


@pytest.mark.parametrize("baseline", ["marginal_actions", "fitted_value"])
def test_advantages_have_unit_standard_deviation_and_rank_actions(data: Transitions, baseline: str) -> None:
    q = q_of(LinearCritic(1.5, 1.0))
    parameters = policy_parameters(
        baseline=baseline, baseline_actions=64, value_steps=300, training={"learning_rate": 3e-3}
    )
    result = advantages(q, data, _all(data), parameters, 0)
    assert result.shape == (200,)
    assert not result.requires_grad
    assert float(result.std(unbiased=False)) == pytest.approx(1.0, rel=1e-5)
    correlation = np.corrcoef(result, data.actions[:, 0])[0, 1]
    # Q itself says more about the state than about the action: the baseline turns that round.
    assert correlation > 0.8 > np.corrcoef(_values(q, data), data.actions[:, 0])[0, 1]


def test_advantages_do_not_depend_on_the_scale_of_the_rewards(data: Transitions) -> None:
    critic = LinearCritic(1.0, 2.0)
    scaled = QFunction(critic, replace(READOUT, rewards=1000.0 * READOUT.rewards))
    plain = advantages(q_of(critic), data, _all(data), policy_parameters(), 0)
    np.testing.assert_allclose(advantages(scaled, data, _all(data), policy_parameters(), 0), plain, atol=1e-3)


def test_a_fitted_value_is_the_mean_of_q_given_the_state(data: Transitions) -> None:
    q = q_of(LinearCritic(1.5, 1.0))
    values = _values(q, data)
    parameters = policy_parameters(value_steps=400, hidden=(32,), training={"learning_rate": 3e-3})
    fitted = fitted_value(q, data, _all(data), values, parameters, 0)
    assert fitted.shape == values.shape
    state_only = (1.5 * data.states()[:, 0]).sigmoid() / (1.0 - DISCOUNT)
    assert np.corrcoef(fitted.detach(), state_only)[0, 1] > 0.95
    assert float(fitted.detach().mean()) == pytest.approx(float(values.mean()), abs=0.05)


def test_fitting_leaves_the_global_generator_alone(data: Transitions) -> None:
    q = q_of(LinearCritic(1.0, 1.0))
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    advantages(q, data, _all(data), policy_parameters(baseline="fitted_value"), 0)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_an_unknown_baseline_is_refused_with_the_known_ones(data: Transitions) -> None:
    parameters = policy_parameters().model_copy(update={"baseline": "mean"})
    with pytest.raises(InputError, match="unknown baseline 'mean': known: fitted_value, marginal_actions"):
        advantages(q_of(LinearCritic(1.0, 1.0)), data, _all(data), parameters, 0)


def test_every_baseline_that_the_parameters_allow_is_there() -> None:
    for name in module.BASELINES:
        assert policy_parameters(baseline=name).baseline == name
