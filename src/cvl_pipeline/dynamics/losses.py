"""Contrastive losses: functions of the logits alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from cvl_pipeline.errors import look_up

ContrastiveLoss = Callable[[Tensor], Tensor]


def symmetric_infonce(logits: Tensor) -> Tensor:
    """Mean of the row-wise and the column-wise cross-entropy against the diagonal.

    ``logits[i, j] = f(s_i, a_i, s'_j)``, (B, B), positives on the diagonal; returns a scalar. Rows alone
    leave an arbitrary c(s, a) in f; the columns remove it.
    """
    if logits.device.type == "cpu":
        lowest, highest = torch.aminmax(logits.detach())
        if highest - lowest < SPREAD:
            loss: Tensor = _SymmetricInfoNCE.apply(logits, highest)  # type: ignore[no-untyped-call]
            return loss
    columns = torch.logsumexp(logits, dim=0) - logits.diagonal()  # (B,)
    return 0.5 * (infonce(logits) + columns.mean())


SPREAD = 80.0
"""Of logits, up to which the exponential of the lowest, relative to the highest, does not underflow."""


class _SymmetricInfoNCE(torch.autograd.Function):
    """The same with one exponential an entry, for rows and columns, forward and backward, instead of four.

    On a processor the passes over the (B, B) logits cost as much as the networks do at B = 1024; a GPU would
    wait for the spread, which has to be known beforehand.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, highest: Tensor) -> Tensor:
        weights = (logits - highest).exp_()  # (B, B)
        rows, columns = weights.sum(1), weights.sum(0)
        ctx.save_for_backward(weights, rows, columns)
        return 0.5 * (rows.log().mean() + columns.log().mean()) + highest - logits.diagonal().mean()

    @staticmethod
    @once_differentiable  # the weights depend on the logits too
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        weights, rows, columns = ctx.saved_tensors
        scale = gradients[0] / len(rows)
        gradient = (0.5 * scale / rows).unsqueeze(1) + 0.5 * scale / columns
        gradient.mul_(weights).diagonal().sub_(scale)
        return gradient, None


def infonce(logits: Tensor) -> Tensor:
    """Row-wise cross-entropy against the diagonal, (B, B) -> scalar (van den Oord et al. 2018).

    Which of the batch's futures belongs to this pair? A term c(s, a) of f cancels in every row, so the loss
    says nothing about it; ``logsumexp_penalty`` holds it back, a self-normalised readout cancels it again.
    """
    return (torch.logsumexp(logits, dim=1) - logits.diagonal()).mean()


def nce(logits: Tensor) -> Tensor:
    """Binary cross-entropy of every pair against the identity, (B, B) -> scalar.

    The positives together count as much as the negatives together, so that the optimum is
    ``f = log p_gamma / p`` whatever B is; equal weights for all B^2 pairs would shift it by -log(B - 1).
    """
    batch = len(logits)
    positive = functional.softplus(-logits.diagonal()).mean()
    off_diagonal = functional.softplus(logits).sum() - functional.softplus(logits.diagonal()).sum()
    return positive + off_diagonal / (batch * (batch - 1))


def logsumexp_penalty(logits: Tensor) -> Tensor:
    """``mean_i (log 1/B sum_j exp L_ij)^2``, (B, B) -> scalar: keeps each row's normaliser near one.

    The published code squares the sum, not the mean; that pulls f down by log B, and by another amount at
    every batch size.
    """
    return (torch.logsumexp(logits, dim=1) - math.log(len(logits))).square().mean()


CONTRASTIVE_LOSSES: dict[str, ContrastiveLoss] = {
    "symmetric_infonce": symmetric_infonce,
    "infonce": infonce,
    "nce": nce,
}


def contrastive_loss(name: str, penalty: float = 0.0) -> ContrastiveLoss:
    """The loss of that name, plus ``penalty`` times the log-sum-exp penalty, in single precision.

    Logits may come in bfloat16, whose eight bits would lose what a sum over a batch adds up.

    Raises:
        InputError: unknown name; the message lists the known ones.
    """
    chosen = look_up("loss", name, CONTRASTIVE_LOSSES)

    def loss(logits: Tensor) -> Tensor:
        wide = logits.float()
        return chosen(wide) + penalty * logsumexp_penalty(wide) if penalty else chosen(wide)

    return loss


def contrastive_metrics(logits: Tensor) -> dict[str, Tensor]:
    """How well the critic tells positives from negatives, from (B, B) logits.

    Returns scalars: the share of rows (``categorical_accuracy_future``: which future belongs to this
    pair) and columns (``categorical_accuracy_anchor``) whose largest logit is the positive; the InfoNCE
    lower bound on the mutual information of (s, a) and s', ``log B - loss``, in nats (van den Oord et
    al. 2018), which cannot exceed log B; and the mean logit of positives and negatives.
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
