"""Contrastive losses, functions of the logits only."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from cvl_pipeline.dynamics.parameters import (
    InfoNCEParameters,
    LossParameters,
    NCEParameters,
    SymmetricInfoNCEParameters,
)
from cvl_pipeline.networks.mlp import transposed_product


def symmetric_infonce(logits: Tensor) -> Tensor:
    """Mean of the row-wise and the column-wise cross-entropy against the diagonal.

    ``logits[i, j] = f(s_i, a_i, s'_j)``, (B, B), with positives on the diagonal; returns a scalar. The row
    loss does not determine a term c(s, a) of f; the column loss does.
    """
    columns = torch.logsumexp(logits, dim=0) - logits.diagonal()  # (B,)
    return 0.5 * (infonce(logits) + columns.mean())


SPREAD = 80.0
"""Largest spread of logits for which ``exp(lowest - highest)`` does not underflow."""


def symmetric_infonce_gradients(
    left: Tensor, right: Tensor, bound: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Symmetric InfoNCE of the logits ``left @ right.T``, with one exponential per entry instead of four.

    At B = 1024, passes over the (B, B) logits cost as much as the networks on a CPU. So their gradient replaces them.

    Args:
        left: (B, D).
        right: (B, D).
        bound: largest absolute value that a logit can have, if it is known.

    Returns:
        The loss, a scalar, and its gradients with respect to both factors, (B, D) each.
    """
    logits = left @ right.t()  # (B, B)
    positives = logits.diagonal().mean()
    size = len(logits)
    if bound is None and logits.device.type == "cpu":  # a GPU would have to wait for the answer
        lowest, highest = (float(value) for value in torch.aminmax(logits))
        shift = highest if highest - lowest < SPREAD else None
    else:
        shift = bound if bound is not None and 2.0 * bound < SPREAD else None
    if shift is not None:
        weights = logits.sub_(shift).exp_()
        rows, columns = weights.sum(1), weights.sum(0)
        loss = 0.5 * (rows.log().mean() + columns.log().mean()) + shift - positives
        scales = (0.5 / size / rows).unsqueeze(1) + 0.5 / size / columns
        gradient = weights.mul_(scales)
    else:
        rows, columns = logits.logsumexp(1, keepdim=True), logits.logsumexp(0)
        loss = 0.5 * (rows.mean() + columns.mean()) - positives
        gradient = (logits - rows).exp_().add_(logits.sub_(columns).exp_()).mul_(0.5 / size)
    gradient.diagonal().sub_(1.0 / size)
    return loss, gradient @ right, transposed_product(gradient, left)


class _SymmetricInfoNCE(torch.autograd.Function):
    """Symmetric InfoNCE of two factors as one operation."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, bound: float | None) -> Tensor:
        """Return the loss; see ``symmetric_infonce_gradients``."""
        loss, *gradients = symmetric_infonce_gradients(left, right, bound)
        ctx.save_for_backward(*gradients)
        return loss

    @staticmethod
    @once_differentiable  # the gradient depends on the inputs too
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        """Return the gradients of both factors."""
        of_left, of_right = ctx.saved_tensors
        return of_left * gradients[0], of_right * gradients[0], None


def infonce(logits: Tensor) -> Tensor:
    """Row-wise cross-entropy against the diagonal, (B, B) -> scalar (van den Oord et al. 2018).

    It classifies which future of the batch belongs to a pair (s, a). A term c(s, a) of f cancels in every
    row, so the loss does not determine it; ``logsumexp_penalty`` limits it, and a self-normalised readout
    cancels it.
    """
    return (torch.logsumexp(logits, dim=1) - logits.diagonal()).mean()


def nce(logits: Tensor) -> Tensor:
    """Binary cross-entropy of every pair against the identity, (B, B) -> scalar.

    All positives together have the same weight as all negatives together, so the optimum is
    ``f = log p_gamma / p`` for every B; equal weights for all B^2 pairs would shift it by -log(B - 1).
    """
    batch = len(logits)
    positive = functional.softplus(-logits.diagonal()).mean()
    off_diagonal = functional.softplus(logits).sum() - functional.softplus(logits.diagonal()).sum()
    return positive + off_diagonal / (batch * (batch - 1))


def logsumexp_penalty(logits: Tensor) -> Tensor:
    """``mean_i (log 1/B sum_j exp L_ij)^2``, (B, B) -> scalar: keeps each row's normaliser near one.

    The published code squares the log of the sum instead of the mean. That lowers f by log B, which depends
    on the batch size.
    """
    return (torch.logsumexp(logits, dim=1) - math.log(len(logits))).square().mean()


class Loss(ABC):
    """A contrastive loss of the logits, with its penalty, in single precision.

    Logits may be bfloat16, whose eight bits are too few for a sum over a batch.
    """

    Parameters: ClassVar[type[LossParameters]] = LossParameters

    def __init__(self, parameters: LossParameters) -> None:
        """Store the parameters."""
        self.parameters = parameters

    @abstractmethod
    def of_logits(self, logits: Tensor) -> Tensor:
        """Return the loss without the penalty, (B, B) -> scalar."""

    def of_factors(self, left: Tensor, right: Tensor, bound: float | None = None) -> Tensor:
        """Return the loss of the logits ``left @ right.T``, (B, D) and (B, D) -> scalar.

        Args:
            left: phi / temperature, in single precision.
            right: psi, in single precision.
            bound: largest absolute value that a logit can have, if it is known.
        """
        return self(left @ right.t())

    def __call__(self, logits: Tensor) -> Tensor:
        """Return the loss, (B, B) -> scalar."""
        wide = logits.float()
        penalty = self.parameters.logsumexp_penalty
        return self.of_logits(wide) + penalty * logsumexp_penalty(wide) if penalty else self.of_logits(wide)


class SymmetricInfoNCE(Loss):
    """See ``symmetric_infonce``."""

    Parameters = SymmetricInfoNCEParameters

    @property
    def fused(self) -> bool:
        """Whether ``symmetric_infonce_gradients`` has this loss and its gradients."""
        own_code = type(self) is not SymmetricInfoNCE
        return not own_code and not self.parameters.logsumexp_penalty

    def of_logits(self, logits: Tensor) -> Tensor:
        """Return the loss without the penalty."""
        return symmetric_infonce(logits)

    def of_factors(self, left: Tensor, right: Tensor, bound: float | None = None) -> Tensor:
        """Return the loss; see ``Loss``."""
        if not self.fused:
            return super().of_factors(left, right, bound)
        loss: Tensor = _SymmetricInfoNCE.apply(left, right, bound)  # type: ignore[no-untyped-call]
        return loss


class InfoNCE(Loss):
    """See ``infonce``."""

    Parameters = InfoNCEParameters

    def of_logits(self, logits: Tensor) -> Tensor:
        """Return the loss without the penalty."""
        return infonce(logits)


class NCE(Loss):
    """See ``nce``."""

    Parameters = NCEParameters

    def of_logits(self, logits: Tensor) -> Tensor:
        """Return the loss without the penalty."""
        return nce(logits)


def contrastive_metrics(logits: Tensor) -> dict[str, Tensor]:
    """Measure how well the critic distinguishes positives from negatives, from (B, B) logits.

    Returns:
        Scalars. ``categorical_accuracy_future`` and ``categorical_accuracy_anchor``: shares of rows (which
        future belongs to this pair) and columns whose largest logit is the positive.
        ``mutual_information_bound``: the InfoNCE lower bound on the mutual information of (s, a) and s',
        ``log B - loss``, in nats (van den Oord et al. 2018); it cannot exceed log B. ``logit_positive`` and
        ``logit_negative``: mean logits.
    """
    batch = len(logits)
    truth = torch.arange(batch, device=logits.device)
    positives = logits.diagonal()
    return {
        "categorical_accuracy_future": (logits.argmax(1) == truth).float().mean(),
        "categorical_accuracy_anchor": (logits.argmax(0) == truth).float().mean(),
        "mutual_information_bound": math.log(batch) - symmetric_infonce(logits),
        "logit_positive": positives.mean(),
        "logit_negative": (logits.sum() - positives.sum()) / (batch * (batch - 1)),
    }
