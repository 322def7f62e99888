"""Extracting a policy from the frozen critic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Generator, Tensor

from cvl_pipeline.episodes.container import Normalisation, Rewards, Split, Transitions
from cvl_pipeline.episodes.sampling import Draws, Segments, SegmentSampler
from cvl_pipeline.errors import InputError, look_up
from cvl_pipeline.networks.actor import Actor, ActorShape, CategoricalActor, GaussianActor
from cvl_pipeline.networks.critic import ContrastiveCritic
from cvl_pipeline.objectives.advantages import advantages
from cvl_pipeline.objectives.best_of_n import BestOfN
from cvl_pipeline.objectives.parameters import PolicyParameters
from cvl_pipeline.readout.q_function import QFunction
from cvl_pipeline.readout.readouts import Readout
from cvl_pipeline.training.fit import fit, run_fingerprint
from cvl_pipeline.training.module import OfflineModule
from cvl_pipeline.training.processes import average, maximum, own_share
from cvl_pipeline.training.seeds import stream_seed

VALIDATION_STATES = 2048
"""Held-out states of one measurement; drawn by the same seed every time."""


@dataclass(frozen=True)
class Batch:
    """Logged transitions, and what some objectives need besides.

    Attributes:
        observations: (B, O).
        actions: (B, A).
        advantages: (B,), of awr.
        segments: the transitions with a future state each, of published.
        noise: (B, A) of the policy, of published.
    """

    observations: Tensor
    actions: Tensor
    advantages: Tensor | None = None
    segments: Segments | None = None
    noise: Tensor | None = None


@dataclass(frozen=True)
class Drawn:
    """What a batch will be made of: positions (B,) in the training transitions, or segments and noise."""

    positions: Tensor | None = None
    segments: Draws | None = None
    noise: Tensor | None = None


class PolicyExtraction(OfflineModule):
    """Trains an actor by one of the objectives below; the critic and the readout stay as they are."""

    def __init__(
        self,
        transitions: Transitions,
        split: Split,
        normalisation: Normalisation,
        parameters: PolicyParameters,
        seed: int,
        q: QFunction | None = None,
        labels: Rewards | None = None,
    ) -> None:
        """Build the actor and hold the episodes.

        Args:
            transitions: all episodes.
            split: which of them train and which measure.
            normalisation: statistics of the training episodes.
            parameters: the stage's.
            seed: of the initial weights and the batches.
            q: needed by every objective but ``bc``.
            labels: rewards of all transitions, needed by ``published`` alone.

        Raises:
            InputError: unknown objective, or one that lacks what it needs.
        """
        super().__init__(parameters.training, seed)
        self.parameters_of_stage = parameters
        self._objective = policy_objective(parameters.objective)
        for needed, name, by in ((q, "a critic and a readout", _NEEDS_Q), (labels, "rewards", _NEEDS_LABELS)):
            if needed is None and parameters.objective in by:
                raise InputError(f"policy_extraction.objective '{parameters.objective}' needs {name}")
        self._transitions = transitions
        self._split = split
        self._q = q
        self._labels = labels
        shape = ActorShape(
            observation_shape=tuple(transitions.observations.shape[1:]),
            action_size=transitions.actions.shape[1],
            hidden=parameters.hidden,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(seed, "initialisation", 1))
            self.actor: Actor = (
                CategoricalActor(shape, normalisation)
                if transitions.discrete
                else GaussianActor(shape, normalisation, (transitions.action_low, transitions.action_high))
            )

    def on_fit_start(self) -> None:
        """Put the data where the network is and compute what stays constant: the advantages."""
        # A frozen copy, so that the caller's critic stays trainable and where it is. Its holder is no module,
        # so it is neither trained nor checkpointed.
        self._q = self._q.frozen(self.device) if self._q else None
        self._data = self._transitions.to(self.device)
        self._train_index = self._data.transition_index(self._split.train)
        self._validation_index = self._data.transition_index(self._split.validation)
        self._advantages: Tensor | None = None
        if self.parameters_of_stage.objective == "awr":
            self._advantages = advantages(
                self.q, self._data, self._train_index, self.parameters_of_stage, self.seed
            )
        if self.parameters_of_stage.objective == "published" and self._labels is not None:
            self.sampler = SegmentSampler(self._data, self.q.readout.discount, self._split.train)
            self.rewards = self._labels.rewards.to(self.device)

    @property
    def q(self) -> QFunction:
        """Q of the behaviour policy."""
        assert self._q is not None  # checked where it was given
        return self._q

    def draw(self, batches: int, generator: Generator) -> list[Drawn]:
        """Which transitions, drawn with replacement, make the next batches."""
        size = self.training_parameters.batch_size
        if self.parameters_of_stage.objective == "published":
            segments = self.sampler.draw(batches * size, generator).split([size] * batches)
            noise = torch.split(self.actor.noise(batches * size, generator), size)
            return [Drawn(segments=s, noise=n) for s, n in zip(segments, noise, strict=True)]
        positions = self._positions(len(self._train_index), batches * size, generator)
        return [Drawn(part) for part in torch.split(positions, size)]

    def training_loss(self, batch: Drawn) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective on this process's share of one batch of logged transitions."""
        return self._objective(self, self._gather(batch))

    def _gather(self, drawn: Drawn) -> Batch:
        if drawn.positions is not None:
            positions = own_share(drawn.positions)
            advantages = None if self._advantages is None else self._advantages[positions]
            return self._batch(self._train_index[positions], advantages)
        assert drawn.segments is not None
        assert drawn.noise is not None
        segments = self.sampler.gather(drawn.segments.map(own_share))
        return Batch(segments.observations, segments.actions, segments=segments, noise=own_share(drawn.noise))

    def validation_metrics(self, generator: Generator) -> dict[str, Tensor]:
        """How far the policy is from the logged actions on held-out states, and what Q says it gains."""
        positions = self._positions(len(self._validation_index), VALIDATION_STATES, generator)
        batch = self._batch(self._validation_index[positions])
        actions = self.actor(batch.observations)
        metrics = {
            "action_error": (actions - batch.actions).square().mean(),
            "log_prob": self.actor.log_prob(batch.observations, batch.actions).mean(),
        }
        if self._q is not None:
            logged = self.q(batch.observations, batch.actions)
            metrics["q_gain"] = (self.q(batch.observations, actions) - logged).mean()
        return metrics

    def _positions(self, size: int, count: int, generator: Generator) -> Tensor:
        return torch.randint(size, (count,), generator=generator, device=self.device)

    def _batch(self, index: Tensor, advantages: Tensor | None = None) -> Batch:
        return Batch(self._data.states(index), self._data.actions.index_select(0, index), advantages)


