"""Nodes of the evaluation pipeline."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from torch import nn

from cvl_pipeline.environments.evaluation import evaluate, rollout_table
from cvl_pipeline.environments.multitask import with_tasks
from cvl_pipeline.environments.parameters import EvaluationParameters
from cvl_pipeline.episodes.container import Rewards, Split, Transitions
from cvl_pipeline.episodes.preparation import episode_table
from cvl_pipeline.errors import InputError
from cvl_pipeline.readout.parameters import RewardParameters
from cvl_pipeline.readout.rewards import label
from cvl_pipeline.reports import plots
from cvl_pipeline.reports.summary import summarise_rollouts
from cvl_pipeline.sources.d4rl import normalised_score
from cvl_pipeline.sources.parameters import DatasetParameters
from cvl_pipeline.sources.simulators import environment_name, make_environment, shared_tasks


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
    dataset: DatasetParameters,
    reward: RewardParameters,
    parameters: EvaluationParameters,
    seed: int,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return and success of every rollout under the reward in force, of both policies."""
    tasks = shared_tasks(dataset, parameters)
    return (
        rollout_table(transitions, label(transitions, rewards, reward), seed, tasks),
        rollout_table(bc_transitions, label(bc_transitions, bc_rewards, reward), seed, tasks),
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
    episodes = episode_table(transitions, labels, split)
    behaviour = with_tasks(episodes, transitions, shared_tasks(dataset))
    summaries = summarise_rollouts(
        {"cvl": rollouts, "bc": bc_rollouts, "behaviour": behaviour}, parameters.confidence, seed
    )
    return {
        **summaries,
        **_normalised(summaries, dataset),
        "episodes": len(rollouts),
        "behaviour_episodes": len(behaviour),
        "task": dataset.task,
        "dataset": dataset.folder,
        "reward": reward.source,
        "seed": seed,
        "environment": environment_name(dataset, parameters),
        "confidence": parameters.confidence,
        "protocol": "deterministic policy; success at any step of an episode; seeds unseen in collection",
    }


def plot(metrics: dict[str, Any]) -> Figure:
    """Success and return, side by side."""
    return plots.comparison(metrics)


def _normalised(summaries: dict[str, float], dataset: DatasetParameters) -> dict[str, float]:
    """D4RL's scores (0: a random policy, 100: an expert) of the mean returns; none of other datasets."""
    scores: dict[str, float] = {}
    if dataset.source == "d4rl":
        with suppress(InputError):  # a local file under a name of its own, or no tables
            for policy in ("cvl", "bc", "behaviour"):
                score = normalised_score(dataset.task, summaries[f"{policy}.return_mean"])
                scores |= {} if score is None else {f"{policy}.normalised_score": score}
    return scores


def _roll_out(
    policy: nn.Module, dataset: DatasetParameters, parameters: EvaluationParameters, seed: int, name: str
) -> tuple[Transitions, Rewards]:
    return evaluate(
        policy,
        make_environment(dataset, parameters),
        episodes=parameters.episodes,
        seed=seed,
        workers=parameters.workers,
        name=name,
        tasks=len(shared_tasks(dataset, parameters)) or 1,
    )
