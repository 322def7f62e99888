"""Extracting a policy from the frozen critic."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import Generator, Tensor

from cvl_pipeline.errors import InputError, look_up
from cvl_pipeline.networks.actor import ActorShape, GaussianActor
from cvl_pipeline.networks.critic import ContrastiveCritic
from cvl_pipeline.policies.advantages import advantages
from cvl_pipeline.policies.parameters import PolicyParameters
from cvl_pipeline.readout.exact import Readout
from cvl_pipeline.training.fit import fit, run_fingerprint
from cvl_pipeline.training.module import OfflineModule
from cvl_pipeline.training.seeds import stream_seed
from cvl_pipeline.trajectories.container import Normalisation, Split, Transitions

VALIDATION_STATES = 2048
"""Held-out states of one measurement; drawn by the same seed every time."""


@dataclass(frozen=True)
class Batch:
    """Logged transitions: observations (B, O), actions (B, A) and advantages (B,), zero where unused."""

    observations: Tensor
    actions: Tensor
    advantages: Tensor


class PolicyExtraction(OfflineModule):
    """Trains an actor by one of the objectives below; the critic and the readout stay as they are."""

    def __init__(
        self,
        transitions: Transitions,
        split: Split,
        normalisation: Normalisation,
        parameters: PolicyParameters,
        seed: int,
        critic: ContrastiveCritic | None = None,
        readout: Readout | None = None,
    ) -> None:
        """Build the actor and hold the episodes.

        Args:
            transitions: all episodes.
            split: which of them train and which measure.
            normalisation: statistics of the training episodes.
            parameters: the stage's.
            seed: of the initial weights and the batches.
            critic: needed by every objective but ``bc``.
            readout: likewise.
        """
        super().__init__(parameters.training, seed)
        self.parameters_of_stage = parameters
        self._objective = policy_objective(parameters.objective)
        self._train = transitions.select(split.train)
        self._validation_data = transitions.select(split.validation)
        # A copy, so that the caller's stays trainable and where it is; in a list, so that it is neither a
        # submodule, nor trained, nor checkpointed.
        self._frozen = [copy.deepcopy(critic).requires_grad_(False)] if critic is not None else []
        self._readout = readout
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(seed, "initialisation", 1))
            self.actor = GaussianActor(
                ActorShape(
                    observation_size=transitions.observations.shape[1],
                    action_size=transitions.actions.shape[1],
                    hidden=parameters.hidden,
                ),
                normalisation,
                (transitions.action_low, transitions.action_high),
            )

    def on_fit_start(self) -> None:
        """Put the data where the network is and compute what stays constant: the advantages."""
        self._frozen = [critic.to(self.device) for critic in self._frozen]
        if self._readout is not None:
            self._readout = self._readout.to(self.device)
        train = self._train.to(self.device)
        advantage = torch.zeros(len(train), device=self.device)
        if self.parameters_of_stage.objective == "awr":
            critic, readout = self._critic_and_readout()
            advantage = advantages(critic, readout, train, self.parameters_of_stage, self.seed)
        held_out = self._validation_data.to(self.device)
        self._train_batch = Batch(train.states(), train.actions, advantage)
        self._validation_batch = Batch(
            held_out.states(), held_out.actions, torch.zeros(len(held_out), device=self.device)
        )

    def q_values(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Q of the frozen critic, (B, O) and (B, A) -> (B,), differentiable in the actions."""
        critic, readout = self._critic_and_readout()
        return readout.values(critic.phi(observations, actions))

    def training_loss(self, generator: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective on one batch of logged transitions."""
        return self._objective(
            self, self._draw(self._train_batch, self.training_parameters.batch_size, generator)
        )

    def validation_metrics(self, generator: Generator) -> dict[str, Tensor]:
        """How far the policy is from the logged actions on held-out states, and what Q says it gains."""
        batch = self._draw(self._validation_batch, VALIDATION_STATES, generator)
        actions = self.actor(batch.observations)
        metrics = {
            "action_error": (actions - batch.actions).square().mean(),
            "log_prob": self.actor.log_prob(batch.observations, batch.actions).mean(),
        }
        if self._frozen:
            logged = self.q_values(batch.observations, batch.actions)
            metrics["q_gain"] = (self.q_values(batch.observations, actions) - logged).mean()
        return metrics

    def _draw(self, data: Batch, count: int, generator: Generator) -> Batch:
        index = torch.randint(len(data.actions), (count,), generator=generator, device=self.device)
        return Batch(data.observations[index], data.actions[index], data.advantages[index])

    def _critic_and_readout(self) -> tuple[ContrastiveCritic, Readout]:
        if not self._frozen or self._readout is None:
            raise InputError(
                f"policy_extraction.objective '{self.parameters_of_stage.objective}' needs a critic and a "
                "readout; only 'bc' does without"
            )
        return self._frozen[0], self._readout


Objective = Callable[[PolicyExtraction, Batch], tuple[Tensor, dict[str, Tensor]]]


def behaviour_cloning(module: PolicyExtraction, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """``-log pi(a | s)``: the control."""
    return -module.actor.log_prob(batch.observations, batch.actions).mean(), {}


def advantage_weighted_regression(module: PolicyExtraction, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """``-exp(beta A / std A) log pi(a | s)``, weights clamped (Peng et al. 2019; Nair et al. 2020).

    The advantages arrive divided by their standard deviation, so ``beta`` means the same for any reward.
    """
    parameters = module.parameters_of_stage
    weights = (parameters.beta * batch.advantages).exp().clamp(max=parameters.max_weight)
    loss = -(weights * module.actor.log_prob(batch.observations, batch.actions)).mean()
    return loss, {"weight_mean": weights.mean(), "weight_max": weights.max()}


def ddpg_bc(module: PolicyExtraction, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """``-alpha Q(s, pi(s)) / mean |Q| + (pi(s) - a)^2`` (Fujimoto and Gu 2021, with CVL's Q)."""
    actions = module.actor(batch.observations)
    values = module.q_values(batch.observations, actions)
    scale = values.detach().abs().mean().clamp(min=1e-6)
    error = (actions - batch.actions).square().mean()
    loss = error - module.parameters_of_stage.alpha * values.mean() / scale
    return loss, {"q": values.mean()}


OBJECTIVES: dict[str, Objective] = {
    "awr": advantage_weighted_regression,
    "bc": behaviour_cloning,
    "ddpg_bc": ddpg_bc,
}


def policy_objective(name: str) -> Objective:
    """The objective of that name; raises InputError listing the known ones."""
    return look_up("objective", name, OBJECTIVES)


def train_policy(
    transitions: Transitions,
    split: Split,
    normalisation: Normalisation,
    parameters: PolicyParameters,
    seed: int,
    checkpoints: Path | None = None,
    *,
    critic: ContrastiveCritic | None = None,
    readout: Readout | None = None,
) -> tuple[GaussianActor, pd.DataFrame]:
    """Extract a policy by ``parameters.objective``; ``bc`` needs neither critic nor readout.

    Returns:
        The actor, on the CPU, and the history (see ``fit``).
    """
    module = PolicyExtraction(transitions, split, normalisation, parameters, seed, critic, readout)
    history = fit(
        module,
        description=f"Training the policy ({parameters.objective})",
        checkpoints=checkpoints,
        fingerprint=run_fingerprint(parameters, seed, transitions, split, normalisation, critic, readout),
    )
    return module.actor.cpu().eval(), history
