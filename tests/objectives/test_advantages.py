from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cvl_pipeline.episodes.container import Transitions
from cvl_pipeline.errors import InputError
from cvl_pipeline.objectives.advantages import FittedValue, MarginalActions, StateValue, advantages
from cvl_pipeline.objectives.parameters import (
    STATE_VALUES,
    FittedValueParameters,
    MarginalActionsParameters,
    StateValueParameters,
)
from cvl_pipeline.readout.action_values import ActionValues
from cvl_pipeline.readout.q_function import QFunction
from cvl_pipeline.testing.builders import make_discrete_transitions, make_transitions
from tests.objectives.toys import DISCOUNT, READOUT, LinearCritic, SignCritic, network_q, q_of


@pytest.fixture
def data() -> Transitions:
    return make_transitions([40] * 5, [False] * 5)


def _all(data: Transitions) -> Tensor:
    return torch.arange(len(data))


def _values(q: QFunction, data: Transitions) -> Tensor:
    return q.in_batches(data.states(), data.actions)[0]


def _marginal(q: QFunction, data: Transitions, seed: int = 0, **changes: Any) -> Tensor:
    state_value = MarginalActions(MarginalActionsParameters(**changes))
    with torch.no_grad():
        return state_value.values(q, data, _all(data), _values(q, data), seed)


def _advantages(q: QFunction, data: Transitions, **settings: Any) -> Tensor:
    parameters = STATE_VALUES.validate(settings)
    assert isinstance(parameters, StateValueParameters)
    return advantages(q, data, _all(data), parameters, 0)


def test_value_that_depends_on_the_state_alone_cancels_exactly(data: Transitions) -> None:
    q = q_of(LinearCritic(2.0, 0.0))
    values = _values(q, data)
    assert values.std() > 0.1
    assert torch.equal(values - _marginal(q, data, actions=4), torch.zeros_like(values))
    assert torch.equal(_advantages(q, data), torch.zeros(200))


def test_marginal_actions_is_the_mean_of_q_over_logged_actions(data: Transitions) -> None:
    baseline = _marginal(q_of(LinearCritic(1.0, 2.0)), data, actions=400)
    logits = data.states()[:, None, 0] + 2.0 * data.actions[None, :, 0]
    expected = (logits.sigmoid() / (1.0 - DISCOUNT)).mean(1)
    np.testing.assert_allclose(baseline, expected, atol=0.12)  # the spread of Q over actions is about 0.4
    assert abs(float((baseline - expected).mean())) < 0.01