Objective = Callable[[PolicyExtraction, Batch], tuple[Tensor, dict[str, Tensor]]]


def behaviour_cloning(module: PolicyExtraction, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """``-log pi(a | s)``: the control, and the proposals of ``best_of_n``."""
    return -module.actor.log_prob(batch.observations, batch.actions).mean(), {}


def advantage_weighted_regression(module: PolicyExtraction, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """``-exp(beta A / std A) log pi(a | s)``, weights clamped (Peng et al. 2019; Nair et al. 2020).

    The advantages arrive divided by their standard deviation, so ``beta`` means the same for any reward.
    """
    parameters = module.parameters_of_stage
    assert batch.advantages is not None
    weights = (parameters.beta * batch.advantages).exp().clamp(max=parameters.max_weight)
    loss = -(weights * module.actor.log_prob(batch.observations, batch.actions)).mean()
    return loss, {"weight_mean": weights.mean(), "weight_max": maximum(weights.max())}


def ddpg_bc(module: PolicyExtraction, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """``-alpha Q(s, pi(s)) / mean |Q| + (pi(s) - a)^2`` (Fujimoto and Gu 2021, with CVL's Q).

    With discrete actions Q is the policy's mean over all of them and the second term ``-log pi(a | s)``.
    """
    if isinstance(module.actor, CategoricalActor):
        log_probs = module.actor.log_probs(batch.observations)
        values = (log_probs.exp() * module.q.of_all_actions(batch.observations)).sum(-1)
        error = -(log_probs * batch.actions).sum(-1).mean()
    else:
        actions = module.actor(batch.observations)
        values = module.q(batch.observations, actions)
        error = (actions - batch.actions).square().mean()
    scale = average(values.detach().abs().mean()).clamp(min=1e-6)
    loss = error - module.parameters_of_stage.alpha * values.mean() / scale
    return loss, {"q": values.mean()}


def published(module: PolicyExtraction, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """``0.95 (alpha log pi - exp(f(s, pi(s), s+)) r+) + 0.05 (-log pi(a | s))``, s+ a positive of (s, a).

    The published code's objective: one future state, with its reward r+, stands for the whole readout.
    0.05 is ``cloning_share``, alpha ``entropy_weight``.
    """
    parameters, critic = module.parameters_of_stage, module.q.critic
    segments, observations = batch.segments, batch.observations
    assert segments is not None
    rewards = module.rewards[segments.arrivals].masked_fill(segments.absorbed, 0.0)
    psi = critic.psi(segments.futures, segments.absorbed)
    offsets = segments.offsets if critic.shape.horizon_conditioning else None
    if isinstance(module.actor, CategoricalActor):
        count = module.actor.shape.action_size
        candidates = torch.eye(count, device=observations.device).expand(len(observations), -1, -1)
        log_pi = module.actor.log_probs(observations)
        probabilities = log_pi.exp()  # (B, A): the mean over all actions
    else:
        assert batch.noise is not None
        noise = batch.noise.unsqueeze(1)
        candidates = module.actor.act_with_noise(observations, noise)  # (B, 1, A): one sample
        log_pi = module.actor.log_prob(observations, candidates.squeeze(1)).unsqueeze(1)
        probabilities = torch.ones_like(log_pi)
    count = candidates.shape[1]
    phi = critic.phi(
        observations.unsqueeze(1),
        candidates,
        None if offsets is None else offsets.unsqueeze(1).expand(-1, count),
    )
    ratio = ((phi * psi.unsqueeze(1)).sum(-1) / critic.temperature).exp()  # (B, count)
    gain = (probabilities * (ratio * rewards.unsqueeze(1) - parameters.entropy_weight * log_pi)).sum(1).mean()
    cloning = -module.actor.log_prob(observations, segments.actions).mean()
    return parameters.cloning_share * cloning - (1.0 - parameters.cloning_share) * gain, {"gain": gain}


OBJECTIVES: dict[str, Objective] = {
    "awr": advantage_weighted_regression,
    "bc": behaviour_cloning,
    "best_of_n": behaviour_cloning,
    "ddpg_bc": ddpg_bc,
    "published": published,
}
_NEEDS_Q = ("awr", "best_of_n", "ddpg_bc", "published")
_NEEDS_LABELS = ("published",)


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
    logs: Path | None = None,
    *,
    q: QFunction | None = None,
    labels: Rewards | None = None,
) -> tuple[Actor | BestOfN, pd.DataFrame]:
    """Extract a policy by ``parameters.objective``.

    Args:
        transitions: all episodes.
        split: which of them train and which measure.
        normalisation: statistics of the training episodes.
        parameters: the stage's.
        seed: of the initial weights and the batches.
        checkpoints: folder that unfinished training is kept in and resumed from.
        logs: folder of metrics.csv and other logs.
        q: needed by every objective but ``bc``.
        labels: rewards of all transitions, needed by ``published`` alone.

    Returns:
        The policy, on the CPU, and the history (see ``fit``).

    Raises:
        InputError: unknown objective, or one that lacks what it needs.
    """
    module = PolicyExtraction(transitions, split, normalisation, parameters, seed, q, labels)
    history = fit(
        module,
        description=f"Training the policy ({parameters.objective})",
        checkpoints=checkpoints,
        fingerprint=run_fingerprint(
            parameters, seed, transitions, split, normalisation, *((q.critic, q.readout) if q else ()), labels
        ),
        logs=logs,
    )
    actor = module.actor.cpu().eval()
    if parameters.objective != "best_of_n" or q is None:
        return actor, history
    generator = Generator().manual_seed(stream_seed(seed, "proposals", 0))
    return BestOfN(actor, q.frozen("cpu"), actor.noise(parameters.proposals, generator)).eval(), history


def extract_policy(
    critic: ContrastiveCritic, readout: Readout, **others: Any
) -> tuple[Actor | BestOfN, pd.DataFrame]:
    """``train_policy`` for the Q of a critic and a readout, which are two artifacts.

    Args:
        critic: trained; stays as it is.
        readout: turns it into Q.
        others: of ``train_policy``, but ``q``.
    """
    return train_policy(q=QFunction(critic, readout), **others)
