"""Implicit Q-Learning (Kostrikov, Nair and Levine, ICLR 2022): the TD method that CVL is measured against.

It uses this project's trainer and networks, so a comparison differs in the method alone: the same episodes, the
same MLPs, the same Adam and learning-rate schedule, the same actor and evaluation.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field
from torch import Generator, Tensor, nn

from cvl_pipeline.episodes.container import Normalisation
from cvl_pipeline.episodes.data import EpisodeData
from cvl_pipeline.errors import InputError
from cvl_pipeline.methods.base import Method, MethodParameters
from cvl_pipeline.networks.actor import make_actor
from cvl_pipeline.networks.mlp import MLP, Standardise
from cvl_pipeline.objectives.base import TrainedPolicy
from cvl_pipeline.schema import Hidden
from cvl_pipeline.training.fit import fit, run_fingerprint
from cvl_pipeline.training.module import OfflineModule
from cvl_pipeline.training.prefetch import SHARE, fits
from cvl_pipeline.training.processes import gather, own_share
from cvl_pipeline.training.seeds import stream_seed

if TYPE_CHECKING:
    from cvl_pipeline.readout.q_function import QFunction


class TwinQ(nn.Module):
    """Two Q functions of standardised inputs."""

    def __init__(self, normalisation: Normalisation, hidden: Hidden) -> None:
        """Build both networks; inputs are standardised by the given statistics."""
        super().__init__()
        observation, action = len(normalisation.observation_mean), len(normalisation.action_mean)
        self.standardise_observation = Standardise(observation)
        self.standardise_observation.fit(normalisation.observation_mean, normalisation.observation_std)
        self.standardise_action = Standardise(action)
        self.standardise_action.fit(normalisation.action_mean, normalisation.action_std)
        self.networks = nn.ModuleList(MLP(observation + action, hidden, 1) for _ in range(2))

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Both values, (B, O) and (B, A) -> (2, B)."""
        inputs = torch.cat([self.standardise_observation(observations), self.standardise_action(actions)], -1)
        return torch.stack([network(inputs).squeeze(-1) for network in self.networks])


class IQL(Method):
    """Implicit Q-Learning."""

    class Parameters(MethodParameters):
        """The settings of ``iql``; the published ones are the defaults, but for scaled advantages."""

        method: Literal["iql"] = Field("iql", description="Implicit Q-Learning.")
        discount: float = Field(0.99, gt=0.0, lt=1.0, description="Discount of the values.")
        expectile: float = Field(0.7, gt=0.5, lt=1.0, description="Expectile of Q that V regresses on.")
        beta: float = Field(3.0, ge=0.0, description="Inverse temperature of the advantage weights.")
        max_weight: float = Field(100.0, gt=0.0, description="Largest weight of a transition.")
        target_rate: float = Field(
            0.005, gt=0.0, le=1.0, description="Share of the online Q that enters the target per step."
        )
        scale_advantage: bool = Field(
            False,
            description="Divide advantages by their standard deviation in the batch, so that beta means the same "
            "for any reward.",
        )

    title = "IQL"
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
        """Train Q, V and the policy together."""
        if data.rewards is None:
            raise InputError("method 'iql' needs rewards")
        if data.transitions.images:
            raise InputError("method 'iql' takes vectors: images are not supported")
        module = ImplicitQLearning(data, self.parameters, seed)
        history = fit(
            module,
            description="Training IQL",
            checkpoints=checkpoints,
            fingerprint=run_fingerprint(self.parameters, seed, *data.parts().values()),
            logs=logs,
        )
        return TrainedPolicy(module.actor.cpu().eval(), history)


