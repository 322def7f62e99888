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
    """``-exp(beta (A + k mean A) / std A) log pi(a | s)``, weights clamped (Peng et al. 2019; Nair et al. 2020).

    The advantages are divided by their standard deviation, so ``beta`` means the same for any reward. ``mean A`` is
    that of the transition's episode: by the performance difference lemma (Kakade and Langford 2002), what its operator
    reaches beyond the average of the log. So the policy improves in the choice of the operator, too. Chance, which
    single advantages are full of, has little share in it, so the limit of the weights can be high enough for good
    episodes to outweigh a hundred times as many others.
    """

    class Parameters(ObjectiveParameters):
        """The settings of ``awr``."""

        objective: Literal["awr"] = Field("awr", description="Advantage-weighted regression.")
        beta: float = Field(
            3.0,
            ge=0.0,
            description="Transitions are weighted by exp(beta * advantage / its standard deviation), see "
            "`episode_weight`.",
        )
        max_weight: float = Field(1e4, gt=0.0, description="Largest weight of a transition.")
        episode_weight: float = Field(
            1.0,
            ge=0.0,
            description="k: times that the mean advantage of an episode is added to those of its steps.",
        )
        state_value: Annotated[StateValueParameters, Choice(STATE_VALUES)] = Field(
            MarginalActionsParameters(), description="V(s) of the advantage Q(s, a) - V(s)."
        )

    def prepare(self, setting: Setting) -> None:
        """Compute the advantages of all training transitions."""
        from cvl_pipeline.objectives.advantages import advantages, episode_means

        own = advantages(
            setting.q, setting.transitions, setting.train_index, self.parameters.state_value, setting.seed
        )
        episodes = setting.transitions.episode_of(setting.train_index)
        self._advantages = own + self.parameters.episode_weight * episode_means(own, episodes)

    def loss(self, drawn: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted negative log-likelihood of the logged actions."""
        from cvl_pipeline.training.processes import maximum

        batch = self.batch(drawn)
        weights = (self.parameters.beta * self._advantages[batch.positions]).exp()
        weights = weights.clamp(max=self.parameters.max_weight)
        loss = -(weights * self.setting.actor.log_prob(batch.observations, batch.actions)).mean()
        return loss, {"weight_mean": weights.mean(), "weight_max": maximum(weights.max())}
