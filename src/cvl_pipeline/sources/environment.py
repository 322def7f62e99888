"""The environment that policies are evaluated in: the dataset's own, or the one that the user names."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from cvl_pipeline.environments.parameters import EvaluationParameters
from cvl_pipeline.errors import InputError
from cvl_pipeline.imports import check_return
from cvl_pipeline.sources.base import SOURCES, Source, SourceParameters
from cvl_pipeline.sources.simulated import SimulatedParameters, SimulatedSource

if TYPE_CHECKING:
    from cvl_pipeline.environments.base import Environment
    from cvl_pipeline.episodes.container import Rewards, Transitions

GOALS_OF = "goals of "
"""How the name of an environment begins whose episodes have a goal each."""


@dataclass(frozen=True)
class EvaluationEnvironment:
    """An environment to evaluate policies in.

    Attributes:
        make: makes it; importable by other processes.
        name: in reports.
        tasks: that episodes are shared among; empty for a single one.
        slow_to_build: building it only to check it takes too long.
        made_the_log: the log was collected in it.
        goals: its observations are a state and the goal of the episode, side by side; see ``GoalEnvironment``.
    """

    make: Callable[[], Environment]
    name: str
    tasks: tuple[str, ...] = ()
    slow_to_build: bool = False
    made_the_log: bool = False
    goals: bool = False

    def with_known_success(self, rollouts: Rewards, log: Rewards) -> Rewards:
        """Return the labels of a policy's rollouts, of which the log may say that success is reported.

        An environment may mention success only where a policy reaches it. If the log was collected in it and reports
        success, rollouts that never mention it never reached it.
        """
        known = rollouts.success_reported | (log.success_reported & self.made_the_log)
        return replace(rollouts, success_reported=known)

    def check(self, transitions: Transitions | None = None) -> None:
        """Raise InputError unless the environment can be built and fits the episodes, if there are any yet."""
        if self.slow_to_build:
            return
        # Not above: they import torch and gymnasium, and the pipelines are built without.
        from cvl_pipeline.environments.base import checked
        from cvl_pipeline.environments.evaluation import check_fit
        from cvl_pipeline.episodes.parts import shape_beside

        with closing(checked(self.make())) as environment:
            if transitions is not None:
                shape, layout = tuple(transitions.observations.shape[1:]), transitions.parts
                if self.goals:
                    shape, layout = shape_beside(shape, layout)
                size = transitions.actions.shape[1]
                check_fit(environment, shape, size, bool(transitions.discrete), layout)


def environment_named(environment_id: str, episode_steps: int | None = None) -> EvaluationEnvironment:
    """Return a Gymnasium environment by its id; ``check`` says whether it exists."""
    from cvl_pipeline.environments.gymnasium import GymnasiumEnvironment

    return EvaluationEnvironment(partial(GymnasiumEnvironment, environment_id, episode_steps), environment_id)


def has_environment(dataset: SourceParameters, evaluation: EvaluationParameters) -> bool:
    """Return whether policies can be evaluated, as far as the parameters alone can tell."""
    if evaluation.environment is not None or evaluation.goals:
        return True
    try:
        return SOURCES.create(dataset).may_have_environment
    except InputError:  # an unknown task, which the check before the run reports
        return True


def environment_for(dataset: SourceParameters, evaluation: EvaluationParameters) -> EvaluationEnvironment:
    """Return the environment that policies are evaluated in.

    Args:
        dataset: the source, whose own environment or successor is taken.
        evaluation: names another environment, if its ``environment`` is not null.

    Raises:
        InputError: no environment is known; an unknown task or id.
    """
    place = _environment_for(dataset, evaluation)
    # The reward of the log, so that the returns of policies and of the log can be compared.
    make = dataset.rewarded(place.make) if isinstance(dataset, SimulatedParameters) else place.make
    return replace(place, make=make)


def _environment_for(dataset: SourceParameters, evaluation: EvaluationParameters) -> EvaluationEnvironment:
    if evaluation.environment is not None and evaluation.goals:
        raise InputError(
            "evaluation.goals is true, but only the dataset's own environment has known goals; set "
            "evaluation.environment to null"
        )
    if evaluation.environment is not None:
        return environment_named(evaluation.environment, evaluation.episode_steps)
    source: Source = SOURCES.create(dataset)
    if evaluation.goals:
        return _goals_of(source, dataset, evaluation.episode_steps)
    factory = source.make_environment(evaluation.episode_steps)
    if factory is None:
        raise InputError(
            f"no environment is known for dataset '{dataset.label}' (dataset.source {dataset.source}); name a "
            "Gymnasium id in evaluation.environment to evaluate policies"
        )
    check_return(
        source, "make_environment", factory, valid=callable(factory), expected="a function that makes one"
    )
    return EvaluationEnvironment(
        factory,
        source.environment_name,
        source.tasks,
        source.slow_to_build,
        isinstance(source, SimulatedSource),
    )


def _goals_of(source: Source, dataset: SourceParameters, episode_steps: int | None) -> EvaluationEnvironment:
    from cvl_pipeline.environments.goals import GoalEnvironment

    factory = source.make_goal_environment(episode_steps)
    if factory is None:
        raise InputError(
            f"evaluation.goals is true, but no goals are known for dataset '{dataset.label}' (dataset.source "
            f"{dataset.source}); set it to false"
        )
    check_return(
        source,
        "make_goal_environment",
        factory,
        valid=callable(factory),
        expected="a function that makes one",
    )
    return EvaluationEnvironment(
        partial(GoalEnvironment, factory), f"{GOALS_OF}{dataset.label}", source.goals, source.slow_to_build,
        isinstance(source, SimulatedSource), goals=True,
    )  # fmt: skip
