from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Normal

from cvl_pipeline.networks.actor import ActorShape, GaussianActor
from cvl_pipeline.trajectories.container import Normalisation

NORMALISATION = Normalisation(
    torch.tensor([0.5, -1.0, 2.0]), torch.tensor([0.1, 2.0, 1.0]), torch.zeros(2), torch.ones(2)
)
LOW, HIGH = torch.tensor([-1.0, 0.25]), torch.tensor([1.0, 0.75])


def _actor() -> GaussianActor:
    torch.manual_seed(0)
    return GaussianActor(ActorShape(3, 2, (16,)), NORMALISATION, (LOW, HIGH))


def _last(actor: GaussianActor) -> torch.nn.Linear:
    layer = actor.network[-1]
    assert isinstance(layer, torch.nn.Linear)
    return layer


def _observations(count: int = 50) -> torch.Tensor:
    return 2.0 * torch.randn(count, 3, generator=torch.Generator().manual_seed(1))


@given(
    bounds=st.lists(st.floats(-10, 10, width=32), min_size=4, max_size=4),
    scale=st.sampled_from([0.0, 1.0, 1e4, 1e15]),
    seed=st.integers(0, 100),
)
def test_actions_lie_within_the_bounds_for_any_input(bounds: list[float], scale: float, seed: int) -> None:
    first, second = torch.tensor(bounds[:2]), torch.tensor(bounds[2:])
    low, high = torch.minimum(first, second), torch.maximum(first, second)
    torch.manual_seed(seed)
    actor = GaussianActor(ActorShape(3, 2, (16,)), None, (low, high))
    with torch.no_grad():
        _last(actor).weight.mul_(100.0)  # far into the tails of tanh
        actions = actor(scale * torch.randn(64, 3))
    # To the last bit: validate_transitions refuses anything outside.
    assert (actions >= low).all()
    assert (actions <= high).all()


def test_actions_reach_both_bounds_and_everything_between() -> None:
    actor = _actor()
    with torch.no_grad():
        _last(actor).weight.zero_()
        for bias, expected in ((-50.0, LOW), (0.0, (LOW + HIGH) / 2), (50.0, HIGH)):
            _last(actor).bias.fill_(bias)
            np.testing.assert_allclose(actor(_observations(1))[0], expected, atol=1e-6)


def test_observations_are_standardised() -> None:
    actor = _actor()
    plain = GaussianActor(ActorShape(3, 2, (16,)))
    plain.load_state_dict(actor.state_dict())
    plain.standardise_observation.fit(torch.zeros(3), torch.ones(3))
    scaled = (_observations() - NORMALISATION.observation_mean) / NORMALISATION.observation_std
    assert torch.equal(actor(_observations()), plain(scaled))


@pytest.mark.parametrize("log_std", [[0.0, -1.5], [-7.0, 4.0]])
def test_log_prob_is_that_of_the_normal_distribution_around_the_mode(log_std: list[float]) -> None:
    actor = _actor()
    with torch.no_grad():
        actor.log_std.copy_(torch.tensor(log_std))
        actions = LOW + (HIGH - LOW) * torch.rand(50, 2, generator=torch.Generator().manual_seed(2))
        actions[0], actions[1] = LOW, HIGH  # clipped actions lie on the bounds in numbers
        std = torch.tensor(log_std).clamp(*GaussianActor.LOG_STD_RANGE).exp()
        expected = Normal(actor(_observations()), std).log_prob(actions).sum(-1)  # type: ignore[no-untyped-call]
        result = actor.log_prob(_observations(), actions)
    assert torch.isfinite(result).all()
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


def test_log_prob_integrates_to_one() -> None:
    actor = GaussianActor(ActorShape(3, 1, (4,)))
    grid = torch.linspace(-12.0, 12.0, 4001)
    with torch.no_grad():
        density = actor.log_prob(_observations(1).expand(4001, -1), grid[:, None]).exp()
    assert float(torch.trapezoid(density, grid)) == pytest.approx(1.0, abs=1e-4)


def test_state_dict_and_description_rebuild_the_actor_with_its_bounds() -> None:
    actor = _actor()
    other = GaussianActor(ActorShape(**actor.description()))
    other.load_state_dict(actor.state_dict())
    assert torch.equal(other(_observations()), actor(_observations()))
    assert torch.equal(other.action_low, LOW)
    assert torch.equal(other.action_high, HIGH)


def test_bounds_are_copied_so_that_moving_one_actor_leaves_the_data_alone() -> None:
    low, high = LOW.clone(), HIGH.clone()
    actor = GaussianActor(ActorShape(3, 2, ()), None, (low, high))
    actor.action_low.zero_()
    assert torch.equal(low, LOW)
