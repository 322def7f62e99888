from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch.distributions import Normal

from cvl_pipeline.episodes.container import Normalisation
from cvl_pipeline.errors import InputError
from cvl_pipeline.networks.actor import Actor, ActorShape, CategoricalActor, GaussianActor, make_actor
from cvl_pipeline.networks.encoder import ObservationEncoder
from cvl_pipeline.testing.builders import (
    identity_normalisation,
    make_discrete_transitions,
    make_transitions,
)
from cvl_pipeline.training.vector import ParameterVector

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


def _in_training(actor: Actor) -> ParameterVector:
    return ParameterVector(actor, [parameter for parameter in actor.parameters() if parameter.requires_grad])


def _observations(count: int = 50) -> torch.Tensor:
    return 2.0 * torch.randn(count, 3, generator=torch.Generator().manual_seed(1))


@given(
    bounds=st.lists(st.floats(-10, 10, width=32), min_size=4, max_size=4),
    scale=st.sampled_from([0.0, 1.0, 1e4, 1e15]),
    seed=st.integers(0, 100),
)
def test_actions_are_within_the_bounds_for_any_input(bounds: list[float], scale: float, seed: int) -> None:
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
    assert isinstance(plain.encode_observation, ObservationEncoder)
    plain.encode_observation.standardise.fit(torch.zeros(3), torch.ones(3))
    scaled = (_observations() - NORMALISATION.observation_mean) / NORMALISATION.observation_std
    assert torch.equal(actor(_observations()), plain(scaled))


@pytest.mark.parametrize("log_std", [[0.0, -1.5], [-7.0, 4.0]])
def test_log_prob_equals_that_of_a_normal_distribution_around_the_mode(log_std: list[float]) -> None:
    actor = _actor()
    with torch.no_grad():
        actor.log_std.copy_(torch.tensor(log_std))
        actions = LOW + (HIGH - LOW) * torch.rand(50, 2, generator=torch.Generator().manual_seed(2))
        actions[0], actions[1] = LOW, HIGH  # clipped actions are often on the bounds
        std = torch.tensor(log_std).clamp(*GaussianActor.LOG_STD_RANGE).exp() * (HIGH - LOW) / 2.0
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
    other = GaussianActor(actor.shape)
    other.load_state_dict(actor.state_dict())
    assert torch.equal(other(_observations()), actor(_observations()))
    assert torch.equal(other.action_low, LOW)
    assert torch.equal(other.action_high, HIGH)


def test_bounds_are_copied_from_the_data() -> None:
    low, high = LOW.clone(), HIGH.clone()
    actor = GaussianActor(ActorShape((3,), 2, ()), None, (low, high))
    actor.action_low.zero_()
    assert torch.equal(low, LOW)


