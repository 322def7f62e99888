"""Advantage-weighted regression."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from cvl_pipeline.objectives.base import Objective, ObjectiveParameters, Setting
from cvl_pipeline.objectives.parameters import (
    STATE_VALUES,
    MarginalActionsParameters,
    StateValueParameters,
)
from cvl_pipeline.schema import Choice

if TYPE_CHECKING:
    from torch import Tensor


class AdvantageWeightedRegression(Objective):
    """``-w log pi(a | s)``, with ``w = exp(beta A / std A) exp(k c beta mean A / std A)``, both clamped.

    The first factor is that of Peng et al. (2019) and Nair et al. (2020). The advantages are divided by their standard
    deviation, so ``beta`` means the same for any reward. ``mean A`` is that of the transition's episode: by the
    performance difference lemma (Kakade and Langford 2002), what its operator reaches beyond the average of the log. So
    the policy improves in the choice of the operator, too. c is zero unless the episode is steadily better and such
    episodes are rare, see ``episode_advantages``. A limit for each factor lets good actions of good episodes outweigh
    many others, and single actions, whose advantages are full of chance, no more than without it.
    """

    class Parameters(ObjectiveParameters):
        """The settings of ``awr``."""

        objective: Literal["awr"] = Field("awr", description="Advantage-weighted regression.")
        beta: float = Field(
            3.0,
            ge=0.0,
            description="Transitions are weighted by exp(beta * advantage / its standard deviation).",
        )
        max_weight: float = Field(
            100.0, gt=0.0, description="Largest weight of a transition, and of an episode."
        )
        episode_weight: float = Field(
            1.0,
            ge=0.0,
            description="k: an episode is weighted by exp(k * c * beta * its mean advantage), in the same unit, where "
            "c is 0 unless the episode is one of few that are steadily better, and at most 1.",
        )
        state_value: Annotated[StateValueParameters, Choice(STATE_VALUES)] = Field(
            MarginalActionsParameters(), description="V(s) of the advantage Q(s, a) - V(s)."
        )

    def prepare(self, setting: Setting) -> None:
        """Compute the weights of all training transitions."""
        from cvl_pipeline.objectives.advantages import advantages, episode_advantages

        own = self.parameters
        values = advantages(
            setting.q, setting.transitions, setting.train_index, own.state_value, setting.seed
        )
        self._weights = self._weights_of(values)
        if own.episode_weight > 0:
            episodes = setting.transitions.episode_of(setting.train_index)
            self._weights *= self._weights_of(own.episode_weight * episode_advantages(values, episodes))

    def loss(self, drawn: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted negative log-likelihood of the logged actions."""
        from cvl_pipeline.training.processes import maximum

        batch = self.batch(drawn)
        weights = self._weights[batch.positions]
        loss = -(weights * self.setting.actor.log_prob(batch.observations, batch.actions)).mean()
        return loss, {"weight_mean": weights.mean(), "weight_max": maximum(weights.max())}

    def _weights_of(self, advantages: Tensor) -> Tensor:
        weights: Tensor = (self.parameters.beta * advantages).exp().clamp(max=self.parameters.max_weight)
        return weights