class ImplicitQLearning(OfflineModule):
    """Updates V, both Q and the policy in one gradient step, as the published code does."""

    def __init__(self, data: EpisodeData, parameters: IQL.Parameters, seed: int) -> None:
        """Build the networks and hold the episodes, whose rewards are known."""
        super().__init__(parameters.training, seed)
        self.own_code = ":" in parameters.encoder.name
        self.graphable = not self.own_code
        assert data.rewards is not None  # checked by the method
        self.iql = parameters
        train = data.transitions.select(data.split.train)
        index_of_train = data.transitions.transition_index(data.split.train)
        labels = data.rewards.select(index_of_train).rewards
        index = torch.arange(len(train))
        episodes = train.episode_of(index)
        ends = index == train.episode_starts[episodes + 1] - 1
        self._states, self._next_states = train.states(), train.arrivals()
        self._actions = train.actions
        # Rewards in units of their spread, so that Q is of order 1 to 100 for any task.
        self._rewards = labels / labels.std().clamp(min=1e-6)
        self._goes_on = (~(ends & train.terminated[episodes])).float()
        self._held_out = data.transitions.select(data.split.validation)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(seed, "initialisation", 2))
            self.q = TwinQ(data.normalisation, parameters.hidden)
            self.v = MLP(train.observations.shape[1], parameters.hidden, 1)
            self.actor = make_actor(
                train, data.normalisation, parameters.hidden, parameters.encoder.model_dump(mode="json")
            )
        self.target_q = copy.deepcopy(self.q).requires_grad_(False)

    def on_fit_start(self) -> None:
        """Put the data where the networks are; raise InputError if a GPU lacks the memory."""
        names = ("_states", "_next_states", "_actions", "_rewards", "_goes_on")
        if not fits(self.device, *(getattr(self, name) for name in names)):
            raise InputError(
                f"method 'iql' needs the whole log on the GPU, and it takes more than {SHARE:.0%} of its free memory; "
                "set training.accelerator=cpu for this method"
            )
        for name in names:
            setattr(self, name, getattr(self, name).to(self.device))
        self._held_out = self._held_out.to(self.device)

    def draw(self, batches: int, generator: Generator) -> Sequence[Tensor]:
        """Draw transitions of the next batches, with replacement."""
        size, count = self.training_parameters.batch_size, len(self._states)
        return torch.split(
            torch.randint(count, (batches * size,), generator=generator, device=self.device), size
        )

    def training_loss(self, batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum of equations 5 to 7 of the paper; each term reaches its own network alone."""
        index = own_share(batch)
        with torch.no_grad():
            for target, online in zip(self.target_q.parameters(), self.q.parameters(), strict=True):
                target.lerp_(online, self.iql.target_rate)
        states, actions = self._states[index], self._actions[index]
        standard = self.q.standardise_observation
        value = self.v(standard(states)).squeeze(-1)
        with torch.no_grad():
            advantage = self.target_q(states, actions).amin(0) - value
            next_value = self.v(standard(self._next_states[index])).squeeze(-1)
            target = self._rewards[index] + self.iql.discount * self._goes_on[index] * next_value
            spread = gather(advantage).std()  # of the whole batch, which several processes may share
            scale = spread.clamp(min=1e-6) if self.iql.scale_advantage else 1.0
            weights = (self.iql.beta * advantage / scale).exp().clamp(max=self.iql.max_weight)
        error = advantage + value.detach() - value
        asymmetry = torch.where(error > 0, self.iql.expectile, 1.0 - self.iql.expectile)
        v_loss = (asymmetry * error.square()).mean()
        q_loss = (self.q(states, actions) - target).square().mean(1).sum()
        policy_loss = -(weights * self.actor.log_prob(states, actions)).mean()
        return v_loss + q_loss + policy_loss, {"q": target.mean(), "advantage_std": spread}

    def validation_metrics(self, generator: Generator) -> dict[str, Tensor]:
        """Measure the policy on held-out states."""
        states, logged = self._held_out.states(), self._held_out.actions
        return {
            "action_error": (self.actor(states) - logged).square().mean(),
            "log_prob": self.actor.log_prob(states, logged).mean(),
        }