@given(size=st.floats(-4.0, 4.0).map(lambda exponent: 10.0**exponent))
def test_noise_and_distance_are_in_halves_of_the_range(size: float) -> None:
    """In any unit of the action, the same noise is the same share of the range."""
    bounds = torch.tensor([-1.0, -0.5]), torch.tensor([1.0, 0.5])
    one, other = (GaussianActor(ActorShape((3,), 2, (4,)), None, bounds) for _ in range(2))
    other.load_state_dict(
        one.state_dict() | {"action_low": size * bounds[0], "action_high": size * bounds[1]}
    )
    noise = one.noise(5, torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = one.act_with_noise(_observations(), noise)
        actions = other.act_with_noise(_observations(), noise)
    torch.testing.assert_close(actions, size * expected, rtol=1e-4, atol=1e-5 * size)
    torch.testing.assert_close(
        other.distance(size * expected, 0.0 * expected),
        one.distance(expected, 0.0 * expected),
        rtol=1e-4,
        atol=1e-5,
    )


def test_noise_is_added_to_the_mode() -> None:
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
def test_actions_with_noise_are_within_the_bounds(scale: float, seed: int) -> None:
    actor = _actor()
    noise = scale * actor.noise(9, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        actions = actor.act_with_noise(_observations(), noise)
    assert actions.shape == (50, 9, 2)
    assert (actions >= LOW).all()
    assert (actions <= HIGH).all()


def test_actions_with_noise_have_the_density_of_log_prob() -> None:
    actor = GaussianActor(ActorShape((3,), 1, (4,)), None, (torch.tensor([-50.0]), torch.tensor([50.0])))
    with torch.no_grad():
        actor.log_std.fill_(math.log(1.6 / 50.0))
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


def test_gradients_pass_through_actions_with_noise() -> None:
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
    assert float(log_probs.std()) > 0.1, "the actions must differ"


def test_log_prob_of_a_one_hot_action_is_the_entry_of_that_action() -> None:
    actor = _categorical()
    chosen = torch.arange(50) % 3
    with torch.no_grad():
        expected = actor.log_probs(_observations())[torch.arange(50), chosen]
        result = actor.log_prob(_observations(), torch.eye(3)[chosen])
    assert torch.equal(result, expected)


def test_mode_of_a_discrete_policy_is_its_likeliest_action_as_a_one_hot_vector() -> None:
    actor = _categorical()
    with torch.no_grad():
        actions, log_probs = actor(_observations()), actor.log_probs(_observations())
    assert actions.dtype == torch.float32
    assert torch.equal(actions, torch.eye(3)[log_probs.argmax(-1)])
    assert len(actions.unique(dim=0)) > 1


def test_actions_with_gumbel_noise_are_distributed_as_the_policy() -> None:
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
    assert np.ptp(law, axis=0).max() > 0.1, "the law must depend on the state"
    assert stats.kstest(noise.flatten().numpy()[:5000], stats.gumbel_r().cdf).pvalue > 1e-3


def test_zero_gumbel_noise_gives_the_mode() -> None:
    actor = _categorical()
    assert torch.equal(actor.act_with_noise(_observations(), torch.zeros(2, 3))[:, 1], actor(_observations()))


@pytest.mark.parametrize("make", [_actor, _categorical])
def test_actions_and_densities_are_in_single_precision_under_autocast(make: Callable[[], Actor]) -> None:
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
    other = CategoricalActor(actor.shape)
    other.load_state_dict(actor.state_dict())
    assert torch.equal(other.log_probs(_observations()), actor.log_probs(_observations()))


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, np.int64, np.uint8, bool])
@pytest.mark.parametrize("make", [_actor, _categorical])
def test_act_takes_numbers_of_any_type(make: Callable[[], Actor], dtype: type[np.generic]) -> None:
    actor = make()
    observations = np.abs(2.0 * _observations(6).numpy()).astype(dtype)
    with torch.no_grad():
        expected = actor(torch.from_numpy(observations.astype(np.float32))).numpy()
    actions = actor.act(observations)
    if isinstance(actor, CategoricalActor):
        assert actions.dtype == np.int64
        assert actions.tolist() == expected.argmax(1).tolist()
    else:
        assert actions.dtype == np.float32
        assert np.array_equal(actions, expected)
        assert (actions >= LOW.numpy()).all()
        assert (actions <= HIGH.numpy()).all()
    # NumPy arrays may also be passed to the policy itself.
    assert np.array_equal(actor(observations), actions)


def test_act_on_one_observation_returns_one_action() -> None:
    gaussian, categorical = _actor(), _categorical()
    observations = _observations(4).numpy().astype(np.float64)
    actions, choices = gaussian.act(observations), categorical.act(observations)
    assert actions.shape == (4, 2)
    assert choices.shape == (4,)
    for row in range(4):
        one = gaussian.act(observations[row])
        assert one.shape == (2,)
        np.testing.assert_allclose(one, actions[row], atol=1e-6)
        choice = categorical.act(observations[row])
        assert type(choice) is int
        assert choice == choices[row]
    assert np.array_equal(gaussian.act(observations[0].tolist()), gaussian.act(observations[0]))
    assert len(set(choices.tolist())) > 1


