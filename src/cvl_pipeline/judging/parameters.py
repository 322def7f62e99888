"""Parameters of the judgement from the log alone."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cvl_pipeline.schema import LONGEST_EPISODE, MOST_ROWS, MOST_STEPS, MOST_UNITS, Hidden, Strict

MOST_DRAWN = 2**24
"""Rows that torch can draw from with weights."""


class JudgingParameters(Strict):
    """How policies are judged from the log alone (docs/deploy.md)."""

    enabled: bool | None = Field(
        None,
        description="Whether policies are judged from the log. null: if no environment is known for the dataset.",
    )
    critic: Literal["regression", "contrastive"] = Field(
        "regression",
        description="The critic of the held-out episodes, which judges advantages. `regression`: networks fitted to "
        "lambda-returns, in seconds. `contrastive`: a second critic and readout with the settings of "
        "`contrastive_dynamics` and `value_readout`, which take as long as the first ones.",
    )
    discount: float | None = Field(
        None, gt=0.0, lt=1.0, description="Discount of judged values. null: that of the readout."
    )
    members: int = Field(
        4,
        ge=1,
        le=MOST_UNITS,
        description="Networks of each estimate, each fitted to a bootstrap sample of the episodes.",
    )
    hidden: Hidden = Field((128, 128), description="Sizes of these networks' hidden layers.")
    critic_steps: int = Field(
        1000,
        ge=1,
        le=MOST_STEPS,
        description="Gradient steps of each network of Q, and of each network of V before it, in regression.",
    )
    fqe_steps: int = Field(
        3000, ge=1, le=MOST_STEPS, description="Gradient steps of each network of fitted Q evaluation."
    )
    target_rate: float = Field(
        0.05,
        gt=0.0,
        le=1.0,
        description="Share of the network that enters the target of fitted Q evaluation per step, at least. With few "
        "steps or a discount near 1 it is larger, because the target would not arrive otherwise.",
    )
    batch_size: int = Field(256, ge=1, le=MOST_ROWS, description="Size of a batch.")
    learning_rate: float = Field(
        1e-3, gt=0.0, description="Learning rate of Adam. It falls to zero along half a cosine."
    )
    transitions: int = Field(
        50_000,
        ge=1,
        le=MOST_DRAWN,
        description="Most transitions of each part, training and held out, that are used, in whole episodes.",
    )
    neighbours: int = Field(
        16,
        ge=1,
        le=MOST_UNITS,
        description="Nearest training states whose actions an action is compared with.",
    )
    compared_states: int = Field(
        2000,
        ge=1,
        le=MOST_ROWS,
        description="Held-out states at which actions are compared with the neighbours'.",
    )
    rollouts: int = Field(
        32, ge=1, le=MOST_ROWS, description="Held-out episodes from whose first states policies are followed."
    )
    rollout_steps: int = Field(
        50, ge=1, le=LONGEST_EPISODE, description="Most steps for which they are followed."
    )
    confidence: float = Field(0.95, gt=0.0, lt=1.0, description="Level of the bootstrap intervals.")
