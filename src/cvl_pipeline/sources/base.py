"""The interface of sources: the origin of episodes, and their environment."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import AfterValidator, Field, model_validator

from cvl_pipeline.episodes.parameters import OutOfBounds
from cvl_pipeline.paths import UserPath
from cvl_pipeline.schema import Registry, Strict

if TYPE_CHECKING:
    from cvl_pipeline.environments.base import Environment
    from cvl_pipeline.episodes.container import Rewards, Transitions


def _folder_name(name: str) -> str:
    if not re.fullmatch(r"[\w.\-]+", name.replace("{task}", "task")) or name.startswith("."):
        raise ValueError("must be letters, digits, '.', '_', '-' and '{task}': it names a folder")
    return name


def _task(task: str) -> str:
    if not re.fullmatch(r"\w[\w\-./:]*", task) or ".." in task:
        raise ValueError("must be letters, digits, '_', '-', '/', ':' and '.', such as door-open-v3")
    return task


def _local(path: str) -> str:
    if "://" in path:
        raise ValueError("must be a file or folder on this machine: download it first")
    if "\0" in path:
        raise ValueError("must have no null character")
    return path


Task = Annotated[str, AfterValidator(_task)]
LocalPath = Annotated[UserPath, AfterValidator(_local)]


class SourceParameters(Strict):
    """The settings that every source has. A source adds its own."""

    source: str = Field(description="Name of the source, or `module:Class` for one of your own.")
    name: Annotated[str, AfterValidator(_folder_name)] = Field(
        "{task}",
        description="Folder of the artifacts. `{task}` stands for the task, or for the name of the file "
        "that is read.",
    )
    actions_out_of_bounds: OutOfBounds = Field(
        "refuse",
        description="Logged actions beyond the bounds: `refuse` the log; `clip` them, as an environment that clips "
        "executed them; or `widen` the bounds to the smallest and largest action of the log.",
    )

    @model_validator(mode="before")
    @classmethod
    def _without_memory_limit(cls, values: Any) -> Any:
        if (
            isinstance(values, Mapping)
            and "memory_limit" in values
            and "memory_limit" not in cls.model_fields
        ):
            raise ValueError(
                "memory_limit is no longer needed, because logs are read in pieces; leave it out"
            )
        return values

    @property
    def label(self) -> str:
        """Name of the task or the file in reports."""
        path = PurePath(getattr(self, "path", None) or self.source)
        return str(getattr(self, "task", None) or path.name or self.source)

    @property
    def stem(self) -> str:
        """What ``{task}`` stands for in the name of the folder."""
        return self.label

    @property
    def folder(self) -> str:
        """Name of the dataset's folder in every layer of ``data/``."""
        stem = self.stem.lstrip(".") or self.source  # the paths . and .. and / have no name
        return self.name.replace("{task}", re.sub(r"[^\w.\-]", "-", stem))


class Source(ABC):
    """A source of episodes.

    To add your own, extend this class and give it a model ``Parameters`` with its settings. Choose it with
    ``dataset.source=module:Class``.
    """

    Parameters: ClassVar[type[SourceParameters]] = SourceParameters

    def __init__(self, parameters: Any) -> None:
        """Keep the parameters, an instance of ``Parameters``."""
        self.parameters = parameters

    @abstractmethod
    def load(self, seed: int, workers: int | None) -> tuple[Transitions, Rewards]:
        """Collect, download or read the episodes.

        Args:
            seed: seed of a collection; files ignore it.
            workers: number of processes that collect; None: one per core.

        Returns:
            The episodes and their rewards, which are all NaN if the log has none.

        Raises:
            InputError: a fault in the source, in one line.
        """

    def make_environment(self, episode_steps: int | None = None) -> Callable[[], Environment] | None:
        """Return a factory of the environment for evaluation; None if none is known.

        Other processes must be able to import the factory: a class, a function or a ``functools.partial`` of one.

        Args:
            episode_steps: steps after which an episode is truncated; None: the environment's own limit.

        Raises:
            InputError: an unknown task or id.
        """
        return None

    def make_goal_environment(self, episode_steps: int | None = None) -> Callable[[], Environment] | None:
        """Return a factory of an environment whose ``info["goal"]`` at the reset is the episode's goal, an observation.

        None if no goals are known. Other processes must be able to import the factory.

        Args:
            episode_steps: as of ``make_environment``.

        Raises:
            InputError: an unknown task or id.
        """
        return None

    @property
    def may_have_environment(self) -> bool:
        """Whether an environment may be known, judged by the parameters alone."""
        return self.make_environment() is not None

    @property
    def has_rewards(self) -> bool:
        """Whether the log has rewards, as far as the parameters alone can tell."""
        return True

    @property
    def environment_name(self) -> str:
        """The environment's name in reports."""
        return str(self.parameters.label)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks of a multi-task source, in the order of the observations' one-hot vector; else empty."""
        return ()

    @property
    def goals(self) -> tuple[str, ...]:
        """Names of the goals of ``make_goal_environment``, in turns of episodes; empty if every episode has its own."""
        return ()

    @property
    def slow_to_build(self) -> bool:
        """Whether building the environment only to check it takes too long."""
        return False

    def score(self, mean_return: float) -> float | None:
        """Return the normalised score of a mean return, 0 for random and 100 for expert; None if unknown."""
        return None

    def files(self) -> list[Path]:
        """Return the files and folders that ``load`` reads. If they change, artifacts become stale."""
        return []


SOURCES: Registry[Source] = Registry(
    "source",
    "source",
    "cvl_pipeline.sources.base:Source",
    {
        "metaworld": "cvl_pipeline.sources.metaworld:MetaWorld",
        "pointmaze": "cvl_pipeline.sources.pointmaze:PointMaze",
        "gymnasium": "cvl_pipeline.sources.gymnasium:Gymnasium",
        "d4rl": "cvl_pipeline.sources.d4rl:D4RL",
        "ogbench": "cvl_pipeline.sources.ogbench:OGBench",
        "minari": "cvl_pipeline.sources.minari:Minari",
        "lerobot": "cvl_pipeline.sources.lerobot:LeRobot",
        "files": "cvl_pipeline.sources.files:Files",
    },
)
