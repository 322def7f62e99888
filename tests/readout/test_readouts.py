from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from cvl_pipeline.errors import InputError
from cvl_pipeline.readout import readouts as module
from cvl_pipeline.readout.readouts import (
    ExactReadout,
    FeatureReadout,
    Readout,
    draw_directions,
    feature_readout,
    random_features,
)
from cvl_pipeline.readout.references import References

NO_HORIZONS = torch.zeros(0, dtype=torch.int64)
METHODS = ["random_fourier", "positive_random"]


def _seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _exact(
    references: int, size: int = 6, seed: int = 0, temperature: float = 0.2, **changes: Any
) -> ExactReadout:
    """References with unequal weights and rewards of both signs."""
    generator = _seeded(seed)
    weights = torch.rand(references, generator=generator) + 0.2
    values: dict[str, Any] = {
        "temperature": torch.tensor(temperature),
        "horizons": NO_HORIZONS,
        "discount": 0.9,
        "self_normalised": True,
        "psi": torch.randn(references, size, generator=generator),
        "rewards": torch.rand(references, generator=generator) * 3.0 - 1.0,
        "log_weights": (weights / weights.sum()).log(),
    }
    return ExactReadout(**(values | changes))


def _queries(count: int, size: int = 6) -> Tensor:
    return torch.randn(count, size, generator=_seeded(99))


def _units(count: int, size: int = 6, seed: int = 0) -> Tensor:
    return normalize(torch.randn(count, size, generator=_seeded(seed)), dim=-1)


def _unstreamed(readout: ExactReadout, phi: Tensor) -> tuple[Tensor, Tensor]:
    """The formula in double precision, with all weights at once."""
    weights = (phi.double() @ readout.psi.double().T / readout.temperature.double()).exp()
    weights = weights * readout.log_weights.double().exp()
    total = weights.sum(1)
    values = weights @ readout.rewards.double() / (1.0 - readout.discount)
    sizes = total.square() / weights.square().sum(1)
    return values / total if readout.self_normalised else values, sizes


# The exact readout.


@pytest.mark.parametrize("self_normalised", [True, False])
@pytest.mark.parametrize("chunk", [1, 2, 7, 49, 50, 51, 4096])
def test_streamed_values_equal_the_formula_for_any_chunk(
    monkeypatch: pytest.MonkeyPatch, chunk: int, self_normalised: bool
) -> None:
    for size in ("QUERY_TILE", "REFERENCE_TILE"):
        monkeypatch.setattr(module, size, chunk)
    readout, phi = _exact(50, self_normalised=self_normalised, temperature=1.0), _queries(11)
    values, sizes = readout.values_and_sample_size(phi)
    expected, expected_sizes = _unstreamed(readout, phi)
    np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(sizes, expected_sizes, rtol=1e-4)
    np.testing.assert_array_equal(readout.values(phi), values)


