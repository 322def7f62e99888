from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch.distributions import Normal

from cvl_pipeline.episodes.container import Normalisation
from cvl_pipeline.networks.actor import Actor, ActorShape, CategoricalActor, GaussianActor

NORMALISATION = Normalisation(
    torch.tensor([0.5, -1.0, 2.0]), torch.tensor([0.1, 2.0, 1.0]), torch.zeros(2), torch.ones(2)
)
LOW, HIGH = torch.tensor([-1.0, 0.25]), torch.tensor([1.0, 0.75])


def _actor() -> GaussianActor:
    torch.manual_seed(0)
    return GaussianActor(ActorShape((3,), 2, (16,)), NORMALISATION, (LOW, HIGH))


def _categorical(actions: int = 3) -> CategoricalActor:
    torch.manual_seed(0)
    return CategoricalActor(ActorShape((3,), actions, (16,)), NORMALISATION)


def _last(actor: Actor) -> torch.nn.Linear:
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
    actor = GaussianActor(ActorShape((3,), 2, (16,)), None, (low, high))
    with torch.no_grad():
        _last(actor).weight.mul_(100.0)  # far in the tails of tanh
        actions = actor(scale * torch.randn(64, 3))
    # Exactly, because validate_transitions rejects everything outside.
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
    plain = GaussianActor(ActorShape((3,), 2, (16,)))
    plain.load_state_dict(actor.state_dict())
    plain.encode_observation.standardise.fit(torch.zeros(3), torch.ones(3))
    scaled = (_observations() - NORMALISATION.observation_mean) / NORMALISATION.observation_std
    assert torch.equal(actor(_observations()), plain(scaled))


@pytest.mark.parametrize("log_std", [[0.0, -1.5], [-7.0, 4.0]])
def test_log_prob_is_that_of_the_normal_distribution_around_the_mode(log_std: list[float]) -> None:
    actor = _actor()
    with torch.no_grad():
        actor.log_std.copy_(torch.tensor(log_std))
        actions = LOW + (HIGH - LOW) * torch.rand(50, 2, generator=torch.Generator().manual_seed(2))
        actions[0], actions[1] = LOW, HIGH  # clipped actions are often on the bounds
        std = torch.tensor(log_std).clamp(*GaussianActor.LOG_STD_RANGE).exp()
        expected = Normal(actor(_observations()), std).log_prob(actions).sum(-1)  # type: ignore[no-untyped-call]
        result = actor.log_prob(_observations(), actions)
    assert torch.isfinite(result).all()
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


def test_log_prob_integrates_to_one() -> None:
    actor = GaussianActor(ActorShape((3,), 1, (4,)))
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
    actor = GaussianActor(ActorShape((3,), 2, ()), None, (low, high))
    actor.action_low.zero_()
    assert torch.equal(low, LOW)


def test_no_noise_is_the_mode_and_noise_is_added_to_it() -> None:
    actor = GaussianActor(ActorShape((3,), 2, (16,)), NORMALISATION)
    observations = 0.1 * _observations()
    with torch.no_grad():
        actor.log_std.copy_(torch.tensor([-3.0, -2.0]))
        _last(actor).weight.mul_(0.1)  # modes far from the bounds
        noise = torch.tensor([[0.0, 0.0], [1.0, -0.5]])
        actions = actor.act_with_noise(observations, noise)
        mode = actor(observations)
    assert actions.shape == (50, 2, 2)
    assert torch.equal(actions[:, 0], mode)
    expected = mode + torch.tensor([-3.0, -2.0]).exp() * noise[1]
    np.testing.assert_allclose(actions[:, 1], expected, atol=1e-6)


