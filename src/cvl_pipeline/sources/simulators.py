"""Which environment a dataset belongs to: where it is collected, or where its policies are evaluated."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cvl_pipeline.environments.base import (
    BENCHMARKS,
    Array,
    Environment,
    GymnasiumEnvironment,
    MetaWorldEnvironment,
    MetaWorldExpert,
    check_metaworld_task,
)
from cvl_pipeline.environments.collection import Controller
from cvl_pipeline.environments.d4rl_tasks import D4RL_TASKS
from cvl_pipeline.environments.multitask import MultiTaskEnvironment, MultiTaskExpert, benchmark_tasks
from cvl_pipeline.environments.parameters import EvaluationParameters
from cvl_pipeline.environments.pointmaze import WaypointController, check_pointmaze_task
from cvl_pipeline.errors import InputError
from cvl_pipeline.imports import user_function
from cvl_pipeline.sources.minari import environment_spec
from cvl_pipeline.sources.parameters import DatasetParameters

SUCCESSORS = {
    "hopper": "Hopper-v5",
    "halfcheetah": "HalfCheetah-v5",
    "walker2d": "Walker2d-v5",
    "pen": "AdroitHandPen-v1",
    "hammer": "AdroitHandHammer-v1",
    "door": "AdroitHandDoor-v1",
    "relocate": "AdroitHandRelocate-v1",
}
"""Gymnasium's environments with the observations and actions of D4RL's, by the first word of the id.

The physics is not the same: MuJoCo's own bindings instead of mujoco_py 2.0, and version 5 of the tasks
instead of 2, so returns are near D4RL's, not equal to them. Where the observations themselves changed, in
maze2d, antmaze and kitchen, ``D4RL_TASKS`` has D4RL's own tasks anew."""


def make_environment(
    dataset: DatasetParameters, evaluation: EvaluationParameters | None = None
) -> partial[Any]:
    """A factory, importable by other processes, of the dataset's environment.

    Args:
        dataset: a simulator's own, or one whose successor or specification is known.
        evaluation: names another environment, if its ``environment`` is not null.

    Raises:
        InputError: nothing is known of the environment; an unknown task or id.
    """
    steps = dataset.episode_steps
    if evaluation is not None and evaluation.environment is not None:
        return partial(GymnasiumEnvironment, evaluation.environment, evaluation.episode_steps)
    if dataset.source == "metaworld":
        check_metaworld_task(dataset.task, BENCHMARKS)  # before any process starts
        assert steps is not None  # checked with the parameters
        several = dataset.task in BENCHMARKS
        return partial(MultiTaskEnvironment if several else MetaWorldEnvironment, dataset.task, steps)
    if dataset.source == "pointmaze":
        check_pointmaze_task(dataset.task)
        return partial(GymnasiumEnvironment, dataset.task, steps)
    if dataset.source == "gymnasium":
        return partial(GymnasiumEnvironment, dataset.task, steps)
    own_steps = evaluation.episode_steps if evaluation else None
    if dataset.source == "minari":
        root = Path(dataset.path) if dataset.path else None
        spec = environment_spec(dataset.task, root)
        if spec is not None:  # by its id, not as it stands: a specification may name any code as its entry
            return partial(GymnasiumEnvironment, spec.id, own_steps or spec.max_episode_steps, spec.kwargs)
    family = dataset.task.split("-")[0]
    if dataset.source == "d4rl" and family in SUCCESSORS:
        return partial(GymnasiumEnvironment, SUCCESSORS[family], own_steps)
    if dataset.source == "d4rl" and family in D4RL_TASKS:
        return partial(D4RL_TASKS[family], dataset.task, own_steps)
    raise InputError(
        f"dataset.source {dataset.source}, task '{dataset.task}': no environment is known to evaluate in; "
        "name one in evaluation.environment (a Gymnasium id), or stop before: kedro run --pipelines "
        "data_ingestion,contrastive_dynamics,value_readout,policy_extraction"
    )


def check_environment(dataset: DatasetParameters, evaluation: EvaluationParameters) -> None:
    """Raise InputError unless policies can be evaluated."""
    factory = make_environment(dataset, evaluation)
    # Meta-World's task is checked, and takes seconds to build.
    if factory.func not in (MetaWorldEnvironment, MultiTaskEnvironment):
        factory().close()


def environment_name(dataset: DatasetParameters, evaluation: EvaluationParameters) -> str:
    """What a report calls the environment that policies are evaluated in."""
    factory = make_environment(dataset, evaluation)
    return str(factory.args[0])  # of every factory above: a task or an id


def shared_tasks(
    dataset: DatasetParameters, evaluation: EvaluationParameters | None = None
) -> tuple[str, ...]:
    """The tasks that a run's episodes are shared among, as observations number them; () for a single one."""
    elsewhere = evaluation is not None and evaluation.environment is not None
    if dataset.source != "metaworld" or dataset.task not in BENCHMARKS or elsewhere:
        return ()
    return benchmark_tasks(dataset.task)


def make_controller(dataset: DatasetParameters) -> Callable[[], Controller]:
    """A factory of what acts in a collection, before disturbances."""
    if dataset.source == "metaworld" and dataset.task in BENCHMARKS:
        return partial(MultiTaskExpert, dataset.task)
    if dataset.source == "metaworld":
        return partial(MetaWorldExpert, dataset.task)
    if dataset.source == "pointmaze":
        return partial(WaypointController, dataset.task)
    if dataset.policy is not None:
        user_function("dataset.policy", dataset.policy)  # before any process starts
    return partial(UserController, dataset.policy, make_environment(dataset))


class UserController:
    """A person's own policy; without one, zeros for the disturbances to replace."""

    def __init__(self, policy: str | None, make: Callable[[], Environment]) -> None:
        """Import ``policy``, a function of an observation (O,) that returns what Gymnasium's step takes."""
        environment = make()
        self._space, self._discrete = environment.action_space, environment.discrete
        environment.close()
        self._policy = None if policy is None else user_function("dataset.policy", policy)
        self._name = policy

    def __call__(self, observation: Array) -> Array:
        """Action (A,), one-hot where it is a choice."""
        if self._policy is None:
            return np.zeros(self._space.shape)
        action: Array = np.asarray(self._policy(observation))
        size = self._space.shape[0]
        if self._discrete:
            known = action.shape == () and action.dtype.kind in "iu" and 0 <= int(action) < size
        else:
            known = (
                action.shape == (size,) and action.dtype.kind in "biuf" and bool(np.isfinite(action).all())
            )
        if not known:
            wanted = f"one of 0..{size - 1}" if self._discrete else f"{size} finite numbers"
            raise InputError(f"dataset.policy '{self._name}' returned {action!r}, not {wanted}")
        one_hot: Array = np.eye(size)
        return one_hot[int(action)] if self._discrete else action
