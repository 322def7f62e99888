"""Contrastive losses: functions of the logits alone."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from cvl_pipeline.errors import look_up

ContrastiveLoss = Callable[[Tensor], Tensor]


def symmetric_infonce(logits: Tensor) -> Tensor:
    """Mean of the row-wise and the column-wise cross-entropy against the diagonal.

    ``logits[i, j] = f(s_i, a_i, s'_j)``, (B, B), positives on the diagonal; returns a scalar. Rows alone
    leave an arbitrary c(s, a) in f; the columns remove it.
    """
    positives = logits.diagonal()
    rows = torch.logsumexp(logits, dim=1) - positives  # (B,)
    columns = torch.logsumexp(logits, dim=0) - positives  # (B,)
    return 0.5 * (rows.mean() + columns.mean())


def nce(logits: Tensor) -> Tensor:
    """Binary cross-entropy of every pair against the identity, (B, B) -> scalar.

    The positives together count as much as the negatives together, so that the optimum is
    ``f = log p_gamma / p`` whatever B is; equal weights for all B^2 pairs would shift it by -log(B - 1).
    """
    batch = len(logits)
    positive = functional.softplus(-logits.diagonal()).mean()
    off_diagonal = functional.softplus(logits).sum() - functional.softplus(logits.diagonal()).sum()
    return positive + off_diagonal / (batch * (batch - 1))


CONTRASTIVE_LOSSES: dict[str, ContrastiveLoss] = {"symmetric_infonce": symmetric_infonce, "nce": nce}


def contrastive_loss(name: str) -> ContrastiveLoss:
    """The loss of that name; raises InputError listing the known ones."""
    return look_up("loss", name, CONTRASTIVE_LOSSES)


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
