"""What sources that collect in a simulator share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

from pydantic import Field

from cvl_pipeline.environments.collection import Controller, Disturbances, collect
from cvl_pipeline.episodes.container import Rewards, Transitions
from cvl_pipeline.sources.base import Source, SourceParameters, Task


class SimulatedParameters(SourceParameters):
    """The settings of every collection in a simulator."""

    task: Task = Field(description="Name of the environment.")
    episodes: int = Field(400, ge=2, description="Episodes to collect. Some train, some are held out.")
    episode_steps: int | None = Field(
        200, ge=1, description="Length of an episode. null: the environment's own limit."
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
    random_hold: int = Field(20, ge=1, description="Steps that a random action is held for.")


class SimulatedSource(Source):
    """Collects episodes of mixed quality by disturbing a controller."""

    parameters: SimulatedParameters

    def load(self, seed: int, workers: int | None) -> tuple[Transitions, Rewards]:
        """Collect the episodes."""
        make_environment = self.make_environment()
        assert make_environment is not None  # a simulator has one
        return collect(
            make_environment,
            self.make_controller(),
            self.disturbances(),
            episodes=self.parameters.episodes, seed=seed, workers=workers, name=self.parameters.task,
            tasks=len(self.tasks) or 1,
        )  # fmt: skip

    def disturbances(self) -> Disturbances:
        """Return how far collection strays from its controller."""
        given = self.parameters
        return Disturbances(given.noise_max, given.random_max, given.random_hold)

    @abstractmethod
    def make_controller(self) -> Callable[[], Controller]:
        """Return a factory of the controller, importable by other processes."""
