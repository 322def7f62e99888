"""Objectives of trials: numbers that the stages report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Stage = Literal["contrastive_dynamics", "value_readout", "evaluation"]

EPISODES = ("dataset", "data_ingestion.validation_fraction")
NEGATIVES = ("contrastive_dynamics.training.batch_size", "contrastive_dynamics.segments_per_episode")


@dataclass(frozen=True)
class Objective:
    """One number.

    Attributes:
        direction: the better direction.
        stage: the last stage that must run for it.
        online: whether it needs the environment; otherwise, it is measured on held-out episodes.
        incomparable: parameters, or groups of them, that change the meaning of the number. It cannot compare
            trials that differ in them.
        column: in the history of contrastive training, if it is measured there.
        why: reason why it cannot compare them.
    """

    direction: Literal["minimize", "maximize"]
    stage: Stage
    online: bool = False
    incomparable: tuple[str, ...] = EPISODES
    column: str | None = None
    why: str = "the held-out episodes differ"


_FUTURES = "the futures or the negatives differ"
OBJECTIVES: dict[str, Objective] = {
    "contrastive_loss": Objective(
        "minimize", "contrastive_dynamics", column="validation/loss", why=_FUTURES,
        incomparable=(*EPISODES, *NEGATIVES, "contrastive_dynamics.discount", "contrastive_dynamics.loss"),
    ),
    "mutual_information_bound": Objective(
        "maximize", "contrastive_dynamics", column="validation/mutual_information_bound", why=_FUTURES,
        incomparable=(*EPISODES, *NEGATIVES, "contrastive_dynamics.discount"),
    ),
    "returns_correlation": Objective("maximize", "value_readout"),
    "success_rate": Objective("maximize", "evaluation", online=True, incomparable=()),
    "return_mean": Objective("maximize", "evaluation", online=True, incomparable=()),
}  # fmt: skip
"""By name: held-out loss and mutual-information bound of the critic; Spearman's correlation of Q with
held-out returns; share of episodes solved and mean return of the policy in the environment."""
