"""Extracting a policy from the frozen critic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import Generator, Tensor

from cvl_pipeline.errors import unknown_name
from cvl_pipeline.networks.actor import ActorShape, GaussianActor
from cvl_pipeline.networks.critic import ContrastiveCritic
from cvl_pipeline.policies.advantages import advantages
from cvl_pipeline.policies.parameters import PolicyParameters
from cvl_pipeline.readout.exact import Readout, dataset_values
from cvl_pipeline.training.fit import fit, run_fingerprint
from cvl_pipeline.training.module import OfflineModule
from cvl_pipeline.training.seeds import stream_seed
from cvl_pipeline.trajectories.container import Normalisation, Split, Transitions


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
        # In a list, so that the frozen critic is neither a submodule, nor trained, nor checkpointed.
        self._frozen = [critic.requires_grad_(False)] if critic is not None else []
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
        self._normalisation = normalisation

    def on_fit_start(self) -> None:
        """Put the data where the network is and compute what stays constant: Q and the advantages."""
        self._critic = [critic.to(self.device) for critic in self._frozen]
        if self._readout is not None:
            self._readout = self._readout.to(self.device)
        self._train = self._train.to(self.device)
        self._validation_data = self._validation_data.to(self.device)
        self._train_batch = self._whole(self._train)
        self._validation_batch = self._whole(self._validation_data)

    def _whole(self, transitions: Transitions) -> Batch:
        observations = transitions.states()
        advantage = torch.zeros(len(transitions), device=self.device)
        if self.parameters_of_stage.objective == "awr":
            assert self._readout is not None
            values, _ = dataset_values(self._critic[0], self._readout, transitions)
            advantage = advantages(
                observations, values, self._normalisation, self.parameters_of_stage, self.seed
            )
        return Batch(observations, transitions.actions, advantage)

    def q_values(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Q of the frozen critic, (B, O) and (B, A) -> (B,)."""
        assert self._readout is not None
        return self._readout.values(self._critic[0].phi(observations, actions))

    def training_loss(self, generator: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective on one batch of logged transitions."""
        data = self._train_batch
        index = torch.randint(
            len(data.actions), (self.training_parameters.batch_size,), generator=generator, device=self.device
        )
        batch = Batch(data.observations[index], data.actions[index], data.advantages[index])
        return self._objective(self, batch)

    def validation_metrics(self, generator: Generator) -> dict[str, Tensor]:
        """The objective on all held-out transitions and the mean squared cloning error."""
        data = self._validation_batch
        index = torch.randint(
            len(data.actions), (min(2048, len(data.actions)),), generator=generator, device=self.device
        )
        batch = Batch(data.observations[index], data.actions[index], data.advantages[index])
        loss, info = self._objective(self, batch)
        error = (self.actor(batch.observations) - batch.actions).square().mean()
        return {"loss": loss, "action_error": error, **info}


Objective = Callable[[PolicyExtraction, Batch], tuple[Tensor, dict[str, Tensor]]]


def behaviour_cloning(module: PolicyExtraction, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """``-log pi(a | s)``: the control."""
    return -module.actor.log_prob(batch.observations, batch.actions).mean(), {}


def advantage_weighted_regression(
    module: PolicyExtraction, batch: Batch
) -> tuple[Tensor, dict[str, Tensor]]:
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
    if name not in OBJECTIVES:
        raise unknown_name("objective", name, sorted(OBJECTIVES))
    return OBJECTIVES[name]


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
        fingerprint=run_fingerprint(parameters, seed, transitions, split, critic, readout),
    )
    return module.actor.cpu().eval(), history