def test_act_on_no_observations_returns_no_actions() -> None:
    assert _actor().act(np.zeros((0, 3))).shape == (0, 2)
    assert _categorical().act(np.zeros((0, 3))).shape == (0,)


def test_act_leaves_its_input_and_gradients_alone() -> None:
    actor, observations = _actor(), _observations(3).numpy()
    observations.flags.writeable = False
    before = observations.copy()
    actor.act(observations)
    assert np.array_equal(observations, before)
    assert all(parameter.grad is None for parameter in actor.parameters())


@pytest.mark.parametrize("shape", [(2,), (4,), (5, 2), (5, 3, 1), (2, 5, 3), ()])
def test_act_names_the_shape_that_it_cannot_take(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError) as caught:
        _actor().act(np.zeros(shape))
    assert str(caught.value) == f"observations have shape {shape}; this policy takes (3,) or (B, 3)"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize("shape", [(3,), (5, 3)])
def test_act_refuses_values_that_are_not_finite(value: float, shape: tuple[int, ...]) -> None:
    observations = np.zeros(shape)
    observations[..., 1] = value
    with pytest.raises(InputError, match="observations hold a value that is not a finite number"):
        _actor().act(observations)


@pytest.mark.parametrize(
    ("observations", "kind"),
    [
        (np.array(["a", "b", "c"]), "<U1"),
        (np.array([1, None, 2]), "object"),
        (np.zeros(3, complex), "complex"),
    ],
)
def test_act_refuses_values_that_are_not_numbers(observations: Any, kind: str) -> None:
    with pytest.raises(InputError, match=f"observations are {kind}.*, not numbers"):
        _actor().act(observations)


def test_act_refuses_rows_of_unequal_lengths_in_one_line() -> None:
    with pytest.raises(
        InputError, match=r"observations are list, which makes no array.*equal shapes"
    ) as caught:
        _actor().act([[1.0, 2.0, 3.0], [1.0, 2.0]])
    assert "\n" not in str(caught.value)


def test_act_takes_tensors_that_require_a_gradient() -> None:
    actor, observations = _actor(), _observations().requires_grad_()
    expected = actor.act(observations.detach().numpy())
    np.testing.assert_array_equal(actor.act(observations), expected)


def test_act_on_images_takes_one_or_many() -> None:
    torch.manual_seed(0)
    actor = GaussianActor(ActorShape((8, 8, 3), 2, (4,)))
    images = np.random.default_rng(0).integers(256, size=(5, 8, 8, 3), dtype=np.uint8)
    actions = actor.act(images)
    assert actions.shape == (5, 2)
    with torch.no_grad():
        np.testing.assert_allclose(actions, actor(torch.from_numpy(images)), atol=1e-6)
    np.testing.assert_allclose(actor.act(images[3]), actions[3], atol=1e-5)
    with pytest.raises(InputError, match=r"shape \(8, 3\); this policy takes \(8, 8, 3\) or \(B, 8, 8, 3\)"):
        actor.act(images[0, 0])


def test_act_on_images_takes_any_type_but_only_values_of_pixels() -> None:
    torch.manual_seed(0)
    actor = GaussianActor(ActorShape((8, 8, 3), 2, (4,)))
    image = np.random.default_rng(0).integers(256, size=(8, 8, 3), dtype=np.uint8)
    assert np.array_equal(actor.act(image.astype(np.float64)), actor.act(image))
    # Scaled images would all become black.
    for faulty in (image / 255.0, image.astype(np.int64) + 256, -image.astype(np.float32)):
        with pytest.raises(InputError, match="whole numbers from 0 to 255"):
            actor.act(faulty)


def test_double_precision_tensors_are_narrowed() -> None:
    actor, observations = _actor(), _observations()
    assert torch.equal(actor(observations.double()), actor(observations))


