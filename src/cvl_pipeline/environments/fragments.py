"""Windows of episodes, of which none holds a whole solution."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cvl_pipeline.environments.rollouts import Episode
from cvl_pipeline.errors import InputError

logger = logging.getLogger(__name__)


def third_of_a_solution(clean: Sequence[Episode], name: str) -> int:
    """Return a third of the steps that a solution takes, the median over the episodes that have one.

    Args:
        clean: episodes without disturbances.
        name: of the task, for the error.

    Raises:
        InputError: no episode is solved, or the environment does not report success.
    """
    steps = [1 + episode.successes.index(True) for episode in clean if any(episode.successes)]
    if not steps:
        raise InputError(
            f"dataset.preset fragments: none of {len(clean)} undisturbed episodes of {name} solves the task, so the "
            "steps of a solution are unknown; set dataset.window"
        )
    return max(1, int(np.median(steps)) // 3)


def cut(
    episodes: Sequence[Episode], seeds: Sequence[int], window: int, name: str
) -> tuple[list[Episode], dict[str, Tensor]]:
    """Cut episodes into windows at random times, each a truncated episode, and count what is left out.

    The windows of an episode do not overlap and hold about half of its steps. None holds both the episode's start
    and a success: if the first ``window`` steps hold a success, no window begins with the episode.

    Args:
        episodes: whole episodes.
        seeds: of the episodes; they determine the windows.
        window: steps of a window; a shorter episode has one shorter window.
        name: of the task, in the log.

    Returns:
        The windows, and the fields of ``Rewards`` that count steps in none of them.

    Raises:
        InputError: no episode has a window.
    """
    windows: list[Episode] = []
    gone = {"steps": 0.0, "episodes": 0.0, "reward": 0.0, "successes": 0.0}
    for episode, seed in zip(episodes, seeds, strict=True):
        parts = _windows(episode, window, np.random.default_rng([seed, 2]))
        windows += parts
        gone["steps"] += len(episode.actions) - sum(len(part.actions) for part in parts)
        gone["episodes"] += not parts
        gone["reward"] += sum(episode.rewards) - sum(sum(part.rewards) for part in parts)
        gone["successes"] += sum(episode.successes) - sum(sum(part.successes) for part in parts)
    if not windows:
        raise InputError(
            f"dataset.preset fragments: every episode of {name} is solved in its only step, so no window is left; "
            "choose another preset"
        )
    steps = sum(len(episode.actions) for episode in episodes)
    logger.info(
        f"{name}: {len(episodes)} episodes are cut into {len(windows)} windows of {window} steps. "
        f"{gone['steps']:.0f} of {steps} steps are in no window; they have {gone['reward']:g} of reward and "
        f"{gone['successes']:.0f} successes"
    )
    return windows, {
        f"dropped_{kind}": torch.tensor(
            count if kind == "reward" else int(count),
            dtype=torch.float32 if kind == "reward" else torch.int64,
        )
        for kind, count in gone.items()
    }


def _windows(episode: Episode, window: int, generator: np.random.Generator) -> list[Episode]:
    steps = len(episode.actions)
    first = int(any(episode.successes[:window]))
    length = min(window, steps - first)
    if length == 0:  # solved in its only step
        return []
    count = max(1, (steps - first) // (2 * length))
    gaps = np.sort(generator.integers(0, steps - first - count * length + 1, size=count))
    return [_window(episode, int(first + gap + i * length), length) for i, gap in enumerate(gaps)]


def _window(episode: Episode, start: int, length: int) -> Episode:
    end = start + length
    terminated = episode.terminated and end == len(episode.actions)
    return Episode(
        observations=episode.observations[start : end + 1],
        actions=episode.actions[start:end],
        rewards=episode.rewards[start:end],
        successes=episode.successes[start:end],
        success_reported=episode.success_reported,
        terminated=terminated,
        truncated=not terminated,
    )
