"""A source of your own: Gymnasium's Pendulum, swung up by a controller of your own.

The source collects episodes of mixed quality, and provides the environment in which policies are evaluated.

Run it in the project's folder:

    PYTHONPATH=examples kedro run --env smoke --params dataset.source=source_pendulum:Pendulum,dataset.episodes=12

docs/guides/add-a-source.md explains every line.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from pydantic import Field

from cvl_pipeline.environments.base import Environment
from cvl_pipeline.environments.collection import episode_seeds
from cvl_pipeline.environments.gymnasium import GymnasiumEnvironment
from cvl_pipeline.episodes.container import Rewards, Transitions
from cvl_pipeline.sources.base import Source, SourceParameters
from cvl_pipeline.sources.steps import Steps, episodes_from_steps


class Pendulum(Source):
    """Episodes of an energy-pumping controller, disturbed by random torques."""

    class Parameters(SourceParameters):
        """The settings of the source."""

        episodes: int = Field(400, ge=2, description="Episodes to collect. Some train, some are held out.")
        episode_steps: int = Field(200, ge=1, description="Length of an episode.")
        gravity: float = Field(10.0, gt=0.0, description="Gravity, in m/s^2.")

    parameters: Parameters

    def make_environment(self, episode_steps: int | None = None) -> Callable[[], Environment]:
        """Return a factory of the environment, for collection and for evaluation."""
        steps = episode_steps or self.parameters.episode_steps
        return partial(GymnasiumEnvironment, "Pendulum-v1", steps, {"g": self.parameters.gravity})

    def load(self, seed: int, workers: int | None) -> tuple[Transitions, Rewards]:
        """Collect the episodes, in this process."""
        environment = self.make_environment()()
        rows = []
        for episode_seed in episode_seeds(seed, "collection", self.parameters.episodes):
            generator = np.random.default_rng([episode_seed, 1])
            share_random = generator.uniform()  # of the steps of this episode
            observation, _ = environment.reset(seed=episode_seed)
            ended = False
            while not ended:
                random = generator.uniform() < share_random
                torque = generator.uniform(-2.0, 2.0) if random else self.controller(*observation)
                action = np.array([torque], dtype=np.float32)
                following, reward, terminated, truncated, _ = environment.step(action)
                rows.append((observation, action, terminated, truncated, following, reward))
                observation, ended = following, terminated or truncated
        environment.close()
        names = ("observations", "actions", "terminated", "truncated", "next_observations", "rewards")
        columns: dict[str, Any] = dict(zip(names, map(np.array, zip(*rows, strict=True)), strict=True))
        space = environment.action_space
        return episodes_from_steps(Steps(**columns), "Pendulum", (space.low, space.high))

    def controller(self, cosine: float, sine: float, velocity: float) -> float:
        """Pump energy until the pendulum is nearly upright, then balance it; returns a torque in [-2, 2]."""
        if cosine > 0.95:
            return float(np.clip(-10.0 * sine - 2.0 * velocity, -2.0, 2.0))
        missing_energy = 1.5 * self.parameters.gravity * (1.0 - cosine) - 0.5 * velocity**2
        return 2.0 * float(np.sign(missing_energy * velocity))
