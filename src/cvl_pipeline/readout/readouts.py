"""Readouts, which map representations of state-action pairs to values."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Generator, Tensor

from cvl_pipeline.errors import InputError
from cvl_pipeline.networks.arrays import pieces
from cvl_pipeline.readout.references import CHUNK, References

QUERY_TILE, REFERENCE_TILE = 1024, 512
"""Size of a tile of logits: 2 MiB, which fits in a CPU cache; 4096 x 4096 takes seven times as long."""
LOG2_E = math.log2(math.e)
"""Factor from natural logarithms to those of base two: ``exp2`` takes a third of the time of ``exp``."""


@dataclass(frozen=True)
class Readout(ABC):
    """Maps phi(s, a) to ``Q(s, a) = 1/(1 - gamma) E_{s' ~ p_gamma(. | s, a)} r(s')``.

    Attributes:
        temperature: scalar, the critic's temperature.
        horizons: (H,) int64, offsets k over which Q is averaged; empty unless the critic is conditioned on k.
        discount: gamma.
        self_normalised: whether the weights are divided by their sum.
    """

    temperature: Tensor
    horizons: Tensor
    discount: float
    self_normalised: bool
    needs_inputs: ClassVar[bool] = False

    @abstractmethod
    def expectation(self, phi: Tensor) -> Tensor:
        """Expected reward per query, (B, D) -> (B,)."""

    def expectation_and_sample_size(self, phi: Tensor) -> tuple[Tensor, Tensor]:
        """Expected reward and effective sample size per query, (B, D) -> (B,) each; NaN without weights."""
        expectation = self.expectation(phi)
        return expectation, torch.full_like(expectation, torch.nan)

    @property
    def alone(self) -> Readout:
        """The readout without regression on returns; see ``RegressedReadout``."""
        return self

    def values(self, phi: Tensor, inputs: Tensor | None = None) -> Tensor:
        """Q per query, (B, D) or (B, H, D) -> (B,); differentiable with respect to ``phi`` and ``inputs``.

        Args:
            phi: (B, D), or (B, H, D) with one representation per horizon; results are averaged over horizons.
            inputs: (B, I), what phi was computed from (``ContrastiveCritic.inputs``); only a readout with
                ``needs_inputs`` reads them.
        """
        expectation: Tensor = _per_query(self.expectation, phi)
        return expectation / (1.0 - self.discount)

    def values_and_sample_size(self, phi: Tensor, inputs: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Q, and the effective sample size ``(sum_j w_j)^2 / sum_j w_j^2`` of its weights, (B,) each.

        The sample size takes a tenth more time. It is NaN for random features, which have no weights per reference.

        Args:
            phi: see ``values``.
            inputs: see ``values``.
        """
        expectation, size = _per_query(self.expectation_and_sample_size, phi)
        return expectation / (1.0 - self.discount), size

    def to(self, device: torch.device | str) -> Self:
        """Move the readout to a device."""
        moved: dict[str, Any] = {
            field.name: value.to(device)
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return dataclasses.replace(self, **moved)


def _per_query(function: Callable[[Tensor], Any], phi: Tensor) -> Any:
    """Results of a function of (B, D), averaged over the horizons of ``phi``, (B, D) or (B, H, D) -> (B,)."""
    # Single precision even under autocast, like the critic's own logits.
    with torch.autocast(phi.device.type, enabled=False):
        results = function(phi.float().reshape(-1, phi.shape[-1]))
    if phi.ndim == 2:
        return results
    if isinstance(results, Tensor):
        return results.reshape(phi.shape[:-1]).mean(1)
    return tuple(result.reshape(phi.shape[:-1]).mean(1) for result in results)


@dataclass(frozen=True)
class ExactReadout(Readout):
    """Self-normalised importance sampling over reference states z_1..z_K.

    ``Q(s, a) = 1/(1 - gamma) sum_j w_j r_j`` with ``w_j`` in proportion to ``p_j exp f(s, a, z_j)``. The
    references represent p(s') with probabilities p_j, and ``f = log p_gamma(s' | s, a) / p(s')`` (Mazoure et
    al. 2023, equation 6). Self-normalisation cancels any constant c(s, a) in f. Without it, the sum is
    ``sum_j p_j exp(f) r_j``.

    Attributes:
        psi: (K, D) representations of the references.
        rewards: (K,) reward on arrival at each reference; 0 in the absorbing state.
        log_weights: (K,) log p_j, finite.
    """

    psi: Tensor
    rewards: Tensor
    log_weights: Tensor

    def expectation(self, phi: Tensor) -> Tensor:
        """Expected reward, with one pass over the references per query tile."""
        return self._sums(phi, squares=False)[0]

    def expectation_and_sample_size(self, phi: Tensor) -> tuple[Tensor, Tensor]:
        """Expected reward and effective sample size, with one pass over the references per query tile."""
        expectation, total, squares = self._sums(phi, squares=True)
        return expectation, total.square() / squares

    def _sums(self, phi: Tensor, squares: bool) -> list[Tensor]:
        """Expected reward, sum of the weights and, if wanted, sum of their squares; (B,) each.

        The weights of a query are relative to its largest one.
        """
        queries, log_weights = phi * (LOG2_E / self.temperature), self.log_weights * LOG2_E
        tiles = [self._sums_of_tile(tile, log_weights, squares) for tile in pieces(queries, QUERY_TILE)]
        return [torch.cat(parts) for parts in zip(*tiles, strict=True)]

    def _sums_of_tile(self, queries: Tensor, log_weights: Tensor, squares: bool) -> list[Tensor]:
        """See ``_sums``; of scaled queries, (tile, D), tile by tile of the references."""
        parts = []
        for start in range(0, len(self.psi), REFERENCE_TILE):
            part = slice(start, start + REFERENCE_TILE)
            logits = torch.addmm(log_weights[part], queries, self.psi[part].T)  # (tile, tile)
            # The largest weight is a constant factor, so no gradient goes through it. The operations in place save
            # memory, and no gradient needs what they overwrite.
            peak = logits.detach().amax(1)
            weights = logits.sub_(peak.unsqueeze(1)).exp2_()
            sums = [peak, weights @ self.rewards[part], weights.sum(1)]
            parts.append([*sums, weights.square().sum(1)] if squares else sums)
        peaks, *columns = (torch.stack(column) for column in zip(*parts, strict=True))  # (tiles, tile)
        peak = peaks.amax(0)
        scale = (peaks - peak).exp2()
        rewards, total = ((scale * column).sum(0) for column in columns[:2])
        expectation = rewards / total if self.self_normalised else rewards * peak.exp2()
        return [expectation, total, *((scale.square() * column).sum(0) for column in columns[2:])]


@dataclass(frozen=True)
class FeatureReadout(Readout):
    """``Q = F(phi) . xi / (1 - gamma)`` with random features F of the kernel ``exp(x . y / T)``.

    ``xi = E[F(psi(z)) r(z)]`` is summed once over the references, so the cost of a query depends on the
    number of features and not on the size of the dataset. Self-normalisation divides by
    ``F(phi) . E[F(psi(z))]``.

    Attributes:
        directions: (M, D), rows of W.
        phases: (M,), b of the Fourier features; empty for positive features.
        xi: (M,), E[F(psi) r].
        normaliser: (M,), E[F(psi)].
    """

    directions: Tensor
    phases: Tensor
    xi: Tensor
    normaliser: Tensor

    def expectation(self, phi: Tensor) -> Tensor:
        """Expected reward with two inner products per query."""
        features = random_features(phi, self.directions, self.phases, self.temperature)
        expectation = features @ self.xi
        if self.self_normalised:
            normaliser = features @ self.normaliser
            # If Fourier features fail, the normaliser may be zero or negative. The floor keeps the value
            # finite, so that the report can measure its error; it is per query, independent of the batch.
            floor = 1e-3 * features.detach().norm(dim=-1) * self.normaliser.norm()
            expectation = expectation / torch.maximum(normaliser, floor)
        return expectation


def random_features(inputs: Tensor, directions: Tensor, phases: Tensor, temperature: Tensor) -> Tensor:
    """Features F with ``E[F(x) . F(y)] = exp(x . y / T)``, (..., D) -> (..., M).

    With phases, ``F(x) = sqrt(2/M) exp(|x|^2 / 2T) cos(W x + b)`` (Rahimi and Recht 2007; Mazoure et al.
    2023, section 4.2); without, ``F(x) = exp(W x - |x|^2 / 2T) / sqrt(M)``, which is positive (Choromanski et
    al. 2021). Rows of W ~ N(0, I/T), b ~ U(0, 2 pi).
    """
    half_norms = inputs.square().sum(-1, keepdim=True) / (2.0 * temperature)
    projected = inputs @ directions.T
    if len(phases):
        return math.sqrt(2.0 / len(phases)) * half_norms.exp() * torch.cos(projected + phases)
    return (projected - half_norms).exp() / math.sqrt(len(directions))


def draw_directions(
    count: int, size: int, temperature: Tensor, orthogonal: bool, generator: Generator
) -> Tensor:
    """Sample the rows of W, (M, D), each N(0, I/T); ``orthogonal``: in blocks of D (Yu et al. 2016)."""
    normal = torch.randn(count, size, generator=generator)
    if orthogonal:
        blocks = [_rotation(size, generator) for _ in range(0, count, size)]
        normal = torch.cat(blocks)[:count] * normal.norm(dim=1, keepdim=True)
    return normal / temperature.cpu().sqrt()


def _rotation(size: int, generator: Generator) -> Tensor:
    """Uniformly distributed orthogonal matrix.

    LAPACK's Q is not uniformly distributed: its signs are fixed, which biases the kernel (Mezzadri 2007).
    """
    q, r = torch.linalg.qr(torch.randn(size, size, generator=generator))
    rotation: Tensor = q * r.diagonal().sign()
    return rotation


def feature_readout(
    references: References,
    fourier: bool,
    features: int,
    generator: Generator,
    *,
    temperature: Tensor,
    horizons: Tensor,
    discount: float,
    self_normalised: bool,
) -> FeatureReadout:
    """Build a readout by summing the features of all references once.

    Args:
        references: weighted reference states.
        fourier: random Fourier features; else positive orthogonal ones.
        features: number of features, M.
        generator: samples W and b, on the CPU.
        temperature: see Readout.
        horizons: see Readout.
        discount: see Readout.
        self_normalised: see Readout.

    Raises:
        InputError: the features of the references are too large for single precision.
    """
    device = references.psi.device
    size = references.psi.shape[1]
    directions = draw_directions(features, size, temperature, not fourier, generator).to(device)
    phases = (torch.rand(features if fourier else 0, generator=generator) * 2.0 * math.pi).to(device)
    xi, normaliser = torch.zeros(2, features, device=device)
    weights = references.log_weights.exp()
    for start in range(0, len(references), CHUNK):
        part = slice(start, start + CHUNK)
        mapped = random_features(references.psi[part], directions, phases, temperature)  # (chunk, M)
        xi += (weights[part] * references.rewards[part]) @ mapped
        normaliser += weights[part] @ mapped
    if not (xi.isfinite().all() and normaliser.isfinite().all()):
        raise InputError(
            "value_readout: the features of the references overflow, because representations are long for the "
            "critic's temperature; use method exact, or train the critic with representation=unit_norm or a higher "
            "temperature"
        )
    return FeatureReadout(
        temperature=temperature, horizons=horizons, discount=discount, self_normalised=self_normalised,
        directions=directions, phases=phases, xi=xi, normaliser=normaliser,
    )  # fmt: skip
