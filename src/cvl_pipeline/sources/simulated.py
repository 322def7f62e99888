"""Base class of sources that collect episodes in a simulator."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from cvl_pipeline.errors import InputError
from cvl_pipeline.schema import LONGEST_EPISODE, MOST_EPISODES
from cvl_pipeline.sources.base import Source, SourceParameters, Task

if TYPE_CHECKING:
    from cvl_pipeline.environments.base import Environment
    from cvl_pipeline.environments.collection import Controller, Disturbances
    from cvl_pipeline.episodes.container import Rewards, Transitions

MIXED: Mapping[str, Any] = {"noise_max": 0.3, "random_max": 1.0, "random_hold": 20}

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "mixed": MIXED,
    "noisy": {"noise_max": 0.3, "random_max": 0.55, "random_hold": 10},
    "fragments": {**MIXED, "window": None},
    "play": {"noise_max": 0.3, "random_max": 0.0, "random_hold": 20, "goal_steps": 50},
    "sparse": MIXED,
    "expert_few": {"random_hold": 20},
}
"""The settings that each preset uses, and their defaults."""

SETTINGS = tuple(dict.fromkeys(name for settings in PRESETS.values() for name in settings))

EXPERTS = 0.025
"""Share of undisturbed episodes of the preset ``expert_few``."""


class SimulatedParameters(SourceParameters):
    """The settings that every collection in a simulator has."""

    plays: ClassVar[bool] = False
    """Whether the controller is a ``Player`` (environments/collection.py), which the preset ``play`` needs."""

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
    preset: Literal["mixed", "noisy", "fragments", "play", "sparse", "expert_few"] = Field(
        "mixed",
        description="What the episodes test (docs/data.md). `mixed`: each episode has a quality of its own. `noisy`: "
        "all are equally bad. `fragments`: windows that hold no whole solution. `play`: the controller pursues other "
        "goals than the episode's. `sparse`: `mixed`, with success as the reward. `expert_few`: 2.5 % undisturbed "
        "episodes, at least one per task, among random ones. Unless `mixed`, `{task}` in `dataset.name` also stands "
        "for the preset.",
    )
    noise_max: float | None = Field(
        None,
        ge=0.0,
        description="Each episode draws the standard deviation of its action noise from [0, noise_max], in halves "
        "of the action range; with `noisy`, it is noise_max. null: 0.3. Not for `expert_few`.",
    )
    random_max: float | None = Field(
        None,
        ge=0.0,
        le=1.0,
        description="Each episode draws its share of random steps from [0, random_max]; with `noisy`, it is "
        "random_max. null: 1, but 0.55 with `noisy` and 0 with `play`. Not for `expert_few`.",
    )
    random_hold: int | None = Field(
        None,
        ge=1,
        le=LONGEST_EPISODE,
        description="Steps for which a random action is held. null: 20, but 10 with `noisy`.",
    )
    window: int | None = Field(
        None,
        ge=1,
        le=LONGEST_EPISODE,
        description="Steps of a window; only for `fragments`. null: a third of the steps in which the undisturbed "
        "controller solves the task, the median of ten episodes.",
    )
    goal_steps: int | None = Field(
        None,
        ge=1,
        le=LONGEST_EPISODE,
        description="Steps after which the controller pursues another goal; only for `play`. null: 50.",
    )

    @model_validator(mode="after")
    def _settings_fit_the_preset(self) -> SimulatedParameters:
        unused = [
            f"dataset.{name}"
            for name in SETTINGS
            if name not in PRESETS[self.preset] and getattr(self, name) is not None
        ]
        if unused:
            raise ValueError(
                f"dataset.preset {self.preset} does not use {' and '.join(unused)}: leave it out, or set it to null"
            )
        if self.preset == "play" and not self.plays:
            raise ValueError(
                f"dataset.preset play needs a controller that can pursue other goals, which dataset.source "
                f"{self.source} does not have: choose another preset"
            )
        if self.window is not None and self.episode_steps is not None and self.window >= self.episode_steps:
            raise ValueError(
                f"dataset.window is {self.window}, but episodes have only {self.episode_steps} steps "
                "(dataset.episode_steps): choose a smaller window"
            )
        return self

    def setting(self, name: str) -> Any:
        """Return the value of one of SETTINGS: your own, or else the preset's."""
        value = getattr(self, name)
        return PRESETS[self.preset].get(name) if value is None else value

    @property
    def stem(self) -> str:
        """The task, and the preset unless it is ``mixed``."""
        return self.label if self.preset == "mixed" else f"{self.label}-{self.preset}"

    def rewarded(self, make: Callable[[], Environment]) -> Callable[[], Environment]:
        """Return a factory of the same environment with the reward of the preset."""
        from cvl_pipeline.environments.base import SuccessRewarded  # not above: it imports gymnasium

        return partial(SuccessRewarded, make) if self.preset == "sparse" else make


class SimulatedSource(Source):
    """Collects episodes by disturbing a controller, in the way that ``dataset.preset`` names."""

    parameters: SimulatedParameters

    def load(self, seed: int, workers: int | None) -> tuple[Transitions, Rewards]:
        """Collect the episodes."""
        from cvl_pipeline.environments.collection import Fragments, collect  # not above: it imports torch

        p = self.parameters
        make_environment = self.collection_environment()
        transitions, rewards = collect(
            p.rewarded(make_environment),
            self.make_controller(),
            self.disturbances(),
            episodes=p.episodes, seed=seed, workers=workers, name=p.task, tasks=len(self.tasks) or 1,
            experts=EXPERTS if p.preset == "expert_few" else 0.0,
            goal_steps=p.setting("goal_steps"),
            fragments=Fragments(p.window) if p.preset == "fragments" else None,
            part=self.controller_part,
        )  # fmt: skip
        if p.preset == "sparse" and not rewards.reports_success:
            raise InputError(
                f"dataset.preset sparse: {p.task} reported no success in {p.episodes} episodes, so every reward would "
                "be 0; choose another preset"
            )
        return transitions, rewards

    @property
    def may_have_environment(self) -> bool:
        """Always."""
        return True

    @property
    def controller_part(self) -> str | None:
        """Part of the observations that the controller gets; None: all of them."""
        return None

    def collection_environment(self) -> Callable[[], Environment]:
        """Return a factory of the environment that episodes are collected in: that of the evaluation."""
        make = self.make_environment()
        assert make is not None  # every simulated source has an environment
        return make

    def disturbances(self) -> Disturbances:
        """Return the disturbances of the controller's actions."""
        from cvl_pipeline.environments.collection import Disturbances

        p = self.parameters
        if p.preset == "expert_few":  # the rest is random
            return Disturbances(0.0, 1.0, p.setting("random_hold"), random_min=1.0)
        noise, random, hold = (p.setting(name) for name in MIXED)
        alike = p.preset == "noisy"
        return Disturbances(
            noise, random, hold, random_min=random if alike else 0.0, noise_min=noise if alike else 0.0
        )

    @abstractmethod
    def make_controller(self) -> Callable[[], Controller]:
        """Return a factory of the controller, which other processes can import."""
