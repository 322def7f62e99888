from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from cvl_pipeline.dynamics.losses import (
    SPREAD,
    Loss,
    SymmetricInfoNCE,
    contrastive_metrics,
    infonce,
    logsumexp_penalty,
    nce,
    symmetric_infonce,
)
from cvl_pipeline.dynamics.parameters import LOSSES, LossParameters, SymmetricInfoNCEParameters
from cvl_pipeline.testing.builders import dynamics_parameters

FUNCTIONS = {"symmetric_infonce": symmetric_infonce, "infonce": infonce, "nce": nce}


def _loss(name: str, penalty: float = 0.0) -> Loss:
    return LOSSES.create(LOSSES.validate({"name": name, "logsumexp_penalty": penalty}))


def _logits(batch: int, scale: float, seed: int) -> torch.Tensor:
    return scale * torch.randn(
        batch, batch, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def _naive_symmetric(logits: NDArray[np.float64]) -> float:
    batch = len(logits)
    total = 0.0
    for i in range(batch):
        row = np.exp(logits[i, i]) / sum(np.exp(logits[i, j]) for j in range(batch))
        column = np.exp(logits[i, i]) / sum(np.exp(logits[j, i]) for j in range(batch))
        total += -0.5 * (np.log(row) + np.log(column))
    return total / batch


def _naive_infonce(logits: NDArray[np.float64]) -> float:
    rows = [np.exp(logits[i, i]) / np.exp(logits[i]).sum() for i in range(len(logits))]
    return float(-np.log(rows).mean())


def _naive_nce(logits: NDArray[np.float64]) -> float:
    batch = len(logits)
    total = 0.0
    for i in range(batch):
        for j in range(batch):
            chance = 1.0 / (1.0 + np.exp(-logits[i, j]))
            if i == j:
                total -= np.log(chance) / batch
            else:
                total -= np.log(1.0 - chance) / (batch * (batch - 1))
    return total


SHAPES = (st.integers(2, 12), st.floats(0.0, 5.0), st.integers(0, 1000))


@pytest.mark.parametrize(
    ("name", "formula"),
    [("symmetric_infonce", _naive_symmetric), ("infonce", _naive_infonce), ("nce", _naive_nce)],
)
@given(*SHAPES)
def test_losses_equal_their_formulas_written_out(
    name: str, formula: Callable[[NDArray[np.float64]], float], batch: int, scale: float, seed: int
) -> None:
    logits = _logits(batch, scale, seed)
    expected = formula(logits.numpy())
    assert float(FUNCTIONS[name](logits)) == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert float(FUNCTIONS[name](logits.float())) == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("value", [-3.0, 0.0, 7.5])
def test_symmetric_infonce_of_constant_logits_is_log_batch(value: float) -> None:
    assert float(symmetric_infonce(torch.full((10, 10), value))) == pytest.approx(math.log(10), rel=1e-6)


@given(st.floats(-50.0, 50.0), st.integers(0, 1000))
def test_symmetric_infonce_ignores_a_constant(constant: float, seed: int) -> None:
    logits = _logits(8, 2.0, seed)
    assert float(symmetric_infonce(logits + constant)) == pytest.approx(
        float(symmetric_infonce(logits)), rel=1e-9
    )


def _plain_symmetric(logits: torch.Tensor) -> torch.Tensor:
    rows, columns = torch.logsumexp(logits, dim=1), torch.logsumexp(logits, dim=0)
    return (0.5 * (rows + columns) - logits.diagonal()).mean()


def _spread_over(width: float, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    logits = _logits(7, 1.0, 0)
    logits = (logits - logits.min()) / (logits.max() - logits.min())
    return (width * (logits - 0.5)).to(dtype).requires_grad_()


def _factors(width: float, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors of logits that spread over ``width``."""
    left = _spread_over(width, dtype).detach().requires_grad_()
    return left, torch.eye(len(left), dtype=dtype).requires_grad_()


def _fused(left: torch.Tensor, right: torch.Tensor, bound: float | None = None) -> torch.Tensor:
    return LOSSES.create(LOSSES.validate({"name": "symmetric_infonce"})).of_factors(left, right, bound)


# Up to SPREAD, one exponential serves rows and columns. A bound may be the exact one, or far too wide.
@pytest.mark.parametrize("bound", [False, True])
@pytest.mark.parametrize("width", [0.1, 5.0, 0.99 * SPREAD, 1.01 * SPREAD, 3.0 * SPREAD])
def test_loss_of_factors_equals_the_formula(width: float, bound: bool) -> None:
    left, right = _factors(width)
    limit = 0.5 * width if bound else None
    assert torch.autograd.gradcheck(lambda *both: _fused(both[0], both[1], limit), (left, right))
    assert torch.autograd.gradcheck(lambda *both: 3.0 * _fused(both[0], both[1], limit), (left, right))
    loss, plain = _fused(left, right, limit), _plain_symmetric(left @ right.T)
    torch.testing.assert_close(loss, plain, rtol=1e-10, atol=1e-12)
    for found, expected in zip(
        torch.autograd.grad(loss, (left, right)), torch.autograd.grad(plain, (left, right)), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("width", [5.0, 0.99 * SPREAD, 1.01 * SPREAD])
def test_gradient_in_single_precision_equals_that_in_double(width: float) -> None:
    narrow = _factors(width, torch.float32)
    (found,) = torch.autograd.grad(_fused(*narrow), narrow[:1])
    wide = [factor.detach().double().requires_grad_() for factor in narrow]
    (expected,) = torch.autograd.grad(_plain_symmetric(wide[0] @ wide[1].T), wide[:1])
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)


def test_gradient_of_factors_cannot_be_differentiated_again() -> None:
    left, right = _factors(5.0)
    (gradient,) = torch.autograd.grad(_fused(left, right), left, create_graph=True)
    assert not gradient.requires_grad


@pytest.mark.parametrize(
    "values", [{"name": "infonce"}, {"name": "nce"}, {"name": "symmetric_infonce", "logsumexp_penalty": 0.1}]
)
def test_other_losses_of_factors_are_those_of_their_logits(values: dict[str, object]) -> None:
    left, right = _factors(5.0, torch.float32)
    loss = LOSSES.create(LOSSES.validate(values))
    assert torch.equal(loss.of_factors(left, right), loss(left @ right.T))


def test_infonce_classifies_the_future_and_not_the_anchor() -> None:
    # Every row prefers its own future; every column prefers anchor 0.
    logits = torch.tensor([[9.0, 8.0, 8.0], [0.0, 5.0, 0.0], [0.0, 0.0, 5.0]])
    assert float(infonce(logits)) < 0.3
    assert float(infonce(logits.T)) > 1.0


@given(shift=st.lists(st.floats(-20.0, 20.0), min_size=8, max_size=8), seed=st.integers(0, 1000))
def test_infonce_ignores_a_constant_per_row(shift: list[float], seed: int) -> None:
    logits = _logits(8, 1.0, seed)
    shifted = logits + torch.tensor(shift, dtype=torch.float64)[:, None]  # a c(s, a)
    assert float(infonce(shifted)) == pytest.approx(float(infonce(logits)), rel=1e-9)


def test_column_term_determines_the_constant_per_row() -> None:
    logits = _logits(8, 1.0, 0)
    shift = torch.linspace(-2.0, 2.0, 8, dtype=torch.float64)[:, None]
    assert abs(float(symmetric_infonce(logits + shift)) - float(symmetric_infonce(logits))) > 0.1


@given(*SHAPES)
def test_penalty_equals_the_formula_written_out(batch: int, scale: float, seed: int) -> None:
    logits = _logits(batch, scale, seed)
    expected = np.square(np.log(np.exp(logits.numpy()).mean(1))).mean()
    assert float(logsumexp_penalty(logits)) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("batch", [2, 7, 64])
def test_penalty_is_zero_if_and_only_if_every_row_is_normalised(batch: int) -> None:
    logits = _logits(batch, 2.0, batch)
    normalised = logits - logits.logsumexp(1, keepdim=True) + math.log(batch)
    assert float(logsumexp_penalty(normalised)) == pytest.approx(0.0, abs=1e-24)
    for row in (0, batch - 1):
        for shift in (-0.3, 0.3):
            changed = normalised.clone()
            changed[row] += shift
            assert float(logsumexp_penalty(changed)) == pytest.approx(0.3**2 / batch, rel=1e-9)


@pytest.mark.parametrize("name", LOSSES.names)
def test_penalty_is_added_with_its_weight(name: str) -> None:
    logits = _logits(8, 1.0, 0).float()
    plain, penalised = _loss(name)(logits), _loss(name, 0.25)(logits)
    assert float(plain) == pytest.approx(float(FUNCTIONS[name](logits)), rel=1e-6)
    assert float(penalised - plain) == pytest.approx(0.25 * float(logsumexp_penalty(logits)), rel=1e-4)


@pytest.mark.parametrize("penalty", [0.0, 0.01])
@pytest.mark.parametrize("name", LOSSES.names)
def test_loss_of_bfloat16_logits_equals_that_of_float32_logits(name: str, penalty: float) -> None:
    # So many terms that a bfloat16 sum, with eight bits, would stop growing.
    logits = _logits(512, 1.0, 0).float()
    narrow = logits.bfloat16().requires_grad_()
    loss = _loss(name, penalty)(narrow)
    assert loss.dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(float(_loss(name, penalty)(logits)), rel=2e-3)
    # The remaining error is the rounding of the logits.
    rounded = _loss(name, penalty)(narrow.detach().float())
    assert float(loss.detach()) == pytest.approx(float(rounded), rel=1e-6)
    loss.backward()  # type: ignore[no-untyped-call]
    assert narrow.grad is not None
    assert torch.isfinite(narrow.grad).all()


def test_zero_is_the_best_constant_under_nce() -> None:
    values = {c: float(nce(torch.full((16, 16), c))) for c in (-1.0, -0.1, 0.0, 0.1, 1.0)}
    assert min(values, key=values.__getitem__) == 0.0
    assert values[0.0] == pytest.approx(2.0 * math.log(2.0))


@pytest.mark.parametrize(
    ("name", "penalty"), [("symmetric_infonce", 0.0), ("nce", 0.0), ("infonce", 0.0), ("infonce", 0.01)]
)
def test_optimum_is_the_log_density_ratio(name: str, penalty: float) -> None:
    """Free logits that minimise the expected loss of a small joint distribution are log p(z | x) / p(z)."""
    joint = torch.tensor([[0.20, 0.05, 0.05], [0.04, 0.30, 0.06], [0.10, 0.05, 0.15]], dtype=torch.float64)
    ratio = (joint / (joint.sum(1, keepdim=True) * joint.sum(0))).log()
    table = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    # A batch of 200 pairs whose counts match the joint distribution exactly.
    counts = (joint * 200).round().long()
    x = torch.repeat_interleave(torch.arange(9) // 3, counts.flatten())
    z = torch.repeat_interleave(torch.arange(9) % 3, counts.flatten())
    optimizer = torch.optim.Adam([table], lr=0.05)
    for _ in range(600):
        loss = _loss(name, penalty)(table[x][:, z])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    fitted = table.detach()
    if name == "symmetric_infonce":  # up to a constant
        fitted = fitted - fitted.mean() + ratio.mean()
    if name == "infonce" and not penalty:  # up to a constant per row
        fitted = fitted - fitted.mean(1, keepdim=True) + ratio.mean(1, keepdim=True)
    # A finite batch's negatives exclude (nce) or include (infonce) the pair itself: a bias of order 1 / B.
    np.testing.assert_allclose(fitted, ratio, atol=0.04)


@pytest.mark.parametrize("name", LOSSES.names)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_losses_and_gradients_stay_finite_at_extreme_logits(name: str, sign: float) -> None:
    logits = (sign * 1e4 * (2.0 * torch.eye(6) - 1.0)).requires_grad_()
    loss = _loss(name)(logits)
    loss.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    if sign > 0:
        assert float(loss.detach()) == pytest.approx(0.0, abs=1e-6)
    else:
        assert float(loss.detach()) == pytest.approx(2e4, rel=1e-3)


def test_unknown_loss_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValidationError, match="unknown loss 'xyz': known: symmetric_infonce, infonce, nce"):
        dynamics_parameters(loss="xyz")
    with pytest.raises(ValidationError, match="did you mean symmetric_infonce"):
        dynamics_parameters(loss="symetric_infonce")


def test_metrics_of_small_logits() -> None:
    logits = torch.tensor([[3.0, 1.0, 0.0], [4.0, 2.0, 0.0], [0.0, 0.0, 5.0]])
    metrics = {name: float(value) for name, value in contrastive_metrics(logits).items()}
    assert metrics["categorical_accuracy_future"] == pytest.approx(2 / 3)  # row 1 prefers future 0
    assert metrics["categorical_accuracy_anchor"] == pytest.approx(2 / 3)  # column 0 prefers anchor 1
    assert metrics["logit_positive"] == pytest.approx(10 / 3)
    assert metrics["logit_negative"] == pytest.approx(5 / 6)
    naive = math.log(3) - _naive_symmetric(logits.double().numpy())
    assert metrics["mutual_information_bound"] == pytest.approx(naive, rel=1e-5)


def test_the_two_accuracies_classify_futures_and_anchors() -> None:
    # Every row prefers future 0; every column prefers its own anchor.
    logits = torch.tensor([[9.0, 1.0, 1.0], [8.0, 2.0, 0.0], [8.0, 0.0, 2.0]])
    metrics = contrastive_metrics(logits)
    assert float(metrics["categorical_accuracy_future"]) == pytest.approx(1 / 3)
    assert float(metrics["categorical_accuracy_anchor"]) == pytest.approx(1.0)


@given(*SHAPES)
def test_mutual_information_bound_never_exceeds_log_batch(batch: int, scale: float, seed: int) -> None:
    bound = float(contrastive_metrics(_logits(batch, scale, seed))["mutual_information_bound"])
    assert bound <= math.log(batch) + 1e-9


def test_every_loss_is_registered_by_its_name() -> None:
    assert LOSSES.names == list(FUNCTIONS)
    assert dynamics_parameters().loss == SymmetricInfoNCEParameters()
    for name in LOSSES.names:
        # A bare name is enough.
        assert dynamics_parameters(loss=name).loss == LOSSES.validate({"name": name})
    with pytest.raises(ValidationError, match="loss"):
        dynamics_parameters(loss="hinge")


def test_negative_penalty_is_refused() -> None:
    with pytest.raises(ValidationError, match="logsumexp_penalty"):
        dynamics_parameters(loss={"name": "infonce", "logsumexp_penalty": -0.01})


class PowerParameters(LossParameters):
    """A setting of its own."""

    power: float = 1.0


class Power(Loss):
    """A loss of one's own."""

    Parameters = PowerParameters
    parameters: PowerParameters

    def of_logits(self, logits: Tensor) -> Tensor:
        assert logits.dtype == torch.float32
        return -(logits.diagonal() ** self.parameters.power).mean()


def test_loss_of_ones_own_has_settings_of_its_own_and_the_penalty() -> None:
    chosen = {"name": f"{__name__}:Power", "power": 3.0, "logsumexp_penalty": 0.5}
    loss = LOSSES.create(dynamics_parameters(loss=chosen).loss)
    assert isinstance(loss, Power)
    logits = _logits(8, 1.0, 0).float()
    expected = -logits.diagonal().pow(3.0).mean() + 0.5 * logsumexp_penalty(logits)
    assert float(loss(logits)) == pytest.approx(float(expected), rel=1e-6)
    assert torch.isfinite(loss(logits.bfloat16()))


class Doubled(SymmetricInfoNCE):
    """A class of the user's own that extends a built-in loss."""

    def of_logits(self, logits: Tensor) -> Tensor:
        return 2.0 * super().of_logits(logits)


def test_a_loss_that_extends_a_builtin_one_is_the_one_that_is_trained() -> None:
    left, right = _factors(5.0, torch.float32)
    loss = Doubled(LossParameters(name="own"))
    torch.testing.assert_close(loss.of_factors(left, right), 2.0 * _fused(left, right))
