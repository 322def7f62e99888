"""Parameters of the evaluation stage."""

from __future__ import annotations

from pydantic import Field

from cvl_pipeline.schema import LONGEST_EPISODE, MOST_EPISODES, MOST_PROCESSES, Strict, operational

RANKS = ("best", "median", "worst")
"""The episodes of a policy that are recorded, by their return."""


class VideoParameters(Strict):
    """How the best, the median and the worst evaluation episode of every policy are recorded."""

    size: int = Field(
        256, ge=64, le=2048, multiple_of=2, description="Height in pixels; MuJoCo's pictures are as wide."
    )
    every: int = Field(2, ge=1, le=LONGEST_EPISODE, description="A picture every so many steps.")
    frames_per_second: int = Field(30, ge=1, le=240, description="Speed at which the pictures are shown.")


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
    goals: bool = Field(
        False,
        description="Every episode has a goal of its own, an observation, which goal-conditioned policies (`crl`) "
        "pursue; other policies do not see it. Sources with known goals: `metaworld` (single tasks), `pointmaze`, "
        "`ogbench`.",
    )
    episodes: int = Field(
        50, ge=1, le=MOST_EPISODES, description="Episodes per policy, on goals that collection never used."
    )
    confidence: float = Field(0.95, gt=0.0, lt=1.0, description="Level of the bootstrap intervals.")
    workers: int | None = operational(
        None, ge=1, le=MOST_PROCESSES, description="Processes that step environments. null: one per core."
    )
    videos: VideoParameters | None = Field(
        None,
        description="Videos of the best, the median and the worst episode by return. null: none. See docs/report.md.",
    )
