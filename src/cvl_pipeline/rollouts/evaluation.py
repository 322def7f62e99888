"""Running a trained policy in the real environment."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd
import torch

from cvl_pipeline.networks.actor import GaussianActor
from cvl_pipeline.rollouts.collection import episode_seeds
from cvl_pipeline.rollouts.environments import Array, MetaWorldEnvironment, check_metaworld_task
from cvl_pipeline.rollouts.episodes import Episode, RolloutTask, run_episodes


class ActorPolicy:
    """The mode of a trained actor, for all running episodes in one forward pass."""

    def __init__(self, actor: GaussianActor) -> None:
        """Act with ``actor`` on the CPU."""
        self._actor = actor.cpu().eval()

    def start(self, seeds: Sequence[int]) -> None:
        """Nothing to draw: the mode is deterministic."""

    @torch.no_grad()
    def act(self, observations: list[Array], running: list[int]) -> list[Array]:
        """Actions within the bounds, one an observation."""
        batch = torch.from_numpy(np.stack(observations).astype(np.float32))
        return list(self._actor(batch).numpy())


def evaluate_metaworld(
    actor: GaussianActor,
    task: str,
    *,
    episodes: int,
    episode_steps: int,
    seed: int,
    workers: int | None,
    name: str,
) -> pd.DataFrame:
    """Run ``episodes`` episodes of a Meta-World task on goals that collection never used.

    Returns:
        One row an episode: ``episode_seed``, ``return`` (undiscounted), ``success`` (the task counted as
        solved at any step) and ``length`` (steps).

    Raises:
        InputError: unknown task.
    """
    check_metaworld_task(task)  # before any process starts
    seeds = episode_seeds(seed, "evaluation", episodes)
    recorded = run_episodes(
        RolloutTask(
            make_environment=partial(MetaWorldEnvironment, task, episode_steps),
            make_policy=partial(ActorPolicy, actor),
        ),
        seeds,
        workers=workers,
        description=f"Evaluating {name}",
    )
    return rollout_table(seeds, recorded)


def rollout_table(seeds: Sequence[int], recorded: Sequence[Episode]) -> pd.DataFrame:
    """One row an episode: seed, return, success at any step, length."""
    return pd.DataFrame(
        {
            "episode_seed": list(seeds),
            "return": [float(np.sum(episode.rewards)) for episode in recorded],
            "success": [any(episode.successes) for episode in recorded],
            "length": [len(episode.actions) for episode in recorded],
        }
    )
