"""The explicit model of one step against CVL's implicit one: Q of the behaviour from rollouts of a learned model."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Generator, Tensor

from cvl_pipeline.episodes.data import EpisodeData
from cvl_pipeline.methods.one_step import OneStep, OneStepParameters, Phases, ReturnRegression
from cvl_pipeline.methods.world_model import ModelLearning, WorldModel
from cvl_pipeline.networks.actor import Actor
from cvl_pipeline.objectives.bc import BehaviourCloning
from cvl_pipeline.objectives.training import PolicyExtraction, fit_noise
from cvl_pipeline.readout.action_values import ActionValues
from cvl_pipeline.schema import MOST_ROWS, MOST_UNITS
from cvl_pipeline.training.progress import progress_bar
from cvl_pipeline.training.seeds import stream_seed

ROWS = 2048
"""Rollouts at once."""


class OneStepModel(OneStep):
    """Rolls the cloned policy through a model from logged pairs, and regresses Q on the returns.

    Four phases: the model, the clone, Q and the policy.
    """

    class Parameters(OneStepParameters):
        """The settings of ``one_step_model``."""

        method: Literal["one_step_model"] = Field(
            "one_step_model",
            description="Q of the behaviour by rollouts of a learned model of one step, then advantage-weighted "
            "regression.",
        )
        members: int = Field(5, ge=1, le=MOST_UNITS, description="Models in the ensemble.")
        elites: int = Field(
            5,
            ge=1,
            le=MOST_UNITS,
            description="Models of the smallest held-out error, which make the rollouts.",
        )
        model_share: float = Field(
            0.375, gt=0.0, lt=1.0, description="Share of `training.steps` that train the model."
        )
        clone_share: float = Field(
            0.125,
            gt=0.0,
            lt=1.0,
            description="Share of `training.steps` that clone the behaviour. Q has the rest of `value_share`.",
        )
        horizon: int = Field(
            50,
            ge=1,
            le=MOST_ROWS,
            description="Steps of a rollout. The future after them counts as the rollout itself.",
        )
        rollouts: int = Field(
            20_000,
            ge=1,
            le=MOST_ROWS,
            description="Rollouts, shared evenly among the pairs of the training episodes.",
        )

        @model_validator(mode="after")
        def _phases_fit(self) -> OneStepModel.Parameters:
            if self.model_share + self.clone_share >= self.value_share:
                raise ValueError(
                    f"model_share {self.model_share} and clone_share {self.clone_share} leave no step for Q: their sum "
                    f"must be less than value_share, {self.value_share}"
                )
            if self.elites > self.members:
                raise ValueError(f"elites is {self.elites}, but there are only {self.members} members")
            return self

    title = "1-step model + AWR"
    vectors_alone = True

    def learn(self, data: EpisodeData, seed: int, phases: Phases) -> ActionValues:
        """Train model and clone, roll out, and regress Q."""
        own = self.parameters
        model_parameters = phases.of(own, own.model_share)
        learning = ModelLearning(data, model_parameters, seed)
        phases.run(
            "model",
            "Training the model (one_step_model)",
            learning,
            self.fingerprint(model_parameters, seed, data),
        )
        model = learning.trained()
        cloning = BehaviourCloning.Parameters(**phases.of(own, own.clone_share).actor_settings)
        clone = PolicyExtraction(data.without_rewards(), cloning, seed)
        phases.run(
            "clone",
            "Cloning (one_step_model)",
            clone,
            self.fingerprint(cloning, seed, data.without_rewards()),
        )
        fit_noise(clone.actor.eval(), data)
        parameters = phases.of(own, own.value_share - own.model_share - own.clone_share)
        regression = ReturnRegression(data, parameters, seed)
        train = data.transitions.transition_index(data.split.train)
        generator = Generator().manual_seed(stream_seed(seed, "rollouts", 0))
        # Every pair gets as many rollouts as any other, or one more; their order is random, and so is a pair's model.
        pairs = torch.cat(
            [torch.randperm(len(train), generator=generator) for _ in range(-(-own.rollouts // len(train)))]
        )[: own.rollouts]
        index = train[pairs]
        returns, shares = model_returns(
            model,
            clone.actor,
            data.transitions.states(index),
            data.transitions.actions[index],
            own.horizon,
            own.discount,
            generator,
        )
        regression.targets(pairs, returns, shares)
        phases.run(
            "q",
            "Regressing Q (one_step_model)",
            regression,
            self.fingerprint(parameters, seed, data, regression.unit, model, clone.actor),
        )
        return regression.values


@torch.no_grad()
def model_returns(
    model: WorldModel,
    actor: Actor,
    states: Tensor,
    actions: Tensor,
    horizon: int,
    discount: float,
    generator: Generator,
) -> tuple[Tensor, Tensor]:
    """Returns of rollouts of a policy through a model, as mean rewards, and the share of the future they cover.

    Each rollout stays with one elite member, and they take turns. As with the returns of truncated episodes, the
    future after the horizon counts as the rollout before it: the discounted sum is divided by its share, ``1 -
    gamma^H`` unless it terminates.

    Args:
        model: whose elites predict.
        actor: the policy, which acts by its own noise.
        states: (N, O).
        actions: (N, A), the first ones.
        horizon: H, number of steps.
        discount: gamma.
        generator: of all noise.

    Returns:
        Two tensors, (N,) float64.
    """
    sums, shares = [], []
    size = min(ROWS, -(-len(states) // len(model.elites)))  # so that every elite has a turn
    blocks = list(zip(torch.split(states, size), torch.split(actions, size), strict=True))
    with progress_bar() as progress:
        task = progress.add_task("Rolling out the model", total=len(blocks))
        for number, (state, action) in enumerate(blocks):
            total = torch.zeros(len(state), dtype=torch.float64)
            alive = torch.ones(len(state), dtype=torch.float64)
            for step in range(horizon):
                if step:
                    noise = actor.noise(len(state), generator).unsqueeze(1)
                    action = actor.act_with_noise(state, noise).squeeze(1)
                noise = torch.randn(state.shape, generator=generator)
                predicted = model.predict(state, action, noise, number % len(model.elites))
                total += discount**step * alive * predicted.rewards
                alive *= predicted.goes_on
                state = predicted.next_states
            share = 1.0 - discount**horizon * alive
            sums.append((1.0 - discount) * total / share)
            shares.append(share)
            progress.advance(task)
    return torch.cat(sums), torch.cat(shares)
