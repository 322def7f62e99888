"""Parameters of the evaluation stage."""

from __future__ import annotations

from pydantic import Field

from cvl_pipeline.schema import LONGEST_EPISODE, MOST_EPISODES, MOST_PROCESSES, Strict, operational


class EvaluationParameters(Strict):
    """How policies are judged in the real environment."""

    environment: str | None = Field(
        None,
        description="Gymnasium id of the environment, such as `CartPole-v1`. null: the dataset's own environment "
        "or its successor. A log without an environment is not evaluated in one.",
    )
    episode_steps: int | None = Field(
        None,
        ge=1,
        le=LONGEST_EPISODE,
        description="Steps after which an episode of that environment is truncated. null: its own limit; one "
        "without a limit is refused. Simulators that collect keep `dataset.episode_steps`.",
    )
    episodes: int = Field(
        50, ge=1, le=MOST_EPISODES, description="Episodes per policy, on goals that collection never used."
    )
    confidence: float = Field(0.95, gt=0.0, lt=1.0, description="Level of the bootstrap intervals.")
    workers: int | None = operational(
        None, ge=1, le=MOST_PROCESSES, description="Processes that step environments. null: one per core."
    )
