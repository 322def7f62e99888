"""Contrastive RL (Eysenbach et al. 2022): one policy for any goal, from a contrastive critic.

The critic is of CVL's kind, but looks as far ahead as goals are. Its ``f(s, a, g) = log p_gamma(g | s, a) / p(g)`` says
how soon, and how surely, an action leads to a goal. The actor pi(a | s, g) raises it for goals in hindsight: states
that the log reached later. So training reads no rewards, as in OGBench's agent ``crl`` (Park et al. 2025). The reward
chooses the goals when the policy acts: logged states that have the best labels (see ``GoalPolicy``).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field
from torch import Generator, Tensor

from cvl_pipeline.dynamics.module import ContrastiveDynamics
from cvl_pipeline.dynamics.parameters import DynamicsParameters, DynamicsTraining
from cvl_pipeline.episodes.data import EpisodeData
from cvl_pipeline.episodes.parts import beside
from cvl_pipeline.episodes.shifts import random_shift
from cvl_pipeline.errors import InputError
from cvl_pipeline.methods.base import Method, MethodParameters
from cvl_pipeline.methods.one_step import Phases
from cvl_pipeline.networks.actor import CategoricalActor, GaussianActor
from cvl_pipeline.networks.critic import ContrastiveCritic
from cvl_pipeline.networks.goal_policy import (
    MOST_GOALS,
    GoalPolicy,
    closeness,
    make_goal_actor,
    psi_of_goals,
)
from cvl_pipeline.objectives.base import TrainedPolicy
from cvl_pipeline.schema import MOST_UNITS
from cvl_pipeline.training.fit import run_fingerprint
from cvl_pipeline.training.module import OfflineModule
from cvl_pipeline.training.parameters import TrainingParameters
from cvl_pipeline.training.processes import average, maximum, own_share
from cvl_pipeline.training.seeds import stream_seed

if TYPE_CHECKING:
    from cvl_pipeline.readout.q_function import QFunction

VALIDATION_STATES = 2048
"""Held-out states of one measurement; the same seed draws them every time."""


class CRL(Method):
    """Contrastive RL: a critic, then a goal-conditioned policy.

    ``training.steps`` are those of both phases. Both have the networks ``hidden`` and ``encoder``.
    """

    class Parameters(MethodParameters):
        """The settings of ``crl``."""

        method: Literal["crl"] = Field("crl", description="Contrastive RL, a policy for any goal.")
        discount: float = Field(
            0.99,
            gt=0.0,
            lt=1.0,
            description="Discount of the critic, per step: how far ahead it looks. Published: 0.99.",
        )
        critic_share: float = Field(
            0.4,
            gt=0.0,
            lt=1.0,
            description="Share of `training.steps` that train the critic, as of a default CVL.",
        )
        temperature: float = Field(0.1, gt=0.0, description="The critic's logits are divided by it.")
        representation_size: int = Field(64, ge=1, le=MOST_UNITS, description="Size D of phi and psi.")
        extraction: Literal["ddpg_bc", "awr"] = Field(
            "ddpg_bc",
            description="How the policy is extracted: `ddpg_bc` maximises f(s, pi(s, g), g), divided by its mean "
            "absolute value, minus the cloning error; `awr` clones actions with weights exp(beta * advantage).",
        )
        bc_weight: float = Field(
            1.0,
            ge=0.0,
            description="Weight of the cloning error in `ddpg_bc`: half the squared distance to the logged action, or "
            "-log pi if actions are choices. OGBench calls it `alpha`.",
        )
        beta: float = Field(
            1.0,
            ge=0.0,
            description="Transitions of `awr` are weighted by exp(beta * advantage), where the advantage is f(s, a, g) "
            "minus its mean over other actions.",
        )
        max_weight: float = Field(100.0, gt=0.0, description="Largest weight of a transition in `awr`.")
        other_actions: int = Field(
            4,
            ge=1,
            le=MOST_UNITS,
            description="Number of actions, logged anywhere in the data, in the mean of `awr`. If actions are choices, "
            "it is the mean over all of them, by their frequency.",
        )
        goal_sampling: Literal["uniform", "geometric"] = Field(
            "uniform",
            description="How far ahead in its episode a transition's goal is: `uniform` over the rest of the episode, "
            "or `geometric`.",
        )
        goal_discount: float = Field(
            0.99,
            gt=0.0,
            lt=1.0,
            description="Discount of `geometric` goals, per step.",
        )
        random_goals: float = Field(
            0.0,
            ge=0.0,
            le=1.0,
            description="Share of transitions whose goal is a state of any training episode.",
        )
        goal_share: float = Field(
            0.01,
            gt=0.0,
            le=1.0,
            description="Share of logged states, those with the highest rewards, that are goals when the policy acts. "
            "If the log has successes, the goals are those.",
        )
        goals: int = Field(
            64,
            ge=1,
            le=MOST_GOALS,
            description="Largest number of goals; of more, some are chosen at random. Acting takes time for each.",
        )

    title = "CRL"
    learns_values = True

    def train(
        self,
        data: EpisodeData,
        seed: int,
        *,
        values: QFunction | None = None,
        checkpoints: Path | None = None,
        logs: Path | None = None,
    ) -> TrainedPolicy:
        """Train the critic, then the actor on goals in hindsight, and choose the goals by the rewards."""
        if data.rewards is None:
            raise InputError("method 'crl' needs rewards, which choose the goals")
        own, phases = self.parameters, Phases(checkpoints, logs)
        goals = goal_states(data, own.goal_share, own.goals, seed)
        reward_free = data.without_rewards()
        parts = reward_free.parts().values()
        critic_parameters = self.critic_parameters(phases.of(own, own.critic_share).training)
        dynamics = ContrastiveDynamics(reward_free, critic_parameters, seed)
        fingerprint = run_fingerprint(critic_parameters, seed, *parts)
        phases.run("critic", "Training the critic (crl)", dynamics, fingerprint)
        parameters = phases.of(own, 1.0 - own.critic_share)
        module = GoalReaching(reward_free, parameters, seed, dynamics.critic)
        fingerprint = run_fingerprint(parameters, seed, *parts, module.critic)
        history = phases.last("policy", "Training CRL", module, fingerprint)
        module.cpu()
        return TrainedPolicy(GoalPolicy(module.actor, module.critic, goals).eval(), history)

    def critic_parameters(self, training: TrainingParameters) -> DynamicsParameters:
        """Parameters of the critic, which is trained as given."""
        own = self.parameters
        return DynamicsParameters(
            discount=own.discount,
            temperature=own.temperature,
            representation_size=own.representation_size,
            hidden=own.hidden,
            encoder=own.encoder,
            part_encoders=own.part_encoders,
            training=DynamicsTraining.model_validate(training.model_dump()),
        )


def goal_states(data: EpisodeData, share: float, count: int, seed: int) -> Tensor:
    """Logged states of the training episodes that are worth reaching, (G, O), G <= count.

    These are the states that count as success. If there is none, they are the share of states with the highest
    rewards; of a sparse reward, at most those above the lowest one. The absorbing state after a termination is not
    among them, because nothing is observed there.

    Args:
        data: the episodes, with rewards.
        share: of the states.
        count: most goals.
        seed: of the choice among more.

    Raises:
        InputError: no success is logged, and all rewards are equal.
    """
    assert data.rewards is not None  # checked by the method
    index = data.transitions.transition_index(data.split.train)
    labels = data.rewards.select(index)
    chosen = labels.successes if labels.reports_success else torch.zeros_like(labels.successes)
    if not chosen.any():
        rewards = labels.rewards
        if rewards.amin() == rewards.amax():
            raise InputError(
                "method 'crl' chooses its goals by reward or success, and all logged states of the training episodes "
                "have the same: choose another reward, or leave this method out"
            )
        threshold = rewards.topk(math.ceil(share * len(rewards))).values[-1]
        chosen = (rewards >= threshold) & (rewards > rewards.amin())
    candidates = index[chosen]
    if len(candidates) > count:
        generator = Generator().manual_seed(stream_seed(seed, "goals", 0))
        order = torch.randperm(len(candidates), generator=generator)
        candidates = candidates[order[:count].sort().values]
    return data.transitions.arrivals(candidates)


@dataclass(frozen=True)
class Positions:
    """Positions of a batch in the log.

    Attributes:
        index: (B,) int64, transitions.
        goal_rows: (B,) int64, rows of the observations that are their goals.
        others: (B, M) int64, transitions whose actions the advantage compares with.
    """

    index: Tensor
    goal_rows: Tensor
    others: Tensor


@dataclass(frozen=True)
class HindsightBatch:
    """Observations (B, O), actions (B, A), goals (B, O), and the actions of other transitions (B, M, A)."""

    observations: Tensor
    actions: Tensor
    goals: Tensor
    others: Tensor


class GoalReaching(OfflineModule):
    """Trains pi(a | s, g) with a frozen copy of a critic."""

    def __init__(
        self, data: EpisodeData, parameters: CRL.Parameters, seed: int, critic: ContrastiveCritic
    ) -> None:
        """Build the actor and hold the episodes, whose rewards are not read."""
        super().__init__(parameters.training, seed, parameters)
        self.own_code = parameters.own_encoder
        self.graphable = not self.own_code
        self.crl = parameters
        self._data = data
        self.augmentation = random_shift(data.transitions, parameters.training.random_shift)
        self.critic = copy.deepcopy(critic).requires_grad_(False)
        compares = parameters.extraction == "awr" and not data.transitions.discrete
        self._others = parameters.other_actions if compares else 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(seed, "initialisation", 3))
            self.actor = make_goal_actor(
                data.transitions,
                data.normalisation,
                parameters.hidden,
                parameters.encoding,
            )

    def on_fit_start(self) -> None:
        """Put the data where the network is, if they fit."""
        log, split = self._data.transitions, self._data.split
        self._transitions = log.to(self.place(log.observations, log.actions))
        self._train_index = self._transitions.transition_index(split.train)
        self._validation_index = self._transitions.transition_index(split.validation)
        if self._transitions.discrete:
            self._frequency = self._transitions.actions[self._train_index].mean(0).to(self.device)

    def draw(self, batches: int, generator: Generator) -> Sequence[Positions]:
        """Draw transitions of the next batches, with replacement, and goals that their episodes reached later."""
        size = self.training_parameters.batch_size
        positions = self._positions(self._train_index, batches * size, generator)
        columns = (torch.split(column, size) for column in vars(positions).values())
        return [Positions(*parts) for parts in zip(*columns, strict=True)]

    def _positions(self, among: Tensor, count: int, generator: Generator) -> Positions:
        device, data = among.device, self._transitions

        def transitions(*shape: int) -> Tensor:
            return among[torch.randint(len(among), shape, generator=generator, device=device)]

        index = transitions(count)
        episodes = data.episode_of(index)
        left = data.episode_starts[episodes + 1] - index  # steps to the last observation, at least 1
        share = torch.rand(count, generator=generator, device=device, dtype=torch.float64)  # of the way
        if self.crl.goal_sampling == "uniform":
            offsets = share * left
        else:  # truncated to the logged rest: nothing is observed in the absorbing state
            log_discount = math.log(self.crl.goal_discount)
            offsets = torch.log1p(share * torch.expm1(left.double() * log_discount)) / log_discount
        rows = index + episodes + torch.minimum(offsets.long() + 1, left)  # rounding
        elsewhere = transitions(count)
        chosen = torch.rand(count, generator=generator, device=device) < self.crl.random_goals
        rows = torch.where(chosen, elsewhere + data.episode_of(elsewhere) + 1, rows)
        return Positions(index, rows, transitions(count, self._others))

    def read(self, entry: Positions) -> HindsightBatch:
        """Read the rows of this process's share of a batch."""
        return self._rows(Positions(*(own_share(column) for column in vars(entry).values())))

    def _rows(self, places: Positions) -> HindsightBatch:
        data = self._transitions
        return HindsightBatch(
            data.states(places.index),
            data.actions.index_select(0, places.index),
            data.observations.index_select(0, places.goal_rows),
            data.actions[places.others],
        )

    def training_loss(self, batch: Positions | HindsightBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of the extraction; the critic stays as it is."""
        rows = self.read(batch) if isinstance(batch, Positions) else batch
        inputs = beside(rows.observations, rows.goals, self._data.transitions.parts)
        with torch.no_grad():
            psi = psi_of_goals(self.critic, rows.goals)
        loss = self._awr if self.crl.extraction == "awr" else self._ddpg_bc
        return loss(rows, inputs, psi)

    def _ddpg_bc(self, rows: HindsightBatch, inputs: Tensor, psi: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        if isinstance(self.actor, CategoricalActor):
            log_probs = self.actor.log_probs(inputs)
            f = (log_probs.exp() * self._of_all_actions(rows.observations, psi)).sum(-1)
            error = -(log_probs * rows.actions).sum(-1).mean()
        else:
            actions = self.actor(inputs)
            f = closeness(self.critic, rows.observations, actions, psi)
            assert isinstance(self.actor, GaussianActor)  # the only other one
            error = 0.5 * self.actor.distance(actions, rows.actions).sum(-1).mean()
        scale = average(f.detach().abs().mean()).clamp(min=1e-6)
        return self.crl.bc_weight * error - f.mean() / scale, {"closeness": f.mean()}

    def _awr(self, rows: HindsightBatch, inputs: Tensor, psi: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            if self.actor.discrete:
                of_all = self._of_all_actions(rows.observations, psi)
                advantages = (of_all * (rows.actions - self._frequency)).sum(-1)
            else:
                pairs = rows.observations.unsqueeze(1), psi.unsqueeze(1)
                others = closeness(self.critic, pairs[0], rows.others, pairs[1])  # (B, M)
                advantages = closeness(self.critic, rows.observations, rows.actions, psi) - others.mean(1)
            weights = (self.crl.beta * advantages).exp().clamp(max=self.crl.max_weight)
        loss = -(weights * self.actor.log_prob(inputs, rows.actions)).mean()
        return loss, {"weight_mean": weights.mean(), "weight_max": maximum(weights.max())}

    def _of_all_actions(self, observations: Tensor, psi: Tensor) -> Tensor:
        """Closeness after every discrete action, (B, O) and (B, D) -> (B, A)."""
        actions = torch.eye(self.actor.shape.action_size, device=observations.device)
        actions = actions.expand(len(observations), -1, -1)
        return closeness(self.critic, observations.unsqueeze(1), actions, psi.unsqueeze(1))

    def validation_metrics(self, generator: Generator) -> dict[str, Tensor]:
        """Measure the policy on held-out states with goals that their episodes reached, and its gain in f."""
        rows = self._rows(self._positions(self._validation_index, VALIDATION_STATES, generator))
        held_out = HindsightBatch(*(column.to(self.device) for column in vars(rows).values()))
        inputs = beside(held_out.observations, held_out.goals, self._data.transitions.parts)
        psi = psi_of_goals(self.critic, held_out.goals)
        actions = self.actor(inputs)
        f, logged_f = (
            closeness(self.critic, held_out.observations, a, psi) for a in (actions, held_out.actions)
        )
        return {
            "action_error": (actions - held_out.actions).square().mean(),
            "log_prob": self.actor.log_prob(inputs, held_out.actions).mean(),
            "closeness_gain": (f - logged_f).mean(),
        }
