"""Monte Carlo returns and advantage-weighted regression (Peng et al. 2019, without iterations)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cvl_pipeline.episodes.data import EpisodeData
from cvl_pipeline.methods.one_step import OneStep, OneStepParameters, Phases, ReturnRegression
from cvl_pipeline.readout.action_values import ActionValues


class MonteCarloAWR(OneStep):
    """Regresses Q on the logged discounted returns; CVL's extraction makes the policy."""

    class Parameters(OneStepParameters):
        """The settings of ``mc_awr``."""

        method: Literal["mc_awr"] = Field(
            "mc_awr", description="Regression of Q on logged returns, then advantage-weighted regression."
        )

    title = "MC + AWR"

    def learn(self, data: EpisodeData, seed: int, phases: Phases) -> ActionValues:
        """Regress Q on returns."""
        parameters = phases.of(self.parameters, self.parameters.value_share)
        module = ReturnRegression(data, parameters, seed)
        phases.run("q", "Regressing Q on returns (mc_awr)", module, self.fingerprint(parameters, seed, data))
        return module.values
