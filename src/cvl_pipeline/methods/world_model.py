"""An ensemble of Gaussian models of one step, as in PETS (Chua et al. 2018) and MOPO (Yu et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from cvl_pipeline.episodes.container import Normalisation
from cvl_pipeline.episodes.data import EpisodeData
from cvl_pipeline.methods.off_policy import OffPolicy
from cvl_pipeline.networks.mlp import MLP, Standardise
from cvl_pipeline.training.vector import Part

BOUND_WEIGHT = 0.01
"""Weight of the distance between the learned bounds of the log-variances, as published."""
UNMOVED = 1e-6
"""Unit of an output that never varies."""


@dataclass(frozen=True)
class Prediction:
    """One step as a member of the ensemble predicts it.

    Attributes:
        next_states: (B, O), a sample, within the range of the training episodes.
        rewards: (B,), the mean.
        goes_on: (B,), probability that the episode does not terminate after the pair.
        spread: (B,), the largest norm over members of the standard deviation, in standard deviations of the log's
            states and rewards: MOPO's penalty.
    """

    next_states: Tensor
    rewards: Tensor
    goes_on: Tensor
    spread: Tensor


class WorldModel(nn.Module):
    """Members that each predict the change of the state and the reward as Gaussians, and a classifier of termination.

    Inputs are standardised by the log's normalisation; outputs by the mean and spread of changes and rewards.
    """

    elites: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, normalisation: Normalisation, hidden: tuple[int, ...], members: int) -> None:
        """Build the networks; ``fit_outputs`` sets the units of the outputs."""
        super().__init__()
        observation, action = len(normalisation.observation_mean), len(normalisation.action_mean)
        self.standardise_observation = Standardise(observation)
        self.standardise_observation.fit(normalisation.observation_mean, normalisation.observation_std)
        self.standardise_action = Standardise(action)
        self.standardise_action.fit(normalisation.action_mean, normalisation.action_std)
        self.standardise_output = Standardise(observation + 1)
        self.members = nn.ModuleList(
            MLP(observation + action, hidden, 2 * (observation + 1)) for _ in range(members)
        )
        self.ends = MLP(observation + action, hidden, 1)
        self.most = nn.Parameter(torch.full((observation + 1,), 0.5))
        self.least = nn.Parameter(torch.full((observation + 1,), -10.0))
        self.register_buffer("elites", torch.arange(members))
        self.register_buffer("low", torch.full((observation,), -torch.inf))
        self.register_buffer("high", torch.full((observation,), torch.inf))
        self.can_end = False
        self.varies = torch.ones(observation + 1, dtype=torch.bool)
        """Outputs that differ in the training episodes, (O + 1,)."""

    def fit_outputs(self, states: Tensor, next_states: Tensor, rewards: Tensor, terminates: bool) -> None:
        """Set the units of changes and rewards, the range of states, and whether episodes can terminate."""
        outputs = torch.cat([next_states - states, rewards.unsqueeze(-1)], -1).double()
        spread = outputs.std(0, correction=0).float()
        # A dimension that never changes, such as a goal, has an error of zero in any unit, if its mean is exact.
        self.varies = (outputs.amax(0) > outputs.amin(0)) & (spread > 0.0)
        mean = torch.where(self.varies, outputs.mean(0), outputs[0]).float()
        self.standardise_output.fit(mean, torch.where(self.varies, spread, UNMOVED))
        self.low.copy_(torch.minimum(states.amin(0), next_states.amin(0)))
        self.high.copy_(torch.maximum(states.amax(0), next_states.amax(0)))
        self.can_end = terminates

    def forward(self, observations: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Means and log-variances of the standardised outputs by member.

        Args:
            observations: (B, O), the same for all members; or (B, members, O), one for each.
            actions: (B, A) or (B, members, A).

        Returns:
            (members, B, O + 1) each.
        """
        inputs = self._inputs(observations, actions)
        parts = inputs.unbind(1) if inputs.ndim == 3 else [inputs] * len(self.members)
        return self._bounded(
            torch.stack([member(part) for member, part in zip(self.members, parts, strict=True)])
        )

    def _bounded(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = outputs.chunk(2, -1)
        log_variance = self.most - functional.softplus(self.most - log_variance)
        return mean, self.least + functional.softplus(log_variance - self.least)

    def end_logits(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Logits of termination after pairs, (..., O) and (..., A) -> (...).

        Not in the next state: a sampled one is often none that the log has, such as one between two states.
        """
        logits: Tensor = self.ends(self._inputs(observations, actions)).squeeze(-1)
        return logits

    def _inputs(self, observations: Tensor, actions: Tensor) -> Tensor:
        return torch.cat([self.standardise_observation(observations), self.standardise_action(actions)], -1)

    @torch.no_grad()
    def predict(
        self, states: Tensor, actions: Tensor, noise: Tensor, member: Tensor | int, spread: bool = False
    ) -> Prediction:
        """Predict one step.

        Args:
            states: (B, O).
            actions: (B, A).
            noise: (B, O), standard normal.
            member: of the elites, which predicts; a number, or (B,) int64.
            spread: whether to compute ``spread``, which takes all members; zero otherwise.
        """
        if spread or isinstance(member, Tensor):
            means, log_variances = self(states, actions)
            chosen, rows = self.elites[member], torch.arange(len(states), device=states.device)
            mean, log_variance = means[chosen, rows], log_variances[chosen, rows]
        else:
            chosen_member = self.members[int(self.elites[member])]
            mean, log_variance = self._bounded(chosen_member(self._inputs(states, actions)))
        unit = self.standardise_output
        output = mean * unit.std + unit.mean
        std = (0.5 * log_variance).exp() * unit.std
        next_states = states + output[:, :-1] + std[:, :-1] * noise
        next_states = torch.minimum(torch.maximum(next_states, self.low), self.high)
        goes_on = torch.ones_like(output[:, -1])
        if self.can_end:
            goes_on = 1.0 - self.end_logits(states, actions).sigmoid()
        width = torch.zeros_like(goes_on)
        if spread:
            scale = torch.cat(
                [unit.std[:-1] / self.standardise_observation.std, torch.ones_like(unit.std[-1:])]
            )
            width = ((0.5 * log_variances).exp() * scale).norm(dim=-1).amax(0)
        return Prediction(next_states, output[:, -1], goes_on, width)


class ModelLearning(OffPolicy):
    """Trains a world model by maximum likelihood; each member draws its own batches."""

    has_actor = False

    def __init__(self, data: EpisodeData, parameters: Any, seed: int) -> None:
        """Build the model for the training episodes."""
        super().__init__(data, parameters, seed)
        assert data.rewards is not None  # checked by the method
        states, next_states = self._observations[self._rows], self._observations[self._rows + 1]
        self.model.fit_outputs(states, next_states, self._rewards, bool((self._goes_on == 0.0).any()))
        held_out = data.rewards.select(data.transitions.transition_index(data.split.validation)).rewards
        self._held_out_outputs = torch.cat(
            [self._held_out.arrivals() - self._held_out.states(), held_out.unsqueeze(-1)], -1
        )

    def networks(self) -> None:
        """Build the model."""
        self.model = WorldModel(self.normalisation, self.settings.hidden, self.settings.members)

    def parts(self) -> Any:
        """The model's parameters."""
        return ((self.model.parameters(), Part()),)

    def draw(self, batches: int, generator: Generator) -> Any:
        """Draw transitions for each member, (B, members) int64 per batch."""
        size, members = self.training_parameters.batch_size, self.settings.members
        index = torch.randint(
            len(self._rows), (batches * size, members), generator=generator, device=self.device
        )
        return torch.split(index, size)

    def training_loss(self, batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the negative log-likelihood, summed over members, plus the weighted width of the bounds."""
        step = self.steps(batch)
        outputs = torch.cat([step.next_states - step.states, step.rewards.unsqueeze(-1)], -1)
        target = self.model.standardise_output(outputs).transpose(0, 1)
        mean, log_variance = self.model(step.states, step.actions)
        errors = (mean - target).square()
        likelihood = (errors * (-log_variance).exp() + log_variance).mean((1, 2)).sum()
        loss = likelihood + BOUND_WEIGHT * (self.model.most - self.model.least).sum()
        if self.model.can_end:
            logits = self.model.end_logits(step.states[:, 0], step.actions[:, 0])
            loss = loss + functional.binary_cross_entropy_with_logits(logits, 1.0 - step.goes_on[:, 0])
        return loss, {"squared_error": errors.mean()}

    def validation_metrics(self, generator: Generator) -> dict[str, Tensor]:
        """Measure the members' errors on held-out transitions, in standard deviations of the log."""
        return {"squared_error": self._held_out_errors().mean()}

    @torch.no_grad()
    def _held_out_errors(self) -> Tensor:
        """Mean squared error of each member, (members,)."""
        model, device = self.model, self.device
        target = model.standardise_output(self._held_out_outputs.to(device))
        states, actions = (part.to(device) for part in (self._held_out.states(), self._held_out.actions))
        parts = zip(*(torch.split(part, 4096) for part in (states, actions, target)), strict=True)
        varies = model.varies.to(device)  # what an output does that never varied tells no member from another
        sums = [(model(s, a)[0] - t)[..., varies].square().sum((-1, -2)) for s, a, t in parts]
        return torch.stack(sums).sum(0) / (len(target) * max(1, int(varies.sum())))

    def trained(self) -> WorldModel:
        """The model on the CPU, with the members of the smallest held-out error as elites."""
        self.cpu()
        self._held_out = self._held_out.to("cpu")
        order = self._held_out_errors().argsort(stable=True)
        self.model.elites = order[: self.settings.elites]
        return self.model.eval().requires_grad_(False)
