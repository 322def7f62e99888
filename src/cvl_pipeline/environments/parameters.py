"""Parameters of the evaluation stage."""

from __future__ import annotations

from pydantic import Field

from cvl_pipeline.training.parameters import Strict


class EvaluationParameters(Strict):
    """How policies are judged in the real environment."""

    environment: str | None  # a Gymnasium id; null: the dataset's own, or its successor
    episode_steps: int | None = Field(ge=1)  # of that environment, not of a simulator's; null: its own limit
    episodes: int = Field(ge=1)  # rollouts of each policy, on goals that collection never used
    confidence: float = Field(gt=0.0, lt=1.0)  # level of the bootstrap intervals
    workers: int | None = Field(ge=1)  # processes; null: one a core
