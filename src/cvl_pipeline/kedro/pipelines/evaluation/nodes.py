"""Nodes of the evaluation pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cvl_pipeline.environments.parameters import EvaluationParameters
from cvl_pipeline.readout.parameters import REWARDS
from cvl_pipeline.sources.base import SOURCES
from cvl_pipeline.sources.environment import EvaluationEnvironment, environment_for

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from cvl_pipeline.episodes.container import Rewards, Split, Transitions

BEHAVIOUR = "behaviour"
"""The row of the data that the policies learned from."""


def roll_out(
    title: str,
    /,
    policy: nn.Module,
    dataset: dict[str, Any],
    environment: str | None,
    episode_steps: int | None,
    episodes: int,
    workers: int | None,
    seed: int,
) -> tuple[Transitions, Rewards]:
    """Run a policy on goals that collection never used, the same goals for every policy."""
    from cvl_pipeline.api import roll_out as run_policy

    place = _environment(dataset, environment, episode_steps)
    return run_policy(policy, place, episodes=episodes, seed=seed, workers=workers, name=title)


def score(
    transitions: Transitions,
    rewards: Rewards,
    labels: Rewards,
    dataset: dict[str, Any],
    environment: str | None,
    reward: dict[str, Any],
    seed: int,
) -> pd.DataFrame:
    """Compute return and success of every rollout under the reward in force.

    The labels of the log say whether its environment reports success. As they are an input,
    ``--from-nodes value_readout.label`` also scores policies that need no rewards.
    """
    from cvl_pipeline.environments.evaluation import rollout_table
    from cvl_pipeline.readout.rewards import label_rollouts

    place = _environment(dataset, environment)
    rewards = place.with_known_success(rewards, labels)
    scored = label_rollouts(transitions, rewards, REWARDS.validate(reward))  # type: ignore[arg-type]
    return rollout_table(transitions, scored, seed, place.tasks)


def summarise(
    titles: Mapping[str, str],
    /,
    transitions: Transitions,
    labels: Rewards,
    split: Split,
    dataset: dict[str, Any],
    reward: dict[str, Any],
    environment: str | None,
    episode_steps: int | None,
    confidence: float,
    seed: int,
    **tables: pd.DataFrame,
) -> dict[str, Any]:
    """Report means and confidence intervals of all policies and the behaviour data, and the protocol."""
    from cvl_pipeline.episodes.preparation import episode_table, with_tasks
    from cvl_pipeline.reports.summary import summarise_rollouts

    rollouts = _with_known_success({name: tables[f"{name}_rollouts"] for name in titles})
    parameters = SOURCES.validate(dataset)
    source = SOURCES.create(parameters)
    behaviour = with_tasks(episode_table(transitions, labels, split), transitions, source.tasks)
    summaries = summarise_rollouts({**rollouts, BEHAVIOUR: behaviour}, confidence, seed)
    means = {name: summaries[f"{name}.return_mean"] for name in (*rollouts, BEHAVIOUR)}
    # Scores are defined for the dataset's own reward alone.
    scores = {
        f"{name}.normalised_score": source.score(mean)
        for name, mean in means.items()
        if mean is not None and reward["source"] == "dataset"
    }
    return {
        **summaries,
        **{name: score for name, score in scores.items() if score is not None},
        "methods": dict(titles),
        "episodes": len(next(iter(rollouts.values()))),
        "behaviour_episodes": len(behaviour),
        "task": parameters.label,  # type: ignore[attr-defined]
        "dataset": parameters.folder,  # type: ignore[attr-defined]
        "reward": reward["source"],
        **({"reward_name": reward["name"]} if reward.get("name") else {}),
        "seed": seed,
        "environment": _environment(dataset, environment, episode_steps).name,
        "confidence": confidence,
        "protocol": "deterministic policy; success at any step of an episode; seeds unseen in collection",
    }


def _with_known_success(tables: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """If the environment reported success to one policy, the others, to whom it did not, never reached it."""
    if all(table["success"].isna().all() for table in tables.values()):
        return dict(tables)
    return {name: table.assign(success=table["success"].fillna(False)) for name, table in tables.items()}


def plot(metrics: dict[str, Any]) -> Any:
    """Draw success and return, side by side."""
    from cvl_pipeline.reports import plots

    return plots.comparison(metrics)


def _environment(
    dataset: dict[str, Any], environment: str | None, episode_steps: int | None = None
) -> EvaluationEnvironment:
    evaluation = EvaluationParameters(environment=environment, episode_steps=episode_steps)
    return environment_for(SOURCES.validate(dataset), evaluation)  # type: ignore[arg-type]