@pytest.mark.parametrize("chunk", [3, 4096])
def test_logits_far_beyond_the_range_of_exp_do_no_harm(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    for size in ("QUERY_TILE", "REFERENCE_TILE"):
        monkeypatch.setattr(module, size, chunk)
    readout, phi = _exact(20, temperature=1e-3), _queries(5)  # logits of several thousand, of both signs
    logits = phi.double() @ readout.psi.double().T / readout.temperature.double() + readout.log_weights
    assert logits.abs().max() > 1000
    weights = logits.softmax(-1)
    values, sizes = readout.values_and_sample_size(phi)
    np.testing.assert_allclose(values, weights @ readout.rewards.double() / 0.1, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(sizes, 1.0 / weights.square().sum(-1), rtol=1e-3)


@pytest.mark.parametrize("self_normalised", [True, False])
@pytest.mark.parametrize("chunk", [3, 4096])
def test_gradients_are_those_of_the_formula(
    monkeypatch: pytest.MonkeyPatch, chunk: int, self_normalised: bool
) -> None:
    for size in ("QUERY_TILE", "REFERENCE_TILE"):
        monkeypatch.setattr(module, size, chunk)
    readout = _exact(20, temperature=0.5, self_normalised=self_normalised)
    phi, reference = _queries(5).requires_grad_(), _queries(5).double().requires_grad_()
    readout.values(phi).log1p().sum().backward()  # type: ignore[no-untyped-call]
    _unstreamed(readout, reference)[0].log1p().sum().backward()  # type: ignore[no-untyped-call]
    assert phi.grad is not None
    assert reference.grad is not None
    assert reference.grad.abs().max() > 0.1
    np.testing.assert_allclose(phi.grad, reference.grad, rtol=1e-3, atol=1e-3)


@given(
    references=st.integers(1, 40),
    queries=st.integers(1, 12),
    size=st.integers(1, 70),
    seed=st.integers(0, 1000),
    temperature=st.floats(0.01, 10.0),
    unit_norm=st.booleans(),
    tiles=st.tuples(st.integers(1, 13), st.integers(1, 41)),
)
def test_values_equal_a_softmax_over_all_references_in_double_precision(
    references: int,
    queries: int,
    size: int,
    seed: int,
    temperature: float,
    unit_norm: bool,
    tiles: tuple[int, int],
) -> None:
    psi = _units(references, size, seed) if unit_norm else torch.randn(references, size, generator=_seeded())
    readout = _exact(references, seed=seed, temperature=temperature, psi=psi)
    phi = _units(queries, size, seed + 1) if unit_norm else _queries(queries, size)
    logits = phi.double() @ psi.double().T / readout.temperature.double() + readout.log_weights.double()
    weights = logits.softmax(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "QUERY_TILE", tiles[0])
        patch.setattr(module, "REFERENCE_TILE", tiles[1])
        values, sizes = readout.values_and_sample_size(phi)
    # A logit of single precision is off by a few units in its last place, and a weight by as much of its own size.
    tolerance = 4e-7 * float(logits.abs().max()) + 1e-5
    np.testing.assert_allclose(values, weights @ readout.rewards.double() / 0.1, atol=30.0 * tolerance)
    np.testing.assert_allclose(sizes, 1.0 / weights.square().sum(1), rtol=4.0 * tolerance)


@pytest.mark.parametrize("self_normalised", [True, False])
@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_gradients_are_those_of_finite_differences(
    monkeypatch: pytest.MonkeyPatch, temperature: float, self_normalised: bool
) -> None:
    monkeypatch.setattr(module, "QUERY_TILE", 2)
    monkeypatch.setattr(module, "REFERENCE_TILE", 7)
    single = _exact(20, self_normalised=self_normalised, psi=_units(20))
    doubles = {name: getattr(single, name).double() for name in ("psi", "rewards", "log_weights")}
    readout = replace(single, temperature=torch.tensor(temperature).double(), **doubles)
    phi = _units(5, seed=3).double().requires_grad_()
    assert torch.autograd.gradcheck(readout.expectation, phi)
    assert torch.autograd.gradcheck(readout.expectation_and_sample_size, phi)


@given(
    references=st.integers(1, 40),
    seed=st.integers(0, 1000),
    temperature=st.floats(0.01, 10.0),
    chunk=st.integers(1, 41),
)
def test_values_are_between_the_rewards_and_sample_sizes_between_one_and_all(
    references: int, seed: int, temperature: float, chunk: int
) -> None:
    readout = _exact(references, seed=seed, temperature=temperature)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "QUERY_TILE", chunk)
        patch.setattr(module, "REFERENCE_TILE", chunk)
        values, sizes = readout.values_and_sample_size(_queries(7))
    slack = 1e-4
    assert (values >= readout.rewards.min() / 0.1 - slack).all()
    assert (values <= readout.rewards.max() / 0.1 + slack).all()
    assert (sizes >= 1.0 - slack).all()
    assert (sizes <= references * (1.0 + slack)).all()


def test_equal_logits_give_the_weighted_mean_reward() -> None:
    readout = _exact(30)
    mean = float(readout.log_weights.exp() @ readout.rewards)
    np.testing.assert_allclose(readout.values(torch.zeros(3, 6)), mean / 0.1, rtol=1e-5)
    alike = _exact(30, log_weights=torch.full((30,), -math.log(30)))
    np.testing.assert_allclose(alike.values_and_sample_size(torch.zeros(3, 6))[1], 30.0, rtol=1e-5)


def test_one_dominant_reference_gives_its_reward_and_a_sample_size_of_one() -> None:
    psi = torch.eye(6)
    readout = _exact(6, psi=psi)
    values, sizes = readout.values_and_sample_size(100.0 * psi)
    np.testing.assert_allclose(values, readout.rewards / 0.1, rtol=1e-5)
    np.testing.assert_allclose(sizes, 1.0, rtol=1e-5)


def test_a_reference_of_triple_weight_counts_as_three() -> None:
    readout = _exact(4, log_weights=torch.tensor([3.0, 1.0, 1.0, 1.0]).log() - math.log(6.0))
    index = torch.tensor([0, 0, 0, 1, 2, 3])
    repeated = _exact(
        6,
        psi=readout.psi[index],
        rewards=readout.rewards[index],
        log_weights=torch.full((6,), -math.log(6.0)),
    )
    np.testing.assert_allclose(
        readout.values(_queries(5)), repeated.values(_queries(5)), rtol=1e-4, atol=1e-4
    )


def _with_constant(self_normalised: bool) -> tuple[Tensor, Tensor]:
    """Values without and with a constant c(s, a) added to all logits of a pair."""
    # The last coordinate of psi is one, so phi's last coordinate / temperature is added to the logits.
    psi = torch.cat([_exact(25).psi, torch.ones(25, 1)], dim=1)
    readout = _exact(25, psi=psi, temperature=1.0, self_normalised=self_normalised)
    plain = torch.cat([_queries(8), torch.zeros(8, 1)], dim=1)
    shifted = torch.cat([_queries(8), torch.linspace(-5.0, 5.0, 8)[:, None]], dim=1)
    return readout.values(plain), readout.values(shifted)


def test_self_normalising_cancels_a_constant_of_the_pair() -> None:
    plain, shifted = _with_constant(self_normalised=True)
    np.testing.assert_allclose(shifted, plain, rtol=1e-4, atol=1e-4)


def test_unnormalised_a_constant_of_the_pair_multiplies_the_value() -> None:
    plain, shifted = _with_constant(self_normalised=False)
    np.testing.assert_allclose(shifted, plain * torch.linspace(-5.0, 5.0, 8).exp(), rtol=1e-4, atol=1e-4)


def test_scaling_and_shifting_the_rewards_scales_and_shifts_the_values() -> None:
    readout = _exact(25)
    changed = _exact(25, rewards=2.0 * readout.rewards + 0.5)
    expected = 2.0 * readout.values(_queries(8)) + 0.5 / 0.1
    np.testing.assert_allclose(changed.values(_queries(8)), expected, rtol=1e-4, atol=1e-4)


# Random features.


def _kernel_estimates(fourier: bool, x: Tensor, y: Tensor, temperature: Tensor) -> Tensor:
    """F(x) . F(y) for many samples of few features, (samples, pairs)."""
    generator = _seeded(1)
    found = []
    for _ in range(2000):
        directions = draw_directions(12, x.shape[1], temperature, not fourier, generator)
        phases = torch.rand(12 if fourier else 0, generator=generator) * 2.0 * math.pi
        features = [random_features(some, directions, phases, temperature) for some in (x, y)]
        found.append((features[0] * features[1]).sum(-1))
    return torch.stack(found).double()


@pytest.mark.parametrize("unit_norm", [True, False], ids=["unit norm", "raw"])
@pytest.mark.parametrize("method", METHODS)
def test_products_of_features_are_the_kernel_on_average(method: str, unit_norm: bool) -> None:
    # With four dimensions and 12 features, the orthogonal blocks are complete.
    x, y = _units(6, 4, seed=1), _units(6, 4, seed=2)
    y[0], y[1] = x[0], -x[1]  # the ends of the range
    if not unit_norm:
        x, y = x * torch.linspace(0.5, 1.2, 6)[:, None], y * torch.linspace(1.2, 0.4, 6)[:, None]
    temperature = torch.tensor(1.0)
    found = _kernel_estimates(method == "random_fourier", x, y, temperature)
    expected = ((x * y).sum(-1) / temperature).exp().double()
    standard = found.std(0) / math.sqrt(len(found))
    # Positive features of opposite points have no variance, only rounding errors.
    assert ((found.mean(0) - expected).abs() < 4.5 * standard + 1e-6).all()
    # The bound is small enough to distinguish the kernels of different pairs.
    assert 4.5 * standard.max() < 0.3 * (expected.max() - expected.min())


# Larger inputs at the sharpest temperature underflow: exp(-|x|^2 / 2T) is 0 in single precision.
@given(seed=st.integers(0, 1000), temperature=st.floats(0.05, 5.0), scale=st.floats(0.1, 1.5))
def test_features_without_phases_are_positive(seed: int, temperature: float, scale: float) -> None:
    at = torch.tensor(temperature)
    directions = draw_directions(20, 4, at, True, _seeded(seed))
    features = random_features(scale * _units(5, 4, seed), directions, torch.zeros(0), at)
    assert features.shape == (5, 20)
    assert (features > 0.0).all()
    assert torch.isfinite(features).all()


@pytest.mark.parametrize(("count", "size"), [(16, 4), (10, 4), (3, 8)])
def test_directions_are_orthogonal_in_blocks(count: int, size: int) -> None:
    directions = draw_directions(count, size, torch.tensor(0.3), True, _seeded())
    assert directions.shape == (count, size)
    for block in torch.split(directions, size):
        products = block @ block.T
        np.testing.assert_allclose(products, torch.diag(products.diag()), atol=1e-4)
    independent = draw_directions(count, size, torch.tensor(0.3), False, _seeded())
    assert (independent[0] @ independent[1]).abs() > 1e-2


@pytest.mark.parametrize("orthogonal", [False, True])
@pytest.mark.parametrize("size", [1, 4])
def test_each_direction_alone_is_normally_distributed(size: int, orthogonal: bool) -> None:
    """For every position in its block; otherwise the kernel is biased."""
    generator, repeats, temperature = _seeded(), 4000, torch.tensor(0.25)
    rows = torch.stack(
        [draw_directions(2 * size, size, temperature, orthogonal, generator) for _ in range(repeats)]
    ).double()
    std = 1.0 / math.sqrt(0.25)
    assert (rows.mean(0).abs() < 5.0 * std / math.sqrt(repeats)).all()
    assert ((rows.square().mean(0) - std**2).abs() < 5.0 * math.sqrt(2.0) * std**2 / math.sqrt(repeats)).all()
    assert ((rows**4).mean(0) / std**4 - 3.0).abs().max() < 0.8, "a normal distribution's kurtosis"


def _references(count: int = 200, size: int = 6) -> References:
    exact = _exact(count, size)
    return References(normalize(exact.psi, dim=-1), exact.rewards, exact.log_weights)


def test_features_that_overflow_are_refused() -> None:
    long = replace(_references(), psi=30.0 * _references().psi)
    with pytest.raises(InputError, match=r"features of the references overflow, .*use method exact"):
        _features("random_fourier", 64, long)


def _features(
    method: str, count: int, references: References | None = None, **changes: Any
) -> FeatureReadout:
    values: dict[str, Any] = {
        "temperature": torch.tensor(1.0),
        "horizons": NO_HORIZONS,
        "discount": 0.9,
        "self_normalised": True,
    }
    fourier = method == "random_fourier"
    return feature_readout(references or _references(), fourier, count, _seeded(3), **(values | changes))


def _exact_over(references: References, **changes: Any) -> ExactReadout:
    return _exact(
        len(references), psi=references.psi, rewards=references.rewards, log_weights=references.log_weights,
        temperature=1.0, **changes,
    )  # fmt: skip


@pytest.mark.parametrize("self_normalised", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_feature_values_converge_to_the_exact_ones_at_temperature_one(
    method: str, self_normalised: bool
) -> None:
    references, phi = _references(), _units(50, seed=7)
    exact = _exact_over(references, self_normalised=self_normalised).values(phi)

    def error(features: int) -> float:
        values = _features(method, features, self_normalised=self_normalised).values(phi)
        return float((values - exact).square().mean().sqrt() / exact.std())

    few, many = error(256), error(65536)
    # With 256 times the features, about a sixteenth of the error.
    assert many < (0.06 if self_normalised else 0.2)
    assert many < 0.25 * few


@pytest.mark.parametrize("method", METHODS)
def test_feature_values_are_products_with_sums_over_the_references(method: str) -> None:
    references, phi = _references(), _units(5)
    plain, normalised = (_features(method, 32, self_normalised=choice) for choice in (False, True))
    mapped, queries = (
        random_features(some, plain.directions, plain.phases, plain.temperature)
        for some in (references.psi, phi)
    )
    weights = references.log_weights.exp()
    reward = queries @ (mapped.T @ (weights * references.rewards))
    total = queries @ (mapped.T @ weights)
    np.testing.assert_allclose(plain.values(phi), reward / 0.1, rtol=1e-4, atol=1e-4)
    assert total.min() > 0.1
    np.testing.assert_allclose(normalised.values(phi), reward / total / 0.1, rtol=1e-4, atol=1e-4)
    assert len(plain.phases) == (32 if method == "random_fourier" else 0)


@pytest.mark.parametrize("method", METHODS)
def test_sums_of_features_do_not_depend_on_the_chunk(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    whole = _features(method, 32)
    monkeypatch.setattr(module, "CHUNK", 9)
    parts = _features(method, 32)
    np.testing.assert_allclose(parts.xi, whole.xi, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(parts.normaliser, whole.normaliser, rtol=1e-4, atol=1e-5)


def test_features_weigh_no_single_reference_so_there_is_no_sample_size() -> None:
    assert _features("random_fourier", 32).values_and_sample_size(_units(4))[1].isnan().all()


@pytest.mark.parametrize("method", METHODS)
def test_feature_values_have_the_gradient_of_their_differences(method: str) -> None:
    readout, phi = _features(method, 512), _units(4).requires_grad_()
    readout.values(phi).sum().backward()  # type: ignore[no-untyped-call]
    assert phi.grad is not None
    direction, step = _units(4, seed=5), 1e-2
    with torch.no_grad():
        difference = (readout.values(phi + step * direction) - readout.values(phi - step * direction)) / (
            2 * step
        )
    assert difference.abs().max() > 0.1
    np.testing.assert_allclose((phi.grad * direction).sum(1), difference, rtol=2e-2, atol=2e-2)


def test_values_of_failing_features_are_finite_and_independent_of_the_batch() -> None:
    """With few Fourier features at a low temperature, the normaliser is zero or negative."""
    low = torch.tensor(0.05)
    readout, phi = _features("random_fourier", 16, temperature=low), _units(200, seed=5)
    queries = random_features(phi, readout.directions, readout.phases, low)
    assert (queries @ readout.normaliser).min() < 0.0
    together = readout.values(phi)
    assert torch.isfinite(together).all()
    alone = torch.cat([readout.values(query) for query in torch.split(phi, 1)])
    np.testing.assert_allclose(together, alone, rtol=1e-3, atol=1e-3)


# All readouts.


def _readouts() -> list[Readout]:
    return [_exact(30, temperature=1.0), *(_features(method, 64) for method in METHODS)]


@pytest.mark.parametrize("readout", _readouts(), ids=["exact", *METHODS])
def test_values_of_several_horizons_are_the_mean_of_each(readout: Readout) -> None:
    phi = _units(5 * 3).reshape(5, 3, 6)
    each = [readout.values_and_sample_size(phi[:, h]) for h in range(3)]
    values, sizes = readout.values_and_sample_size(phi)
    assert values.shape == sizes.shape == (5,)
    np.testing.assert_allclose(values, sum(value for value, _ in each) / 3, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(sizes, sum(size for _, size in each) / 3, rtol=1e-4)


@pytest.mark.parametrize("readout", _readouts(), ids=["exact", *METHODS])
def test_values_are_as_precise_under_autocast(readout: Readout) -> None:
    """At a low temperature, bfloat16's rounding would be as large as the differences between actions."""
    phi = _units(9)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (phi @ phi.T).dtype == torch.bfloat16
        values = readout.values(phi)
    assert torch.equal(values, readout.values(phi))


@pytest.mark.parametrize("readout", _readouts(), ids=["exact", *METHODS])
def test_a_readout_moves_as_a_whole(readout: Readout) -> None:
    moved = readout.to("meta")
    assert type(moved) is type(readout)
    for name, value in vars(readout).items():
        if isinstance(value, Tensor):
            assert getattr(moved, name).device.type == "meta", name
        else:
            assert getattr(moved, name) == value
