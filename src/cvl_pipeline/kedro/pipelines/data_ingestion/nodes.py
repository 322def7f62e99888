"""Nodes of the data_ingestion pipeline."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from cvl_pipeline.sources.base import SOURCES

if TYPE_CHECKING:
    import pandas as pd

    from cvl_pipeline.episodes.container import Normalisation, Rewards, Split, Transitions


def ingest(dataset: dict[str, Any], workers: int | None, seed: int) -> tuple[Transitions, Rewards]:
    """Collect, download or read the episodes, and check them."""
    from cvl_pipeline.api import ingest as ingest_episodes

    return ingest_episodes(SOURCES.validate(dataset), seed, workers)  # type: ignore[arg-type]


def split(transitions: Transitions, validation_fraction: float, seed: int) -> Split:
    """Hold out whole episodes."""
    from cvl_pipeline.episodes.preparation import split_episodes

    return split_episodes(transitions, validation_fraction, seed)


def normalise(transitions: Transitions, split: Split, std_floor: float) -> Normalisation:
    """Measure the training episodes."""
    from cvl_pipeline.episodes.preparation import fit_normalisation

    return fit_normalisation(transitions, split, std_floor)


def tabulate(
    transitions: Transitions, rewards: Rewards, split: Split, dataset: dict[str, Any]
) -> pd.DataFrame:
    """Make one row per episode."""
    from cvl_pipeline.episodes.preparation import episode_table, with_tasks

    tasks = SOURCES.create(SOURCES.validate(dataset)).tasks
    return with_tasks(episode_table(transitions, rewards, split), transitions, tasks)


def report(episodes: pd.DataFrame, transitions: Transitions, rewards: Rewards) -> dict[str, Any]:
    """Count episodes and steps; summarise lengths, returns and success, and what reading dropped or changed."""
    return {
        "episodes": len(episodes),
        "transitions": int(episodes["length"].sum()),
        "train_episodes": int((episodes["part"] == "train").sum()),
        "validation_episodes": int((episodes["part"] == "validation").sum()),
        "terminated_episodes": int(episodes["terminated"].sum()),
        "duplicate_episodes": int(episodes["duplicate"].sum()),
        "length_min": int(episodes["length"].min()),
        "length_max": int(episodes["length"].max()),
        **{f"return_{name}": _known(episodes["return"].agg(name)) for name in ("mean", "min", "max")},
        "success_rate": _known(episodes["success"].astype("Float64").mean()),
        "dropped_steps": int(rewards.dropped_steps),
        "dropped_episodes": int(rewards.dropped_episodes),
        "dropped_reward": None if rewards.missing else float(rewards.dropped_reward),
        "dropped_successes": int(rewards.dropped_successes) if rewards.reports_success else None,
        "actions_out_of_bounds": int(transitions.actions_out_of_bounds),
        "largest_excess": float(transitions.largest_excess),
    }


def plot(transitions: Transitions, episodes: pd.DataFrame, normalisation: Normalisation, seed: int) -> Any:
    """Draw returns, lengths and coverage."""
    from cvl_pipeline.episodes.preparation import PLOTTED_OBSERVATIONS, coverage
    from cvl_pipeline.reports import plots

    return plots.behaviour_data(episodes, coverage(transitions, normalisation, PLOTTED_OBSERVATIONS, seed))


def _known(value: Any) -> float | None:
    """Return None for a missing value: JSON has no NaN, and a log may lack rewards or successes."""
    import pandas as pd

    return None if value is pd.NA or math.isnan(value) else float(value)
