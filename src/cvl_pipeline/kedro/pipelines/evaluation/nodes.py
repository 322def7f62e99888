"""Nodes of the evaluation pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cvl_pipeline.environments.parameters import RANKS, EvaluationParameters, VideoParameters
from cvl_pipeline.kedro.workspace import workspace
from cvl_pipeline.methods.base import METHODS
from cvl_pipeline.readout.parameters import REWARDS
from cvl_pipeline.sources.base import SOURCES
from cvl_pipeline.sources.environment import EvaluationEnvironment, environment_for

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from cvl_pipeline.episodes.container import Normalisation, Rewards, Split, Transitions

BEHAVIOUR = "behaviour"
"""The row of the data that the policies learned from."""


def roll_out(
    title: str,
    /,
    policy: nn.Module,
    dataset: dict[str, Any],
    environment: str | None,
    episode_steps: int | None,
    goals: bool,
    episodes: int,
    workers: int | None,
    seed: int,
) -> tuple[Transitions, Rewards]:
    """Run a policy on goals that collection never used, the same goals for every policy."""
    from cvl_pipeline.api import roll_out as run_policy

    place = _environment(dataset, environment, episode_steps, goals)
    return run_policy(policy, place, episodes=episodes, seed=seed, workers=workers, name=title)


def score(
    transitions: Transitions,
    rewards: Rewards,
    labels: Rewards,
    dataset: dict[str, Any],
    environment: str | None,
    goals: bool,
    reward: dict[str, Any],
    seed: int,
) -> pd.DataFrame:
    """Compute return and success of every rollout under the reward in force; over goals, those of the environment.

    The labels of the log say whether its environment reports success. As they are an input,
    ``--from-nodes value_readout.label`` also scores policies that need no rewards.
    """
    from cvl_pipeline.environments.evaluation import rollout_table
    from cvl_pipeline.readout.rewards import label_rollouts

    place = _environment(dataset, environment, goals=goals)
    rewards = place.with_known_success(rewards, labels)
    if not goals:  # every episode has a goal of its own, which only the environment can judge
        rewards = label_rollouts(transitions, rewards, REWARDS.validate(reward))  # type: ignore[arg-type]
    return rollout_table(transitions, rewards, seed, place.tasks)


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
    goals: bool,
    confidence: float,
    seed: int,
    **tables: pd.DataFrame,
) -> dict[str, Any]:
    """Report means and confidence intervals of all policies and the behaviour data, and the protocol."""
    from cvl_pipeline.episodes.preparation import episode_table, with_tasks
    from cvl_pipeline.reports.summary import summarise_rollouts

    rollouts = _with_known_success({name: tables[f"{name}_rollouts"] for name in titles}, reward)
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
        "environment": _environment(dataset, environment, episode_steps, goals).name,
        "confidence": confidence,
        "protocol": "deterministic policy; success at any step of an episode; seeds unseen in collection",
    }


def _with_known_success(
    tables: Mapping[str, pd.DataFrame], reward: Mapping[str, Any]
) -> dict[str, pd.DataFrame]:
    """If the environment reported success to one policy, the others, to whom it did not, never reached it."""
    if all(table["success"].isna().all() for table in tables.values()):
        return dict(tables)
    known: dict[str, Any] = {"success": False}
    if reward["source"] == "success":  # the return is the number of solved steps
        known["return"] = 0.0
    return {name: table.fillna(known) for name, table in tables.items()}


def plot(metrics: dict[str, Any]) -> Any:
    """Draw success and return, side by side."""
    from cvl_pipeline.reports import figures, plots

    return plots.comparison(metrics, {name: figures.colour(name) for name in metrics["methods"]})


def record(
    title: str,
    /,
    transitions: Transitions,
    rollouts: pd.DataFrame,
    dataset: dict[str, Any],
    environment: str | None,
    episode_steps: int | None,
    goals: bool,
    videos: dict[str, Any],
) -> tuple[bytes, ...]:
    """Record the best, the median and the worst evaluation episode; those that cannot be recorded are empty."""
    from cvl_pipeline.environments.video import record as record_videos

    place = _environment(dataset, environment, episode_steps, goals)
    settings = VideoParameters.model_validate(videos)
    recorded = record_videos(place.make, transitions, rollouts, settings, title)
    return tuple(recorded.get(rank, b"") for rank in RANKS)


def write_page(
    titles: Mapping[str, str],
    /,
    episodes: pd.DataFrame,
    transitions: Transitions,
    normalisation: Normalisation,
    dynamics_history: pd.DataFrame,
    values: pd.DataFrame,
    report: dict[str, float | None],
    metrics: dict[str, Any] | None = None,
    judgement: dict[str, Any] | None = None,
    **others: Any,
) -> str:
    """Write one page about the run; ``others`` are tables and videos of the policies, and all parameters."""
    from cvl_pipeline.environments.video import ranked_episodes
    from cvl_pipeline.episodes.preparation import PLOTTED_OBSERVATIONS, coverage
    from cvl_pipeline.parameters import StageParameters
    from cvl_pipeline.reports.page import RunResults, run_page, versions
    from cvl_pipeline.schema import effective

    parameters = {name: others[name] for name in StageParameters.model_fields}
    # A baseline has no defaults before its method is chosen.
    chosen = {name: {METHODS.field: value[METHODS.field]} for name, value in parameters["baselines"].items()}
    rollouts = {name: others[f"{name}_rollouts"] for name in titles if metrics is not None}
    videos = {
        name: {
            rank: (episode, video)
            for rank, episode in ranked_episodes(table).items()
            if (video := others.get(f"{name}_video_{rank}"))
        }
        for name, table in rollouts.items()
    }
    return run_page(
        RunResults(
            metrics=metrics,
            judgement=judgement,
            episodes=episodes,
            places=coverage(transitions, normalisation, PLOTTED_OBSERVATIONS, parameters["seed"]),
            critic=dynamics_history,
            histories={name: others[f"{name}_history"] for name in titles},
            rollouts=rollouts,
            values=values,
            value_report=report,
            videos=videos,
            parameters=effective(StageParameters.model_validate(parameters)),
            defaults=effective(StageParameters.model_validate({"baselines": chosen})),
            provenance=workspace.get().fingerprints,
            packages=versions(),
        )
    )


def _environment(
    dataset: dict[str, Any], environment: str | None, episode_steps: int | None = None, goals: bool = False
) -> EvaluationEnvironment:
    evaluation = EvaluationParameters(environment=environment, episode_steps=episode_steps, goals=goals)
    return environment_for(SOURCES.validate(dataset), evaluation)  # type: ignore[arg-type]