@given(scale=st.sampled_from([0.1, 1.0, 1e3, 1e20]), seed=st.integers(0, 100))
def test_actions_with_noise_lie_within_the_bounds(scale: float, seed: int) -> None:
    actor = _actor()
    noise = scale * actor.noise(9, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        actions = actor.act_with_noise(_observations(), noise)
    assert actions.shape == (50, 9, 2)
    assert (actions >= LOW).all()
    assert (actions <= HIGH).all()


def test_the_noise_makes_samples_of_the_density() -> None:
    actor = GaussianActor(ActorShape((3,), 1, (4,)), None, (torch.tensor([-50.0]), torch.tensor([50.0])))
    with torch.no_grad():
        actor.log_std.fill_(0.5)
        _last(actor).weight.zero_()  # the mode is the middle, 0
        samples = actor.act_with_noise(_observations(1), actor.noise(4000, torch.Generator().manual_seed(0)))
        grid = torch.linspace(-12.0, 12.0, 4001)
        density = actor.log_prob(_observations(1).expand(4001, -1), grid[:, None]).exp()
    law = np.cumsum(density.double().numpy()) * (24.0 / 4000)
    uniform = np.interp(samples.flatten().numpy(), grid.numpy(), law)
    assert stats.kstest(uniform, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("make", [_actor, _categorical])
def test_noise_is_determined_by_its_generator(make: Callable[[], Actor]) -> None:
    actor = make()
    first, again, other = (actor.noise(5, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == (5, actor.shape.action_size)


def test_a_gradient_reaches_the_mode_through_a_sample() -> None:
    actor = GaussianActor(ActorShape((3,), 2, (16,)), NORMALISATION)
    actor.act_with_noise(_observations(), torch.zeros(1, 2)).sum().backward()  # type: ignore[no-untyped-call]
    gradient = _last(actor).weight.grad
    assert gradient is not None
    assert float(gradient.abs().max()) > 0.0


def test_probabilities_of_discrete_actions_are_the_softmax_of_the_network() -> None:
    actor = _categorical()
    with torch.no_grad():
        log_probs = actor.log_probs(_observations())
        scaled = (_observations() - NORMALISATION.observation_mean) / NORMALISATION.observation_std
        scores = actor.network(scaled).double()
    np.testing.assert_allclose(log_probs.exp().sum(-1), 1.0, atol=1e-6)
    np.testing.assert_allclose(log_probs, scores - scores.logsumexp(-1, keepdim=True), atol=1e-5)
    assert float(log_probs.std()) > 0.1, "the actions differ"


def test_log_prob_of_a_one_hot_action_is_the_entry_of_that_action() -> None:
    actor = _categorical()
    chosen = torch.arange(50) % 3
    with torch.no_grad():
        expected = actor.log_probs(_observations())[torch.arange(50), chosen]
        result = actor.log_prob(_observations(), torch.eye(3)[chosen])
    assert torch.equal(result, expected)


def test_the_mode_of_a_discrete_policy_is_its_likeliest_action_as_a_one_hot_vector() -> None:
    actor = _categorical()
    with torch.no_grad():
        actions, log_probs = actor(_observations()), actor.log_probs(_observations())
    assert actions.dtype == torch.float32
    assert torch.equal(actions, torch.eye(3)[log_probs.argmax(-1)])
    assert len(actions.unique(dim=0)) > 1


def test_actions_with_gumbel_noise_are_drawn_from_the_policy() -> None:
    actor = _categorical(4)
    observations = _observations(6)
    count = 20_000
    with torch.no_grad():
        noise = actor.noise(count, torch.Generator().manual_seed(0))
        actions = actor.act_with_noise(observations, noise)
        law = actor.log_probs(observations).double().exp().numpy()
    assert actions.shape == (6, count, 4)
    assert torch.equal(actions.sum(-1), torch.ones(6, count))
    for frequencies, expected in zip(actions.double().sum(1).numpy(), law, strict=True):
        assert stats.chisquare(frequencies, expected / expected.sum() * count).pvalue > 1e-3
    assert np.ptp(law, axis=0).max() > 0.1, "another state, another law"
    assert stats.kstest(noise.flatten().numpy()[:5000], stats.gumbel_r().cdf).pvalue > 1e-3


def test_no_gumbel_noise_is_the_mode() -> None:
    actor = _categorical()
    assert torch.equal(actor.act_with_noise(_observations(), torch.zeros(2, 3))[:, 1], actor(_observations()))


@pytest.mark.parametrize("make", [_actor, _categorical])
def test_policies_give_single_precision_where_networks_run_in_less(make: Callable[[], Actor]) -> None:
    actor = make()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        mode = actor(_observations())
        log_prob = actor.log_prob(_observations(), mode)
    assert mode.dtype == log_prob.dtype == torch.float32
    with torch.no_grad():
        exact = actor.log_prob(_observations(), mode)
    np.testing.assert_allclose(log_prob, exact, atol=0.1)


def test_state_dict_and_description_rebuild_a_discrete_policy() -> None:
    actor = _categorical()
    other = CategoricalActor(ActorShape(**actor.description()))
    other.load_state_dict(actor.state_dict())
    assert torch.equal(other.log_probs(_observations()), actor.log_probs(_observations()))
