"""Nodes of the data_ingestion pipeline."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from cvl_pipeline.pipelines import plots
from cvl_pipeline.rollouts.collection import collect_metaworld
from cvl_pipeline.trajectories.container import Normalisation, Rewards, Split, Transitions
from cvl_pipeline.trajectories.parameters import DatasetParameters, IngestionParameters
from cvl_pipeline.trajectories.preparation import episode_table, fit_normalisation, split_episodes
from cvl_pipeline.trajectories.validation import validate_rewards, validate_transitions


def collect(
    dataset: DatasetParameters, parameters: IngestionParameters, seed: int
) -> tuple[Transitions, Rewards]:
    """Collect episodes from the simulator and check them."""
    transitions, rewards = collect_metaworld(
        dataset.task,
        episodes=dataset.episodes,
        episode_steps=dataset.episode_steps,
        noise_max=dataset.noise_max,
        random_max=dataset.random_max,
        random_hold=dataset.random_hold,
        seed=seed,
        workers=parameters.workers,
    )
    validate_transitions(transitions)
    validate_rewards(rewards, transitions)
    return transitions, rewards


def split(transitions: Transitions, parameters: IngestionParameters, seed: int) -> Split:
    """Hold out whole episodes."""
    return split_episodes(transitions, parameters.validation_fraction, seed)


def normalise(transitions: Transitions, split: Split, parameters: IngestionParameters) -> Normalisation:
    """Measure the training episodes."""
    return fit_normalisation(transitions, split, parameters.std_floor)


def tabulate(transitions: Transitions, rewards: Rewards, split: Split) -> pd.DataFrame:
    """One row an episode."""
    return episode_table(transitions, rewards, split)


def report(episodes: pd.DataFrame) -> dict[str, Any]:
    """Counts, lengths, returns and success of the data."""
    return {
        "episodes": len(episodes),
        "transitions": int(episodes["length"].sum()),
        "train_episodes": int((episodes["part"] == "train").sum()),
        "validation_episodes": int((episodes["part"] == "validation").sum()),
        "terminated_episodes": int(episodes["terminated"].sum()),
        "length_min": int(episodes["length"].min()),
        "length_max": int(episodes["length"].max()),
        "return_mean": float(episodes["return"].mean()),
        "return_min": float(episodes["return"].min()),
        "return_max": float(episodes["return"].max()),
        "success_rate": float(episodes["success"].mean()),
    }


def plot(episodes: pd.DataFrame) -> Figure:
    """Returns of solved and unsolved episodes."""
    return plots.episode_returns(episodes)
