"""Run a trained policy in the real environment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import nn

from cvl_pipeline.environments.base import Array, Environment, checked, parts_of
from cvl_pipeline.environments.collection import episode_seeds, task_of_seed
from cvl_pipeline.environments.rollouts import RolloutTask, run_episodes, stack_episodes
from cvl_pipeline.episodes.container import Rewards, Transitions
from cvl_pipeline.episodes.parts import Layout, unpacked
from cvl_pipeline.episodes.preparation import episode_summary
from cvl_pipeline.errors import InputError
from cvl_pipeline.networks.actor import ActorShape


class ActorPolicy:
    """A trained policy, for all running episodes in one forward pass."""

    def __init__(self, policy: nn.Module, layout: Layout | None = None, packed: bool = False) -> None:
        """Act with ``policy``, observations (B, O) to actions (B, A), on the CPU.

        Args:
            policy: the policy.
            layout: of packed observations that the policy gets as a dictionary of tensors; None: it gets them as they
                are.
            packed: whether observations are packed, see ``Environment``.
        """
        self._policy, self._layout, self._packed = policy.cpu().eval(), layout, packed

    def start(self, seeds: Sequence[int]) -> None:
        """Do nothing: the mode is deterministic."""

    @torch.no_grad()
    def act(self, observations: list[Array], running: list[int]) -> list[Array]:
        """Actions within the bounds, one per observation."""
        rows = np.stack(observations)
        batch = torch.from_numpy(rows if self._packed or rows.ndim == 4 else rows.astype(np.float32))
        return list(self._policy(unpacked(batch, self._layout)).numpy())


def evaluate(
    policy: nn.Module,
    make_environment: Callable[[], Environment],
    *,
    episodes: int,
    seed: int,
    workers: int | None,
    name: str,
    tasks: int = 1,
) -> tuple[Transitions, Rewards]:
    """Record episodes of a policy, on episode seeds that collection never uses.

    Args:
        policy: observations (B, O) to actions (B, A). A module of your own gets observations of several parts as a
            dictionary of tensors.
        make_environment: importable, so that other processes can call it.
        episodes: how many.
        seed: determines the episodes.
        workers: processes; None: one per core.
        name: of the policy, in the progress bar.
        tasks: that the environment's episodes are shared among.

    Returns:
        The episodes, and the rewards and successes that the environment reported.

    Raises:
        InputError: the environment's observations or actions are not the policy's.
    """
    with closing(checked(make_environment())) as environment:
        shape, layout = getattr(policy, "shape", None), parts_of(environment)
        if isinstance(shape, ActorShape):
            discrete = bool(getattr(policy, "discrete", environment.discrete))
            check_fit(environment, tuple(shape.observation_shape), shape.action_size, discrete, shape.parts)
            layout = None  # our own networks take packed rows
        act = partial(ActorPolicy, policy, layout, parts_of(environment) is not None)
        recorded = run_episodes(
            RolloutTask(make_environment=make_environment, make_policy=act),
            episode_seeds(seed, "evaluation", episodes, tasks),
            workers=workers,
            description=f"Evaluating {name}",
        )
        return stack_episodes(recorded, environment)


def check_fit(
    environment: Environment,
    observation_shape: tuple[int, ...],
    action_size: int,
    discrete: bool,
    layout: Layout | None = None,
) -> None:
    """Raise InputError unless an environment has the observations and actions of a dataset.

    Args:
        environment: to evaluate in.
        observation_shape: of one observation in the dataset.
        action_size: of one action.
        discrete: whether actions are choices.
        layout: of packed observations.
    """
    if parts_of(environment) != layout:
        raise InputError(
            f"the environment does not fit: its observations {_described(parts_of(environment))}, the dataset's "
            f"{_described(layout)}; name the environment of the log (evaluation.environment)"
        )
    sizes = {
        "observations": (observation_shape, environment.observation_space.shape),
        "actions": ((action_size,), environment.action_space.shape),
    }
    for name, (ours, theirs) in sizes.items():
        if theirs != ours:
            raise InputError(
                f"the environment does not fit: its {name} have shape {theirs}, the dataset's {ours}; name the "
                "environment of the log (evaluation.environment)"
            )
    if discrete != environment.discrete:
        kinds = {True: "choices", False: "vectors"}
        raise InputError(
            f"the environment does not fit: its actions are {kinds[environment.discrete]}, the dataset's "
            f"{kinds[discrete]}; name the environment of the log (evaluation.environment)"
        )


def _described(layout: Layout | None) -> str:
    if layout is None:
        return "have no parts"
    return "have the parts " + ", ".join(f"{part.name} {part.shape}" for part in layout.parts)


def rollout_table(
    transitions: Transitions, labels: Rewards, seed: int, tasks: Sequence[str] = ()
) -> pd.DataFrame:
    """One row per evaluation episode: seed, return (undiscounted), success at any step, length (steps).

    With several ``tasks``, or goals, also the name of the one that the seed selects.
    """
    seeds = episode_seeds(seed, "evaluation", transitions.episodes, max(1, len(tasks)))
    table = episode_summary(transitions, labels).assign(episode_seed=seeds)
    return table.assign(task=[tasks[task_of_seed(seed, len(tasks))] for seed in seeds]) if tasks else table