def test_marginal_actions_is_determined_by_the_seed(data: Transitions) -> None:
    q = q_of(LinearCritic(1.0, 2.0))
    first, again, other = (_marginal(q, data, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_mean_over_discrete_actions_is_exact_and_weighted_by_frequency() -> None:
    data = make_discrete_transitions([40] * 5, [False] * 5)
    frequency = data.actions.double().mean(0)
    assert frequency[0] > frequency[1] > frequency[2], "the frequencies must differ"
    baseline = _marginal(q_of(SignCritic()), data, actions=1)
    place = 2.0 * data.states()[:, 0].double()
    of_actions = torch.stack([place, -place, torch.zeros_like(place)], dim=1).sigmoid() / (1.0 - DISCOUNT)
    np.testing.assert_allclose(baseline, of_actions @ frequency, rtol=1e-5)
    # No action is sampled.
    assert torch.equal(_marginal(q_of(SignCritic()), data, seed=1, actions=7), baseline)


def test_better_discrete_actions_have_positive_advantages() -> None:
    data = make_discrete_transitions([40] * 5, [False] * 5)
    result = _advantages(q_of(SignCritic()), data)
    chosen, best = data.actions.argmax(1), SignCritic.best(data.states())
    worst = 1 - best
    assert float(result.std(unbiased=False)) == pytest.approx(1.0, rel=1e-5)
    assert (result[chosen == best] > 0.0).all()
    assert (result[chosen == worst] < 0.0).all()


@pytest.mark.parametrize("reward", [0.0, 1.0])
@pytest.mark.parametrize("transitions", [1, 50])
def test_a_value_fitted_to_equal_values_is_their_mean(
    data: Transitions, reward: float, transitions: int
) -> None:
    equal = replace(READOUT, rewards=torch.full_like(READOUT.rewards, reward))
    q = QFunction(LinearCritic(1.0, 2.0), equal)
    found = advantages(q, data, torch.arange(transitions), FittedValueParameters(steps=20), 0)
    assert float(found.abs().max()) < 0.05  # rounding


def test_a_value_is_fitted_to_one_transition(data: Transitions) -> None:
    found = advantages(q_of(LinearCritic(1.0, 2.0)), data, torch.arange(1), FittedValueParameters(steps=5), 0)
    assert torch.equal(found, torch.zeros(1))


@pytest.mark.parametrize(
    "settings",
    [{"name": "marginal_actions", "actions": 64}, {"name": "fitted_value", "steps": 300, "hidden": (32,)}],
)
def test_advantages_have_unit_standard_deviation_and_rank_actions(
    data: Transitions, settings: dict[str, Any]
) -> None:
    q = q_of(LinearCritic(1.5, 1.0))
    result = _advantages(q, data, **settings)
    assert result.shape == (200,)
    assert not result.requires_grad
    assert float(result.std(unbiased=False)) == pytest.approx(1.0, rel=1e-5)
    correlation = np.corrcoef(result, data.actions[:, 0])[0, 1]
    # Q itself depends more on the state than on the action; its advantage does not.
    assert correlation > 0.8 > np.corrcoef(_values(q, data), data.actions[:, 0])[0, 1]


def test_values_that_are_no_numbers_are_named(data: Transitions) -> None:
    broken = replace(READOUT, rewards=torch.full_like(READOUT.rewards, torch.nan))
    with pytest.raises(InputError, match="Q of 200 of 200 logged actions is not a finite number"):
        _advantages(QFunction(LinearCritic(1.0, 2.0), broken), data)


def test_rounding_of_equal_values_is_no_advantage(data: Transitions) -> None:
    """As with a reward of -1 for every step, and no termination."""
    constant = replace(READOUT, rewards=torch.full_like(READOUT.rewards, -1.0))
    noise = _advantages(QFunction(LinearCritic(1.0, 2.0), constant), data)
    assert float(noise.std()) < 0.3


def test_advantages_do_not_depend_on_the_scale_of_the_rewards(data: Transitions) -> None:
    critic = LinearCritic(1.0, 2.0)
    scaled = QFunction(critic, replace(READOUT, rewards=1000.0 * READOUT.rewards))
    np.testing.assert_allclose(_advantages(scaled, data), _advantages(q_of(critic), data), atol=1e-3)


def test_fitted_value_is_the_mean_of_q_given_the_state(data: Transitions) -> None:
    q = q_of(LinearCritic(1.5, 1.0))
    values = _values(q, data)
    state_value = FittedValue(FittedValueParameters(steps=400, hidden=(32,), learning_rate=3e-3))
    fitted = state_value.values(q, data, _all(data), values, 0)
    assert fitted.shape == values.shape
    state_only = (1.5 * data.states()[:, 0]).sigmoid() / (1.0 - DISCOUNT)
    assert np.corrcoef(fitted.detach(), state_only)[0, 1] > 0.95
    assert float(fitted.detach().mean()) == pytest.approx(float(values.mean()), abs=0.05)


def test_fitted_value_is_determined_by_the_seed_and_leaves_the_global_generator_alone(
    data: Transitions,
) -> None:
    q = q_of(LinearCritic(1.0, 1.0))
    parameters = FittedValueParameters(steps=20)
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    first, again, other = (advantages(q, data, _all(data), parameters, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_fitted_value_encodes_states_in_pieces(data: Transitions, monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory must not grow with the log."""
    rows = []

    class Counted(QFunction):
        def encode(self, observations: Tensor) -> Tensor:
            rows.append(len(observations))
            return super().encode(observations)

    q, parameters = q_of(LinearCritic(1.5, 1.0)), FittedValueParameters(steps=3, batch_size=16)
    values = _values(q, data)
    whole = FittedValue(parameters).values(q, data, _all(data), values, 0)
    monkeypatch.setattr("cvl_pipeline.objectives.advantages.CHUNK", 32)
    counted = Counted(q.critic, q.readout)
    fitted = FittedValue(parameters).values(counted, data, _all(data), values, 0)
    assert max(rows) == 32
    assert not fitted.requires_grad
    torch.testing.assert_close(fitted, whole)


class Half(StateValue):
    """V(s) of one's own: half of the logged action's Q."""

    def values(
        self, q: ActionValues, transitions: Transitions, index: Tensor, logged: Tensor, seed: int
    ) -> Tensor:
        return 0.5 * logged


def test_state_value_of_ones_own_is_used(data: Transitions) -> None:
    q = q_of(LinearCritic(1.0, 2.0))
    values = _values(q, data)
    expected = values / values.std(unbiased=False)
    np.testing.assert_allclose(_advantages(q, data, name=f"{__name__}:Half"), expected, rtol=1e-5)


def test_unknown_state_value_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="unknown state value 'mean': known: marginal_actions, fitted_value"):
        STATE_VALUES["mean"]
    with pytest.raises(InputError, match=r"is not a subclass of .*StateValue"):
        STATE_VALUES["fractions:Fraction"]


@pytest.mark.parametrize("name", STATE_VALUES.names)
def test_every_state_value_keeps_its_parameters(name: str) -> None:
    parameters = STATE_VALUES.validate(name)
    state_value = STATE_VALUES.create(parameters)
    assert isinstance(parameters, state_value.Parameters)
    assert state_value.parameters is parameters


def test_a_fitted_value_needs_the_log_beside_the_critic() -> None:
    transitions = make_transitions([5] * 6, [False] * 6)
    method = FittedValue(FittedValueParameters())
    elsewhere = torch.empty(10, device="meta")
    with pytest.raises(
        InputError, match=r"'fitted_value' needs the whole log on the GPU.*'marginal_actions'"
    ):
        method.values(network_q(transitions), transitions, torch.arange(10), elsewhere, 0)
