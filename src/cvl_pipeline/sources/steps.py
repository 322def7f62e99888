"""Episodes from logs that have one row a step: what D4RL files and most people's own logs look like."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cvl_pipeline.episodes.container import Rewards, Transitions
from cvl_pipeline.errors import InputError

Array = NDArray[np.generic]


@dataclass(frozen=True)
class Steps:
    """A log of N steps, episode after episode.

    Attributes:
        observations: (N, O) numbers or (N, H, W, C) uint8 images, what the action was chosen from.
        actions: (N, A), one-hot where they are discrete.
        terminated: (N,) bool, the world stopped after this step.
        truncated: (N,) bool, the log of the episode stops after this step and the world did not.
        next_observations: likewise, what the step led to, or None if the log does not say.
        rewards: (N,), counted on arrival, or None.
        successes: (N,) bool, solved on arrival, or None.
        discrete: whether actions are choices.
    """

    observations: Array
    actions: Array
    terminated: Array
    truncated: Array
    next_observations: Array | None = None
    rewards: Array | None = None
    successes: Array | None = None
    discrete: bool = False


def episodes_from_steps(
    steps: Steps, source: str, action_bounds: tuple[Array, Array] | None = None
) -> tuple[Transitions, Rewards]:
    """Cut a log into episodes.

    An episode ends after every step that terminated or was truncated, and after the last one. Where it ends,
    the container wants the observation that the last step led to:

    * it is the last row of ``next_observations``, where the log has them;
    * without, a truncated episode loses its last step, of which nobody knows where it led (an episode of one
      step is lost altogether);
    * a terminated one keeps it, with its reward and the fact that the world stopped, and the last observation
      stands for the one that is missing: what follows is the absorbing state anyway.

    Args:
        steps: the log.
        source: names it in errors, such as a file.
        action_bounds: smallest and largest action, (A,) each; by default 0 and 1 where actions are discrete,
            else those of the log's own actions.

    Returns:
        The episodes, and their rewards: all NaN where the log has none.

    Raises:
        InputError: rows of different number, or no episode at all.
    """
    count = len(steps.observations)
    columns: dict[str, Array | None] = {
        "actions": steps.actions, "terminated": steps.terminated, "truncated": steps.truncated,
        "next_observations": steps.next_observations, "rewards": steps.rewards, "successes": steps.successes,
    }  # fmt: skip
    for name, values in columns.items():
        if values is not None and len(values) != count:
            raise InputError(f"{source}: {len(values)} rows of {name}, but {count} of observations")
    if steps.next_observations is not None and steps.next_observations.shape != steps.observations.shape:
        raise InputError(
            f"{source}: next_observations have shape {steps.next_observations.shape}, observations "
            f"{steps.observations.shape}; they must be the same"
        )
    if count == 0:
        raise InputError(f"{source}: no step")
    terminated, truncated = steps.terminated.astype(bool), steps.truncated.astype(bool)
    ends = terminated | truncated
    ends[-1] = True
    last = np.flatnonzero(ends)
    first = np.concatenate([[0], last[:-1] + 1])
    fell = terminated[last]
    unknown = ~fell if steps.next_observations is None else np.zeros(len(last), dtype=bool)
    kept_steps = np.ones(count, dtype=bool)
    kept_steps[last[unknown]] = False
    lengths = last - first + 1 - unknown
    some = lengths > 0
    if not some.any():
        raise InputError(
            f"{source}: every episode is one step long and the log has no next_observations, so no step is "
            "known to lead anywhere; add them"
        )
    first, last, lengths, fell = first[some], last[some], lengths[some], fell[some]
    # Observation rows: those of the kept steps, and behind every episode the one that its last step led to.
    final = steps.observations[last] if steps.next_observations is None else steps.next_observations[last]
    kept = np.flatnonzero(kept_steps)
    # In their last type at once: numpy.insert would cast what it inserts to the type of the rows around it.
    rows = steps.observations[kept]
    rows = rows if rows.ndim == 4 else rows.astype(np.float32)
    observations = np.insert(rows, lengths.cumsum(), final, axis=0)
    actions = _tensor(steps.actions[kept])
    low, high = _bounds(actions, steps.discrete) if action_bounds is None else action_bounds
    rewards = np.full(len(kept), np.nan) if steps.rewards is None else steps.rewards[kept]
    successes = np.zeros(len(kept), dtype=bool) if steps.successes is None else steps.successes[kept]
    transitions = Transitions(
        observations=torch.from_numpy(observations),
        actions=actions,
        episode_starts=torch.from_numpy(np.concatenate([[0], lengths.cumsum()]).astype(np.int64)),
        terminated=torch.from_numpy(fell),
        truncated=torch.from_numpy(~fell),
        action_low=_tensor(low),
        action_high=_tensor(high),
        discrete=torch.tensor(steps.discrete),
    )
    return transitions, Rewards(_tensor(rewards), torch.from_numpy(successes.astype(bool)))


def _bounds(actions: Tensor, discrete: bool) -> tuple[Tensor, Tensor]:
    if discrete:  # the log need not have taken every action
        return torch.zeros(actions.shape[1]), torch.ones(actions.shape[1])
    return actions.amin(0), actions.amax(0)


def _tensor(values: Array | Tensor) -> Tensor:
    # A copy, whatever its byte order or owner: the log stays apart from what is made of it.
    return torch.from_numpy(np.array(values, dtype=np.float32))
