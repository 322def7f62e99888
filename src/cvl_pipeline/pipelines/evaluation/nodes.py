"""Nodes of the evaluation pipeline."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from cvl_pipeline.networks.actor import GaussianActor
from cvl_pipeline.pipelines import plots
from cvl_pipeline.rollouts.evaluation import evaluate_metaworld
from cvl_pipeline.rollouts.parameters import EvaluationParameters
from cvl_pipeline.rollouts.summary import summarise_rollouts
from cvl_pipeline.trajectories.parameters import DatasetParameters


def roll_out(
    policy: GaussianActor, dataset: DatasetParameters, parameters: EvaluationParameters, seed: int
) -> pd.DataFrame:
    """Run the CVL policy on goals that collection never used."""
    return _roll_out(policy, dataset, parameters, seed, "CVL")


def roll_out_bc(
    bc_policy: GaussianActor, dataset: DatasetParameters, parameters: EvaluationParameters, seed: int
) -> pd.DataFrame:
    """Run the cloned policy on the same goals."""
    return _roll_out(bc_policy, dataset, parameters, seed, "BC")


def summarise(
    rollouts: pd.DataFrame,
    bc_rollouts: pd.DataFrame,
    episodes: pd.DataFrame,
    dataset: DatasetParameters,
    parameters: EvaluationParameters,
    seed: int,
) -> dict[str, Any]:
    """Means and confidence intervals of both policies and the behaviour data, and how they were made."""
    summaries = summarise_rollouts(
        {"cvl": rollouts, "bc": bc_rollouts, "behaviour": episodes}, parameters.confidence, seed
    )
    return {
        **summaries,
        "episodes": parameters.episodes,
        "behaviour_episodes": len(episodes),
        "task": dataset.task,
        "dataset": dataset.folder,
        "seed": seed,
        "episode_steps": dataset.episode_steps,
        "confidence": parameters.confidence,
        "protocol": "deterministic policy; success at any step of an episode; goals unseen in collection",
    }


def plot(metrics: dict[str, Any]) -> Figure:
    """Success and return, side by side."""
    return plots.comparison(metrics)


def _roll_out(
    actor: GaussianActor, dataset: DatasetParameters, parameters: EvaluationParameters, seed: int, name: str
) -> pd.DataFrame:
    return evaluate_metaworld(
        actor,
        dataset.task,
        episodes=parameters.episodes,
        episode_steps=dataset.episode_steps,
        seed=seed,
        workers=parameters.workers,
        name=name,
    )
