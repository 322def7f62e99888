"""Nodes of the evaluation pipeline."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from torch import nn

from cvl_pipeline.pipelines import plots
from cvl_pipeline.readout.parameters import RewardParameters
from cvl_pipeline.readout.rewards import label
from cvl_pipeline.rollouts.evaluation import evaluate_metaworld, rollout_table
from cvl_pipeline.rollouts.parameters import EvaluationParameters
from cvl_pipeline.rollouts.summary import summarise_rollouts
from cvl_pipeline.trajectories.container import Rewards, Split, Transitions
from cvl_pipeline.trajectories.parameters import DatasetParameters
from cvl_pipeline.trajectories.preparation import episode_table


def roll_out(
    policy: nn.Module, dataset: DatasetParameters, parameters: EvaluationParameters, seed: int
) -> tuple[Transitions, Rewards]:
    """Run the CVL policy on goals that collection never used."""
    return _roll_out(policy, dataset, parameters, seed, "CVL")


def roll_out_bc(
    bc_policy: nn.Module, dataset: DatasetParameters, parameters: EvaluationParameters, seed: int
) -> tuple[Transitions, Rewards]:
    """Run the cloned policy on the same goals."""
    return _roll_out(bc_policy, dataset, parameters, seed, "BC")


def score(
    transitions: Transitions,
    rewards: Rewards,
    bc_transitions: Transitions,
    bc_rewards: Rewards,
    reward: RewardParameters,
    seed: int,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return and success of every rollout under the reward in force, of both policies."""
    return (
        rollout_table(transitions, label(transitions, rewards, reward), seed),
        rollout_table(bc_transitions, label(bc_transitions, bc_rewards, reward), seed),
    )


def summarise(
    rollouts: pd.DataFrame,
    bc_rollouts: pd.DataFrame,
    transitions: Transitions,
    labels: Rewards,
    split: Split,
    dataset: DatasetParameters,
    reward: RewardParameters,
    parameters: EvaluationParameters,
    seed: int,
) -> dict[str, Any]:
    """Means and confidence intervals of both policies and the behaviour data, and how they were made."""
    behaviour = episode_table(transitions, labels, split)
    summaries = summarise_rollouts(
        {"cvl": rollouts, "bc": bc_rollouts, "behaviour": behaviour}, parameters.confidence, seed
    )
    return {
        **summaries,
        "episodes": len(rollouts),
        "behaviour_episodes": len(behaviour),
        "task": dataset.task,
        "dataset": dataset.folder,
        "reward": reward.source,
        "seed": seed,
        "episode_steps": dataset.episode_steps,
        "confidence": parameters.confidence,
        "protocol": "deterministic policy; success at any step of an episode; goals unseen in collection",
    }


def plot(metrics: dict[str, Any]) -> Figure:
    """Success and return, side by side."""
    return plots.comparison(metrics)


def _roll_out(
    policy: nn.Module, dataset: DatasetParameters, parameters: EvaluationParameters, seed: int, name: str
) -> tuple[Transitions, Rewards]:
    return evaluate_metaworld(
        policy,
        dataset.task,
        episodes=parameters.episodes,
        episode_steps=dataset.episode_steps,
        seed=seed,
        workers=parameters.workers,
        name=name,
    )
