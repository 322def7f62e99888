"""Nodes of the data_ingestion pipeline."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from cvl_pipeline.environments.multitask import with_tasks
from cvl_pipeline.episodes.container import Normalisation, Rewards, Split, Transitions
from cvl_pipeline.episodes.parameters import IngestionParameters
from cvl_pipeline.episodes.preparation import (
    coverage,
    episode_table,
    fit_normalisation,
    split_episodes,
)
from cvl_pipeline.reports import plots
from cvl_pipeline.sources.load import load
from cvl_pipeline.sources.parameters import DatasetParameters
from cvl_pipeline.sources.simulators import shared_tasks

PLOTTED_OBSERVATIONS = 50_000


def ingest(
    dataset: DatasetParameters, parameters: IngestionParameters, seed: int
) -> tuple[Transitions, Rewards]:
    """Collect, download or read the episodes, and check them."""
    return load(dataset, seed, parameters.workers)


def split(transitions: Transitions, parameters: IngestionParameters, seed: int) -> Split:
    """Hold out whole episodes."""
    return split_episodes(transitions, parameters.validation_fraction, seed)


def normalise(transitions: Transitions, split: Split, parameters: IngestionParameters) -> Normalisation:
    """Measure the training episodes."""
    return fit_normalisation(transitions, split, parameters.std_floor)


def tabulate(
    transitions: Transitions, rewards: Rewards, split: Split, dataset: DatasetParameters
) -> pd.DataFrame:
    """One row an episode."""
    return with_tasks(episode_table(transitions, rewards, split), transitions, shared_tasks(dataset))


def report(episodes: pd.DataFrame) -> dict[str, Any]:
    """Counts, lengths, returns and success of the data."""
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
        "success_rate": float(episodes["success"].mean()),
    }


def plot(transitions: Transitions, episodes: pd.DataFrame, normalisation: Normalisation, seed: int) -> Figure:
    """Returns, lengths and coverage."""
    return plots.behaviour_data(episodes, coverage(transitions, normalisation, PLOTTED_OBSERVATIONS, seed))


def _known(value: float) -> float | None:
    """JSON has no NaN: a log without rewards has no returns."""
    return None if math.isnan(value) else float(value)
