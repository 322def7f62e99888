from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cvl_pipeline.episodes.container import Transitions
from cvl_pipeline.objectives.advantages import advantages, rarity, steadiness, whole_episodes
from cvl_pipeline.objectives.awr import AdvantageWeightedRegression
from cvl_pipeline.objectives.parameters import FittedValueParameters
from cvl_pipeline.objectives.training import PolicyExtraction
from cvl_pipeline.testing.builders import policy_parameters
from tests.objectives.toys import (
    TRAIN,
    episodes,
    known_q,
    loss_of,
    make_module,
    training_transitions,
)


def with_advantages(module: PolicyExtraction, values: Tensor) -> PolicyExtraction:
    """Replace the advantages of the training transitions."""
    assert isinstance(module.objective, AdvantageWeightedRegression)
    assert module.objective._weights.shape == values.shape
    module.objective._weights = module.objective._weights_of(values)
    return module


def log_probs(module: PolicyExtraction, transitions: Transitions) -> Tensor:
    return module.actor.log_prob(*training_transitions(transitions)).detach().double()


def test_awr_without_beta_is_cloning() -> None:
    transitions = episodes()
    module = with_advantages(make_module(transitions, beta=0.0), torch.randn(200))
    loss, metrics = loss_of(module)
    assert loss == pytest.approx(-float(log_probs(module, transitions).mean()), rel=1e-6)
    assert float(metrics["weight_mean"]) == float(metrics["weight_max"]) == 1.0


@pytest.mark.parametrize("discrete", [False, True])
def test_awr_weighs_by_the_exponential_of_the_advantage_up_to_a_limit(discrete: bool) -> None:
    transitions = episodes(discrete)
    advantage = torch.linspace(-3.0, 3.0, 200)
    module = with_advantages(make_module(transitions, beta=2.0, max_weight=5.0), advantage)
    loss, metrics = loss_of(module)
    weights = np.minimum(np.exp(2.0 * advantage.double().numpy()), 5.0)
    assert loss == pytest.approx(-(weights * log_probs(module, transitions).numpy()).mean(), rel=1e-5)
    assert float(metrics["weight_max"]) == pytest.approx(5.0)
    assert float(metrics["weight_mean"]) == pytest.approx(weights.mean(), rel=1e-5)


@pytest.mark.parametrize(
    "state_value", [{"name": "marginal_actions"}, {"name": "fitted_value", "steps": 20, "hidden": (8,)}]
)
def test_awr_uses_the_advantages_of_the_training_episodes(state_value: dict[str, Any]) -> None:
    transitions = episodes()
    module = make_module(transitions, beta=1.0, episode_weight=0.0, state_value=state_value)
    train = transitions.transition_index(torch.arange(TRAIN))
    parameters = policy_parameters(state_value=state_value)
    assert isinstance(parameters, AdvantageWeightedRegression.Parameters)
    advantage = advantages(known_q(transitions), transitions, train, parameters.state_value, 0)
    positions = torch.randint(200, (16,), generator=torch.Generator().manual_seed(8))
    loss, _ = loss_of(module, module.draw(1, torch.Generator().manual_seed(8))[0])
    expected = -(advantage.exp().clamp(max=100.0) * log_probs(module, transitions))[positions].mean()
    assert loss == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("k", [0.0, 0.5, 1.0])
def test_awr_weighs_episodes_as_wholes_up_to_a_limit(monkeypatch: pytest.MonkeyPatch, k: float) -> None:
    shares, means = torch.linspace(0.0, 1.0, 200), torch.linspace(-1.0, 2.0, 200)
    monkeypatch.setattr(
        "cvl_pipeline.objectives.advantages.whole_episodes", lambda values, ids: (shares, means)
    )
    transitions = episodes()
    module = make_module(transitions, beta=2.0, episode_weight=k, max_weight=5.0)
    parameters = policy_parameters()
    assert isinstance(parameters, AdvantageWeightedRegression.Parameters)
    train = transitions.transition_index(torch.arange(TRAIN))
    own = advantages(known_q(transitions), transitions, train, parameters.state_value, 0).double()
    c, mean = k * shares.double(), means.double()
    weights = (2.0 * ((1.0 - c) * own + c * mean)).exp().clamp(max=5.0) * (2.0 * c * mean).exp().clamp(
        max=5.0
    )
    loss, metrics = loss_of(module)
    assert loss == pytest.approx(-float((weights * log_probs(module, transitions)).mean()), rel=1e-4)
    assert float(metrics["weight_max"]) == pytest.approx(float(weights.max()), rel=1e-5)


def test_an_episode_counts_by_its_steadiness_and_rarity() -> None:
    ids = torch.tensor([0] * 4 + [3] * 8 + [4] * 20 + [5] * 3)
    lucky, operator = [9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0, -1.0], [8.0] * 9 + [-2.0] + [8.0] * 10
    values = torch.tensor([0.1, -0.1, 0.1, 0.1, *lucky, *operator, 1.0, 1.0, 1.0])
    means = np.array([0.05, 7.75, 7.5, 1.0])
    # Quarters of the operator have 5, 5, 5 and 5 steps, and one step of the second is bad: 0.8 is not steady enough.
    shares, found = whole_episodes(values, ids)
    assert shares.tolist() == [0.0] * len(ids)
    assert found[[0, 4, 12, 32]].tolist() == pytest.approx(means.tolist())
    values[21] = 8.0
    values[9] = 9.0  # the quarters of the other have two steps each: the fourth still has one bad
    means[2] = 8.0
    squares = (means - means.mean()) ** 2
    assert squares[2] / squares.sum() < 0.7, "two good ones of four are not rare"
    assert whole_episodes(values, ids)[0].tolist() == [0.0] * len(ids)


