"""Advantage-weighted regression."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from cvl_pipeline.objectives.base import Objective, ObjectiveParameters, Setting
from cvl_pipeline.objectives.parameters import AdvantageWeights

if TYPE_CHECKING:
    from torch import Tensor


class AdvantageWeightedRegression(Objective):
    """``-w log pi(a | s)``, with ``w = exp(beta A / std A)``, clamped.

    The weight is that of Peng et al. (2019) and Nair et al. (2020). The advantages are divided by their standard
    deviation, so ``beta`` means the same for any reward.

    An episode that is steadily better than the others, where few are, counts as a whole by a share e, see
    ``whole_episodes``. With ``mean A`` of the transition's episode, in the same unit, its transitions have
    ``w = exp(beta ((1 - e) A + e mean A)) exp(beta e mean A)``. By the performance difference lemma (Kakade and
    Langford 2002), ``mean A`` is what the episode's operator reaches beyond the average of the log, so the policy
    improves in the choice of the operator, too. In the first exponent it replaces A: the operator's first steps lead to
    states that few others reach, but where they are taken, Q hardly tells them from the steps of others. Each factor is
    clamped, so good actions of good episodes outweigh many others, and single actions, whose advantages are full of
    chance, no more than without e.
    """

    class Parameters(AdvantageWeights, ObjectiveParameters):
        """The settings of ``awr``."""

        objective: Literal["awr"] = Field("awr", description="Advantage-weighted regression.")

    # Few transitions have most of the weight, so a network learns the noise of their actions by heart (docs/tuning.md).
    default_decay = 1.0

    def prepare(self, setting: Setting) -> None:
        """Compute the weights of all training transitions."""
        from cvl_pipeline.objectives.advantages import advantages, whole_episodes

        own = self.parameters
        values = advantages(
            setting.q, setting.transitions, setting.train_index, own.state_value, setting.seed
        )
        shares, means = whole_episodes(values, setting.transitions.episode_of(setting.train_index))
        shares = own.episode_weight * shares
        self._weights = self._weights_of((1.0 - shares) * values + shares * means)
        self._weights *= self._weights_of(shares * means)

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
