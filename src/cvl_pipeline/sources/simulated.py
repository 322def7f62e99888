"""Base class of sources that collect episodes in a simulator."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING

from pydantic import Field

from cvl_pipeline.schema import LONGEST_EPISODE, MOST_EPISODES
from cvl_pipeline.sources.base import Source, SourceParameters, Task

if TYPE_CHECKING:
    from cvl_pipeline.environments.collection import Controller, Disturbances
    from cvl_pipeline.episodes.container import Rewards, Transitions


class SimulatedParameters(SourceParameters):
    """The settings that every collection in a simulator has."""

    task: Task = Field(description="Name of the environment.")
    episodes: int = Field(
        400, ge=2, le=MOST_EPISODES, description="Episodes to collect. Some are held out from training."
    )
    episode_steps: int | None = Field(
        200,
        ge=1,
        le=LONGEST_EPISODE,
        description="Length of an episode. null: the environment's own limit; one without is refused.",
    )
    noise_max: float = Field(
        0.3,
        ge=0.0,
        description="Each episode draws the standard deviation of its action noise from [0, noise_max], in halves "
        "of the action range.",
    )
    random_max: float = Field(
        1.0, ge=0.0, le=1.0, description="Each episode draws its share of random steps from [0, random_max]."
    )
    random_hold: int = Field(
        20, ge=1, le=LONGEST_EPISODE, description="Steps for which a random action is held."
    )


class SimulatedSource(Source):
    """Collects episodes of mixed quality by disturbing a controller."""

    parameters: SimulatedParameters

    def load(self, seed: int, workers: int | None) -> tuple[Transitions, Rewards]:
        """Collect the episodes."""
        from cvl_pipeline.environments.collection import collect  # not above: it imports torch

        make_environment = self.make_environment()
        assert make_environment is not None  # every simulated source has an environment
        return collect(
            make_environment,
            self.make_controller(),
            self.disturbances(),
            episodes=self.parameters.episodes, seed=seed, workers=workers, name=self.parameters.task,
            tasks=len(self.tasks) or 1,
        )  # fmt: skip

    @property
    def may_have_environment(self) -> bool:
        """Always."""
        return True

    def disturbances(self) -> Disturbances:
        """Return the disturbances of the controller's actions."""
        from cvl_pipeline.environments.collection import Disturbances

        p = self.parameters
        return Disturbances(p.noise_max, p.random_max, p.random_hold)

    @abstractmethod
    def make_controller(self) -> Callable[[], Controller]:
        """Return a factory of the controller, which other processes can import."""
