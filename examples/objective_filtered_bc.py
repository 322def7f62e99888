"""An objective of your own: clone only the logged actions that are better than average.

The policy minimises ``-1[A(s, a) > threshold] log pi(a | s)``. This is critic-regularised regression with the binary
filter (Wang et al., *Critic Regularized Regression*, NeurIPS 2020). BAIL filters in a similar way, but by observed
returns (Chen et al., *BAIL: Best-Action Imitation Learning*, NeurIPS 2020).

Run it in the project's folder:

    PYTHONPATH=examples kedro run --env smoke --params policy_extraction.objective=objective_filtered_bc:FilteredBC

docs/guides/add-an-objective.md explains every line.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from cvl_pipeline.objectives.advantages import advantages
from cvl_pipeline.objectives.base import Objective, ObjectiveParameters, Setting
from cvl_pipeline.objectives.parameters import (
    STATE_VALUES,
    MarginalActionsParameters,
    StateValueParameters,
)
from cvl_pipeline.schema import Choice


class FilteredBC(Objective):
    """Behaviour cloning of the actions whose advantage exceeds a threshold."""

    class Parameters(ObjectiveParameters):
        """The settings of the objective, besides network and training."""

        threshold: float = Field(
            0.0, description="Smallest advantage of a cloned action, in standard deviations of the advantage."
        )
        state_value: Annotated[StateValueParameters, Choice(STATE_VALUES)] = Field(
            MarginalActionsParameters(), description="V(s) of the advantage Q(s, a) - V(s)."
        )

    parameters: Parameters
    needs_critic = True
    needs_rewards = False

    def prepare(self, setting: Setting) -> None:
        """Compute once which training transitions pass the filter."""
        advantage = advantages(
            setting.q, setting.transitions, setting.train_index, self.parameters.state_value, setting.seed
        )
        self._passes = (advantage > self.parameters.threshold).float()

    def loss(self, drawn: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the negative log-likelihood of the actions that pass, averaged over the whole batch."""
        batch = self.batch(drawn)
        passes = self._passes[batch.positions]
        log_prob = self.setting.actor.log_prob(batch.observations, batch.actions)
        return -(passes * log_prob).mean(), {"share_cloned": passes.mean()}
