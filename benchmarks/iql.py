"""Implicit Q-Learning (Kostrikov, Nair and Levine, ICLR 2022): the TD method that CVL is measured against.

Written on this project's trainer and networks, so that a comparison differs in the method alone: the same
episodes, the same MLPs, the same Adam and learning-rate schedule, the same actor and evaluation.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Generator, Tensor, nn

from cvl_pipeline.episodes.container import Normalisation, Rewards, Split, Transitions
from cvl_pipeline.networks.actor import ActorShape, GaussianActor
from cvl_pipeline.networks.mlp import Standardise, mlp
from cvl_pipeline.training.fit import fit
from cvl_pipeline.training.module import OfflineModule
from cvl_pipeline.training.parameters import Hidden, Strict, TrainingParameters
from cvl_pipeline.training.seeds import stream_seed


class IQLParameters(Strict):
    """The published settings are expectile 0.7, beta 3, target rate 0.005, advantages not scaled."""

    discount: float = Field(gt=0.0, lt=1.0)
    hidden: Hidden
    expectile: float = Field(gt=0.5, lt=1.0)
    beta: float = Field(ge=0.0)  # inverse temperature of the advantage weights
    max_weight: float = Field(gt=0.0)
    target_rate: float = Field(gt=0.0, le=1.0)
    scale_advantage: bool  # divide by the batch's standard deviation: beta means the same for any reward
    training: TrainingParameters


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
        self.networks = nn.ModuleList(mlp(observation + action, hidden, 1) for _ in range(2))

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Both values, (B, O) and (B, A) -> (2, B)."""
        inputs = torch.cat([self.standardise_observation(observations), self.standardise_action(actions)], -1)
        return torch.stack([network(inputs).squeeze(-1) for network in self.networks])


class ImplicitQLearning(OfflineModule):
    """One gradient step updates V, both Q and the policy, as in the published code."""

    def __init__(
        self,
        transitions: Transitions,
        rewards: Rewards,
        split: Split,
        normalisation: Normalisation,
        parameters: IQLParameters,
        seed: int,
    ) -> None:
        """Build the networks and hold the episodes; see ``train_iql``."""
        super().__init__(parameters.training, seed)
        self.iql = parameters
        train = transitions.select(split.train)
        labels = rewards.select(transitions.transition_index(split.train)).rewards
        index = torch.arange(len(train))
        episodes = train.episode_of(index)
        self._states = train.states()
        self._next_states = train.arrivals()
        self._actions = train.actions
        # Rewards in units of their spread: a Q of order 1 to 100 whatever the task pays.
        self._rewards = labels / labels.std().clamp(min=1e-6)
        ends = index == train.episode_starts[episodes + 1] - 1
        self._goes_on = (~(ends & train.terminated[episodes])).float()
        self._held_out = transitions.select(split.validation)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(seed, "initialisation", 2))
            self.q = TwinQ(normalisation, parameters.hidden)
            self.v = mlp(train.observations.shape[1], parameters.hidden, 1)
            self.actor = GaussianActor(
                ActorShape(tuple(train.observations.shape[1:]), train.actions.shape[1], parameters.hidden),
                normalisation,
                (train.action_low, train.action_high),
            )
        self.target_q = copy.deepcopy(self.q).requires_grad_(False)

    def draw(self, batches: int, generator: Generator) -> Sequence[Tensor]:
        """Transitions of the next batches, with replacement."""
        size = self.training_parameters.batch_size
        return torch.split(torch.randint(len(self._states), (batches * size,), generator=generator), size)

    def training_loss(self, index: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Equations 5 to 7 of the paper; each term's gradient reaches its own network alone."""
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
            scale = advantage.std().clamp(min=1e-6) if self.iql.scale_advantage else 1.0
            weights = (self.iql.beta * advantage / scale).exp().clamp(max=self.iql.max_weight)
        error = advantage + value.detach() - value
        asymmetry = torch.where(error > 0, self.iql.expectile, 1.0 - self.iql.expectile)
        v_loss = (asymmetry * error.square()).mean()
        q_loss = (self.q(states, actions) - target).square().mean(1).sum()
        policy_loss = -(weights * self.actor.log_prob(states, actions)).mean()
        return v_loss + q_loss + policy_loss, {"q": target.mean(), "advantage_std": advantage.std()}

    def validation_metrics(self, generator: Generator) -> dict[str, Tensor]:
        """Held-out log-likelihood of the policy."""
        states = self._held_out.states()
        return {"log_prob": self.actor.log_prob(states, self._held_out.actions).mean()}


def train_iql(
    transitions: Transitions,
    rewards: Rewards,
    split: Split,
    normalisation: Normalisation,
    parameters: IQLParameters,
    seed: int,
) -> GaussianActor:
    """Train IQL on the training episodes and return its policy, on the CPU."""
    module = ImplicitQLearning(transitions, rewards, split, normalisation, parameters, seed)
    fit(module, description="Training IQL")
    return module.actor.cpu().eval()
