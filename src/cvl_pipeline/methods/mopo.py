"""Model-based offline policy optimisation (MOPO; Yu et al., NeurIPS 2020)."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Generator, Tensor, nn

from cvl_pipeline.episodes.data import EpisodeData
from cvl_pipeline.methods.off_policy import (
    Fixed,
    OffPolicy,
    OffPolicyMethod,
    Steps,
    ValueParameters,
    follow,
    reward_unit,
)
from cvl_pipeline.methods.one_step import Phases
from cvl_pipeline.methods.world_model import ModelLearning, WorldModel
from cvl_pipeline.networks.actor import HALF_LOG_TWO_PI, GaussianActor
from cvl_pipeline.objectives.base import TrainedPolicy
from cvl_pipeline.schema import MOST_ROWS, MOST_STEPS, MOST_UNITS
from cvl_pipeline.training.fit import run_fingerprint
from cvl_pipeline.training.processes import own_share
from cvl_pipeline.training.seeds import stream_seed

if TYPE_CHECKING:
    from cvl_pipeline.readout.q_function import QFunction


class Draw(NamedTuple):
    """Places of a batch, and the noise of the actor.

    Attributes:
        logged: (B,) int64, training transitions.
        simulated: (B,) int64, rows of the simulated transitions.
        real: (B,) bool, whether the logged one is used.
        noise: (B, 2, A), for the next states and for the states.
    """

    logged: Tensor
    simulated: Tensor
    real: Tensor
    noise: Tensor


class MOPOLearning(OffPolicy):
    """Soft actor-critic on short rollouts of a model, which begin in logged states.

    The rollouts are renewed every ``refresh`` steps, by the actor of that time. They are buffers, so a resumed training
    goes on with the same ones.
    """

    simulated: Tensor

    def __init__(self, data: EpisodeData, parameters: Any, seed: int, model: WorldModel) -> None:
        """Build actor, Q and the temperature.

        Args:
            data: the episodes, with rewards.
            parameters: of the method.
            seed: of the initial weights, the batches and the rollouts.
            model: the trained model, which stays as it is.
        """
        super().__init__(data, parameters, seed)
        assert data.rewards is not None  # checked by the method
        self.graphable = False  # the model is asked between the steps
        self.model = model
        unit = 1.0 if parameters.scale_rewards else reward_unit(self._rewards)
        self._penalty_scale = parameters.penalty * unit
        observation, action = self._observations.shape[1], self._actions.shape[1]
        rows = parameters.rollouts * parameters.horizon
        # State, action, next state, reward, goes_on.
        self.register_buffer("simulated", torch.zeros(rows, 2 * observation + action + 2))

    def networks(self) -> None:
        """Build Q and the logarithm of the entropy's weight."""
        self.q = self.ensemble()
        self.log_alpha = nn.Parameter(torch.zeros(()))

    def finish(self) -> None:
        """Build the target of Q, and a Q for the actor's loss."""
        self.target_q = copy.deepcopy(self.q).requires_grad_(False)
        self.fixed_q = Fixed(self.q)
        assert isinstance(self.actor, GaussianActor)  # checked by the method
        # The published -A holds for actions from -1 to 1.
        self._wanted_entropy = float((self.actor.half_range.log() - 1.0).sum())
        with torch.no_grad():  # the noise begins there: half of the action range would hide every action
            self.actor.log_std.fill_(-1.5 - HALF_LOG_TWO_PI)

    def draw(self, batches: int, generator: Generator) -> list[Draw]:
        """Draw places in the log and in the simulated transitions, and noise."""
        size, device = self.training_parameters.batch_size, self.device
        count = batches * size
        logged = torch.randint(len(self._rows), (count,), generator=generator, device=device)
        simulated = torch.randint(len(self.simulated), (count,), generator=generator, device=device)
        real = torch.rand(count, generator=generator, device=device) < self.settings.real_share
        noise = self.actor.noise(2 * count, generator).reshape(count, 2, -1)
        parts = (torch.split(part, size) for part in (logged, simulated, real, noise))
        return [Draw(*entry) for entry in zip(*parts, strict=True)]

    @torch.no_grad()
    def simulate(self) -> None:
        """Renew the simulated transitions, from logged states, with the present actor."""
        own = self.settings
        number = 1 + self.global_step // own.refresh
        generator = Generator(device=self.device).manual_seed(stream_seed(self.seed, "rollouts", number))
        starts = torch.randint(len(self._rows), (own.rollouts,), generator=generator, device=self.device)
        first = self._observations[self._rows[starts]]
        states, blocks = first, []
        for _ in range(own.horizon):
            noise = self.actor.noise(len(states), generator).unsqueeze(1)
            actions = self.actor.act_with_noise(states, noise).squeeze(1)
            noise = torch.randn(states.shape, generator=generator, device=self.device)
            member = torch.randint(
                len(self.model.elites), (len(states),), generator=generator, device=self.device
            )
            step = self.model.predict(states, actions, noise, member, spread=True)
            goes_on = (step.goes_on > 0.5).float()
            rewards = self.reward_scale * step.rewards - self._penalty_scale * step.spread
            columns = states, actions, step.next_states, rewards.unsqueeze(1), goes_on.unsqueeze(1)
            blocks.append(torch.cat(columns, 1))
            # After a termination, the rollout begins again in its first state.
            states = torch.where(goes_on.unsqueeze(1) > 0.0, step.next_states, first)
        self.simulated.copy_(torch.cat(blocks))

    def mixed(self, drawn: Draw) -> Steps:
        """Read this process's share of a batch of logged and simulated transitions."""
        logged = self.steps(drawn.logged)
        observation, action = self._observations.shape[1], self._actions.shape[1]
        rows = self.simulated[own_share(drawn.simulated)]
        sizes = [observation, action, observation, 1, 1]
        states, actions, next_states, rewards, goes_on = torch.split(rows, sizes, dim=1)
        real = own_share(drawn.real)

        def chosen(ours: Tensor, theirs: Tensor) -> Tensor:
            return torch.where(real.reshape(-1, *(1 for _ in ours.shape[1:])), ours, theirs)

        return Steps(
            states=chosen(logged.states, states),
            actions=chosen(logged.actions, actions),
            rewards=chosen(logged.rewards, rewards.squeeze(1)),
            goes_on=chosen(logged.goes_on, goes_on.squeeze(1)),
            next_states=chosen(logged.next_states, next_states),
            next_actions=logged.next_actions,  # not used
            has_next=logged.has_next,
        )

    def training_loss(self, batch: Draw) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum of the losses of Q, actor and temperature; each reaches its own parameters alone."""
        own, actor = self.settings, self.actor
        assert isinstance(actor, GaussianActor)
        if self.global_step % own.refresh == 0:
            self.simulate()
        follow(self.target_q, self.q, own.target_rate)
        step = self.mixed(batch)
        of_next, of_present = own_share(batch.noise).unbind(1)
        alpha = self.log_alpha.detach().exp()
        with torch.no_grad():
            following = actor.act_with_noise(step.next_states, of_next.unsqueeze(1)).squeeze(1)
            value = self.target_q(step.next_states, following).amin(0) - alpha * _log_prob(actor, of_next)
            target = step.rewards + own.discount * step.goes_on * value
        q_loss = (self.q(step.states, step.actions) - target).square().mean(1).sum()
        actions = actor.act_with_noise(step.states, of_present.unsqueeze(1)).squeeze(1)
        log_prob = _log_prob(actor, of_present)
        actor_loss = (alpha * log_prob - self.fixed_q(step.states, actions).amin(0)).mean()
        alpha_loss = -(self.log_alpha * (log_prob.detach() + self._wanted_entropy)).mean()
        metrics = {"q": target.mean(), "entropy": -log_prob.detach().mean(), "entropy_weight": alpha}
        return q_loss + actor_loss + alpha_loss, metrics


def _log_prob(actor: GaussianActor, noise: Tensor) -> Tensor:
    """Log-density of actions by their noise, before clipping, (B, A) -> (B,)."""
    density = -0.5 * noise.square() - actor.std.log() - HALF_LOG_TWO_PI
    return density.sum(-1)


class MOPO(OffPolicyMethod):
    """Trains a model, then an actor on its rollouts, with a penalty where the model is uncertain.

    ``training.steps`` are those of both phases. The actor is this project's, whose noise does not depend on the state.
    """

    class Parameters(ValueParameters):
        """The settings of ``mopo``."""

        method: Literal["mopo"] = Field("mopo", description="Model-based offline policy optimisation.")
        members: int = Field(7, ge=1, le=MOST_UNITS, description="Models in the ensemble.")
        elites: int = Field(
            5,
            ge=1,
            le=MOST_UNITS,
            description="Models of the smallest held-out error, which make the rollouts.",
        )
        model_share: float = Field(
            0.375, gt=0.0, lt=1.0, description="Share of `training.steps` that train the model."
        )
        horizon: int = Field(5, ge=1, le=MOST_ROWS, description="Steps of a rollout.")
        rollouts: int = Field(
            2_000, ge=1, le=MOST_ROWS, description="Rollouts at once; all are replaced by the next ones."
        )
        refresh: int = Field(
            250, ge=1, le=MOST_STEPS, description="Gradient steps after which rollouts are renewed."
        )
        penalty: float = Field(
            1.0,
            ge=0.0,
            description="Weight lambda of the penalty: the largest norm, over the models, of the standard deviation. "
            "Rewards and states are in standard deviations of the log, so that it means the same for any task.",
        )
        real_share: float = Field(0.05, ge=0.0, le=1.0, description="Share of logged transitions in a batch.")

        @model_validator(mode="after")
        def _elites_are_members(self) -> MOPO.Parameters:
            if self.elites > self.members:
                raise ValueError(f"elites is {self.elites}, but there are only {self.members} members")
            return self

    title = "MOPO"
    vectors_alone = True
    discrete_actions = False

    def train(
        self,
        data: EpisodeData,
        seed: int,
        *,
        values: QFunction | None = None,
        checkpoints: Path | None = None,
        logs: Path | None = None,
    ) -> TrainedPolicy:
        """Train the model, then the actor."""
        self.check(data)
        own, phases = self.parameters, Phases(checkpoints, logs)
        parts = data.parts().values()
        parameters = phases.of(own, own.model_share)
        # The model's rewards have their own unit.
        learning = ModelLearning(data, parameters.model_copy(update={"scale_rewards": False}), seed)
        phases.run("model", "Training the model (mopo)", learning, run_fingerprint(parameters, seed, *parts))
        model = learning.trained()
        parameters = phases.of(own, 1.0 - own.model_share)
        module = MOPOLearning(data, parameters, seed, model)
        history = phases.last(
            "policy", "Training MOPO", module, run_fingerprint(parameters, seed, *parts, model)
        )
        return TrainedPolicy(module.actor.cpu().eval(), history)
