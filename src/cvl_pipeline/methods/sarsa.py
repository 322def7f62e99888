"""One-step RL: SARSA, then one step of policy improvement (Brandfonbrener et al., NeurIPS 2021)."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from cvl_pipeline.episodes.data import EpisodeData
from cvl_pipeline.errors import InputError
from cvl_pipeline.methods.off_policy import follow
from cvl_pipeline.methods.one_step import OneStep, OneStepParameters, Phases, Unit, ValueLearning
from cvl_pipeline.readout.action_values import ActionValues


class SarsaLearning(ValueLearning):
    """Temporal differences with the logged next action.

    The last step of a truncated episode has no next action, so it does not train. Terminations count by the share of
    the other steps that do have one, so they do not weigh more where the log is cut into short windows.
    """

    def __init__(self, data: EpisodeData, parameters: Any, seed: int) -> None:
        """Build Q and its target, in the unit of the rewards."""
        super().__init__(data, parameters, seed)
        unit = Unit.of(self._rewards, torch.ones_like(self._rewards), parameters.discount)
        if (self._goes_on == 0.0).any():  # then the mean is no offset of all values: it ends with the episode
            unit = replace(unit, std=max(unit.std, abs(unit.mean)))
        self.unit = unit
        self._rewards = self.unit.standard(self._rewards)
        self._nothing = float(self.unit.standard(0.0))  # the value after a termination, in this unit
        followed = float(self._has_next.sum())
        self._of_termination = followed / float(self._goes_on.sum()) if followed else 1.0

    def finish(self) -> None:
        """Build the target of Q."""
        self.target_q = copy.deepcopy(self.q).requires_grad_(False)

    def training_loss(self, batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the squared temporal difference, summed over the networks."""
        own = self.settings
        follow(self.target_q, self.q, own.target_rate)
        step = self.steps(batch)
        with torch.no_grad():
            following = self.target_q(step.next_states, step.next_actions).mean(0)
            following = torch.where(step.goes_on > 0.0, following, self._nothing)
            target = (1.0 - own.discount) * step.rewards + own.discount * following
            weights = step.has_next + self._of_termination * (1.0 - step.goes_on)
        errors = weights * (self.q(step.states, step.actions) - target).square()
        return errors.mean(1).sum(), {"q": target.mean()}


class SARSA(OneStep):
    """Learns Q of the behaviour by SARSA; CVL's extraction makes the policy."""

    class Parameters(OneStepParameters):
        """The settings of ``sarsa``."""

        method: Literal["sarsa"] = Field(
            "sarsa", description="Q of the behaviour by SARSA, then advantage-weighted regression."
        )
        target_rate: float = Field(
            0.05,
            gt=0.0,
            le=1.0,
            description="Share of the online networks that enters the target per update. The published 0.005 needs "
            "more gradient steps.",
        )

    title = "SARSA + AWR"

    def check(self, data: EpisodeData) -> None:
        """Raise InputError also if no training step has a next action or a termination."""
        super().check(data)
        lengths = data.transitions.episode_starts.diff()[data.split.train]
        if not ((lengths > 1) | data.transitions.terminated[data.split.train]).any():
            raise InputError(
                "method 'sarsa' needs steps that another one follows: every training episode is a single step, cut off "
                "by the log; take mc_awr"
            )

    def learn(self, data: EpisodeData, seed: int, phases: Phases) -> ActionValues:
        """Learn Q by temporal differences."""
        parameters = phases.of(self.parameters, self.parameters.value_share)
        module = SarsaLearning(data, parameters, seed)
        phases.run("q", "Learning Q (sarsa)", module, self.fingerprint(parameters, seed, data))
        return module.values
