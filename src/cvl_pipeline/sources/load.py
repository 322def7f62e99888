"""One door to every source."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pooch

from cvl_pipeline.environments.collection import Disturbances, collect
from cvl_pipeline.episodes.container import Rewards, Transitions
from cvl_pipeline.episodes.validation import validate_rewards, validate_transitions
from cvl_pipeline.errors import look_up
from cvl_pipeline.sources.d4rl import fetch_d4rl, load_d4rl
from cvl_pipeline.sources.files import load_file
from cvl_pipeline.sources.minari import load_minari
from cvl_pipeline.sources.parameters import DatasetParameters
from cvl_pipeline.sources.simulators import make_controller, make_environment, shared_tasks

Source = Callable[[DatasetParameters, int, int | None], tuple[Transitions, Rewards]]


def load(dataset: DatasetParameters, seed: int, workers: int | None) -> tuple[Transitions, Rewards]:
    """Collect, download or read the episodes that the parameters name, and check them.

    Args:
        dataset: which episodes.
        seed: of a collection; files stay what they are.
        workers: processes that collect; None takes as many as there are cores.

    Returns:
        The episodes and their rewards, which are all NaN where the log has none.

    Raises:
        InputError: whatever is wrong with the source, in one line.
    """
    transitions, rewards = look_up("source", dataset.source, SOURCES)(dataset, seed, workers)
    validate_transitions(transitions)
    validate_rewards(rewards, transitions)
    return transitions, rewards


def _simulated(dataset: DatasetParameters, seed: int, workers: int | None) -> tuple[Transitions, Rewards]:
    disturbances = Disturbances(dataset.noise_max, dataset.random_max, dataset.random_hold)
    if dataset.source == "gymnasium" and dataset.policy is None:
        disturbances = Disturbances(0.0, 1.0, dataset.random_hold, random_min=1.0)
    return collect(
        make_environment(dataset),
        make_controller(dataset),
        disturbances,
        episodes=dataset.episodes, seed=seed, workers=workers, name=dataset.task,
        tasks=len(shared_tasks(dataset)) or 1,
    )  # fmt: skip


def _d4rl(dataset: DatasetParameters, seed: int, workers: int | None) -> tuple[Transitions, Rewards]:
    path = Path(dataset.path) if dataset.path else fetch_d4rl(dataset.task, Path(pooch.os_cache("d4rl")))
    return load_d4rl(path, dataset.task, dataset.success_reward)


def _minari(dataset: DatasetParameters, seed: int, workers: int | None) -> tuple[Transitions, Rewards]:
    return load_minari(dataset.task, Path(dataset.path) if dataset.path else None)


def _files(dataset: DatasetParameters, seed: int, workers: int | None) -> tuple[Transitions, Rewards]:
    assert dataset.path is not None  # checked with the parameters
    return load_file(Path(dataset.path), dataset.columns, dataset.action_low, dataset.action_high)


SOURCES: dict[str, Source] = {
    "metaworld": _simulated,
    "pointmaze": _simulated,
    "gymnasium": _simulated,
    "d4rl": _d4rl,
    "minari": _minari,
    "files": _files,
}
