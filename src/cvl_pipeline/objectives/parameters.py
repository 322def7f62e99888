"""Parameters of the policy_extraction stage."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cvl_pipeline.training.parameters import Hidden, Strict, TrainingParameters


class PolicyParameters(Strict):
    """How a policy is extracted from the frozen critic."""

    objective: Literal["awr", "ddpg_bc", "best_of_n", "published", "bc"]
    hidden: Hidden  # hidden layers of the actor and of a fitted V
    beta: float = Field(ge=0.0)  # awr: advantages count as exp(beta * advantage / its standard deviation)
    max_weight: float = Field(gt=0.0)  # awr: no transition counts more than this
    baseline: Literal["marginal_actions", "fitted_value"]  # awr: V of the advantage Q(s, a) - V(s)
    baseline_actions: int = Field(ge=1)  # marginal_actions: actions that V averages over
    value_steps: int = Field(ge=1)  # fitted_value: gradient steps that fit V to Q
    alpha: float = Field(ge=0.0)  # ddpg_bc: weight of Q / mean |Q| against the cloning error
    proposals: int = Field(ge=1)  # best_of_n: N, actions that the cloned policy proposes beside its mode
    cloning_share: float = Field(ge=0.0, le=1.0)  # published: weight of cloning; the rest is the critic's
    entropy_weight: float = Field(ge=0.0)  # published: alpha of alpha log pi
    training: TrainingParameters