def test_make_actor_follows_the_episodes() -> None:
    continuous, discrete = (
        make_transitions([4, 5], [True, False]),
        make_discrete_transitions([4, 5], [True, False]),
    )
    gaussian = make_actor(continuous, identity_normalisation(continuous), (8,), {"name": "identity"})
    categorical = make_actor(discrete, identity_normalisation(discrete), (8,))
    assert isinstance(gaussian, GaussianActor)
    assert gaussian.shape == ActorShape((3,), 2, (8,), {"name": "identity"})
    assert torch.equal(gaussian.action_low, continuous.action_low)
    assert torch.equal(gaussian.action_high, continuous.action_high)
    assert isinstance(categorical, CategoricalActor)
    assert categorical.shape == ActorShape((3,), 3, (8,), {})
    assert (gaussian.discrete, categorical.discrete) == (False, True)


@pytest.mark.parametrize("log_std", [(0.0, -1.0), (-3.0, 1.0), (-5.0, 0.3), (0.2, 4.0)])
@pytest.mark.parametrize("axes", [(), (7,), (3, 4)])
def test_log_probability_in_training_equals_that_of_the_modules(
    log_std: tuple[float, float], axes: tuple[int, ...]
) -> None:
    actor = _actor()
    with torch.no_grad():
        actor.log_std.copy_(torch.tensor(log_std))
    generator = torch.Generator().manual_seed(2)
    observations = torch.randn(*axes, 3, generator=generator)
    actions = torch.rand(*axes, 2, generator=generator)
    weights = torch.randn(axes, generator=generator)
    plain = actor.log_prob(observations, actions)
    expected = torch.autograd.grad((weights * plain).sum(), list(actor.parameters()))
    vector = _in_training(actor)
    found = actor.log_prob(observations, actions)
    torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-5)
    vector.differentiate((weights * found).sum())
    assert vector.values.grad is not None
    torch.testing.assert_close(
        vector.values.grad, torch.cat([part.flatten() for part in expected]), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    ("log_std", "error", "sign"), [(-3.5, 1.0, 1), (-3.5, 0.0, 0), (1.5, 0.0, -1), (1.5, 100.0, 0)]
)
def test_noise_beyond_its_range_can_return_and_goes_no_further(
    log_std: float, error: float, sign: int, fused: bool
) -> None:
    actor = GaussianActor(ActorShape((3,), 2, (4,)))
    with torch.no_grad():
        actor.log_std.fill_(log_std)
        observations = _observations(5)
        actions = actor(observations) + error
    vector = _in_training(actor) if fused else None
    loss = -actor.log_prob(observations, actions).sum()
    (gradient,) = torch.autograd.grad(loss, [actor.log_std])
    assert (-gradient).sign().tolist() == [sign, sign]
    del vector


@pytest.mark.parametrize(
    ("log_std", "wish", "sign"), [(-3.5, 1, 1), (-3.5, -1, 0), (1.5, -1, -1), (1.5, 1, 0)]
)
def test_noise_of_actions_beyond_its_range_can_return_and_goes_no_further(
    log_std: float, wish: int, sign: int
) -> None:
    actor = GaussianActor(ActorShape((3,), 2, (4,)), None, (-torch.full((2,), 99.0), torch.full((2,), 99.0)))
    with torch.no_grad():
        actor.log_std.fill_(log_std)
        expected = torch.tensor(log_std).clamp(*GaussianActor.LOG_STD_RANGE).exp() * 99.0
        torch.testing.assert_close(actor.std, expected.expand(2))
    (gradient,) = torch.autograd.grad(-wish * actor.std.log().sum(), [actor.log_std])
    assert (-gradient).sign().tolist() == [sign, sign]
    actions = actor.act_with_noise(_observations(1), torch.full((1, 2), 1e-3)).sum()
    (gradient,) = torch.autograd.grad(-wish * actions, [actor.log_std])
    assert (-gradient).sign().tolist() == [sign, sign]


def test_log_probability_in_training_is_differentiable_in_actions_too() -> None:
    actor = _actor()
    _in_training(actor)
    actions = torch.zeros(5, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(actor.log_prob(_observations(5), actions).sum(), actions)
    assert gradient.abs().sum() > 0