def test_the_worst_quarter_of_an_episode_says_how_steady_it_is() -> None:
    ids = torch.tensor([0] * 40 + [1] * 10 + [2] * 3)
    values = torch.ones(len(ids))
    values[[12, 35]] = -1.0  # in episode 0, the second and the fourth quarter have nine of ten
    values[[41, 42]] = 0.0  # in episode 1, the first quarter has one of three
    counts = torch.tensor([40, 10, 3])
    assert steadiness(values, ids, counts).tolist() == pytest.approx([0.5, 0.0, 0.0])


@pytest.mark.parametrize("steady", [True, False])
def test_a_rare_operator_counts_and_a_lucky_episode_does_not(steady: bool) -> None:
    """One of 40 episodes stands out by the same mean: in every step, or in half of its steps."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.arange(40).repeat_interleave(20)
    values = 0.1 * torch.randn(800, generator=generator)
    values[:20] += 5.0
    if not steady:
        values[:20] = torch.tensor([10.0, -0.1] * 10)
    means = values.reshape(40, 20).double().mean(1)
    shares, found = (part.reshape(40, 20) for part in whole_episodes(values, ids))
    expected = float(rarity(means)) if steady else 0.0
    torch.testing.assert_close(shares[0], torch.full((20,), expected))
    torch.testing.assert_close(found[:, 0].double(), means)
    assert (expected > 0.9) is steady
    assert shares[1:].max() == 0.0


@pytest.mark.parametrize("spread", ["uniform", "normal", "two kinds", "few bad"])
def test_episodes_do_not_count_where_operators_of_every_quality_are_in_the_log(spread: str) -> None:
    generator = torch.Generator().manual_seed(0)
    means = {
        "uniform": torch.linspace(-1.0, 1.0, 400),
        "normal": torch.randn(400, generator=generator),
        "two kinds": (torch.arange(400) < 200).float(),
        "few bad": -4.0 * (torch.arange(400) < 20).float(),
    }[spread]
    ids = torch.arange(400).repeat_interleave(50)
    values = means[ids] + 0.5 * torch.randn(len(ids), generator=generator)
    assert whole_episodes(values, ids)[0].tolist() == [0.0] * len(ids)


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=100), st.floats(-10.0, 10.0), st.floats(1e-2, 1e2))
def test_rarity_is_a_share_that_knows_no_unit(means: list[float], shift: float, scale: float) -> None:
    own = torch.tensor(means, dtype=torch.float64)
    share = float(rarity(own))
    assert 0.0 <= share <= 1.0 + 1e-9
    if float(own.std(unbiased=False)) > 1e-3:
        assert float(rarity(scale * own + shift)) == pytest.approx(share, abs=1e-6)


def test_rarity_of_one_good_episode_among_equals_is_that_of_its_share() -> None:
    """One of N equal episodes is off by d: its share of the squared deviations is (N - 1) / N."""
    means = torch.zeros(20, dtype=torch.float64)
    means[3] = 5.0
    assert float(rarity(means)) == pytest.approx((0.95 - 0.7) / 0.3)
    assert float(rarity(-means)) == 0.0


def _weights(own: Tensor, ids: Tensor, k: float) -> Tensor:
    defaults = AdvantageWeightedRegression.Parameters()
    shares, means = whole_episodes(own, ids)
    factors = (1.0 - k * shares) * own + k * shares * means, k * shares * means
    first, second = ((defaults.beta * part).exp().clamp(max=defaults.max_weight) for part in factors)
    return first * second


def test_a_few_good_episodes_outweigh_many_others() -> None:
    """Ten of 400 episodes have advantages of four deviations, others of chance."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.arange(400).repeat_interleave(200)
    own = 0.6 * torch.randn(len(ids), generator=generator) + 4.0 * (ids < 10)
    own = (own - own.mean()) / own.std()
    for k, low, high in ((0.0, 0.0, 0.5), (1.0, 0.95, 1.0)):
        weights = _weights(own, ids, k)
        assert low < float(weights[ids < 10].sum() / weights.sum()) < high


def test_the_first_steps_of_a_good_episode_count_as_its_others_do() -> None:
    """As in a log whose episodes begin alike: Q hardly tells an expert's first steps from those of others."""
    generator = torch.Generator().manual_seed(0)
    ids, places = torch.arange(400).repeat_interleave(100), torch.arange(100).repeat(400)
    own = 0.3 * torch.randn(len(ids), generator=generator)
    good = ids < 10
    own[good] = 0.2 * places[good].clamp(min=1) ** 0.7
    own /= own.std()
    first = good & (places < 10)
    assert _weights(own, ids, 0.0)[first].min() < 10.0
    assert _weights(own, ids, 1.0)[first].min() > 0.9 * _weights(own, ids, 1.0).max()


def test_settings_of_the_state_value_are_those_of_the_chosen_one() -> None:
    parameters = policy_parameters(state_value={"name": "fitted_value", "steps": 7})
    assert isinstance(parameters, AdvantageWeightedRegression.Parameters)
    assert isinstance(parameters.state_value, FittedValueParameters)
    assert parameters.state_value.steps == 7
    with pytest.raises(ValueError, match="actions"):
        policy_parameters(state_value={"name": "fitted_value", "actions": 7})
