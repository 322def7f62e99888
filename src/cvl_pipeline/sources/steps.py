"""Episodes from logs with one row per step, such as D4RL files and most user logs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cvl_pipeline.episodes.container import Rewards, Transitions
from cvl_pipeline.errors import InputError

Array = NDArray[np.generic]

GAP = 1e-3
"""Share of a dimension's range by which a next observation may differ from the row that follows it."""


@dataclass(frozen=True)
class Steps:
    """A log of N steps, episode after episode.

    Attributes:
        observations: (N, O) numbers or (N, H, W, C) uint8 images, before the action.
        actions: (N, A), one-hot if discrete.
        terminated: (N,) bool, the environment ended the episode after this step.
        truncated: (N,) bool, the log ended after this step, but the environment did not end the episode.
        next_observations: same shape as observations, after the action, or None if the log has none.
        rewards: (N,), on arrival, or None.
        successes: (N,) bool, solved on arrival, or None.
        discrete: whether actions are discrete.
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
    """Split a log into episodes.

    An episode ends after every terminated or truncated step, and after the last step of the log. The container
    also needs the final observation of each episode:

    * With ``next_observations``, it is the last of them.
    * Without, a truncated episode loses its last step, because its next state is unknown. An episode of one
      step is dropped.
    * Without, a terminated episode keeps its last step, with its reward and the termination. The last
      observation replaces the missing one, because the absorbing state follows in any case.

    Args:
        steps: the log.
        source: name of the log in errors, such as a file.
        action_bounds: smallest and largest action, (A,) each; None: 0 and 1 for discrete actions, else the
            smallest and largest logged actions.

    Returns:
        The episodes and their rewards, which are all NaN if the log has none.

    Raises:
        InputError: fields differ in their number of rows, or there are no episodes.
    """
    count = len(steps.observations)
    columns: dict[str, Array | None] = {
        "actions": steps.actions, "terminated": steps.terminated, "truncated": steps.truncated,
        "next_observations": steps.next_observations, "rewards": steps.rewards, "successes": steps.successes,
    }  # fmt: skip
    for name, values in columns.items():
        if values is not None and len(values) != count:
            raise InputError(
                f"{source}: {len(values)} rows of {name}, but {count} of observations; save the same number"
            )
    if steps.next_observations is not None and steps.next_observations.shape != steps.observations.shape:
        raise InputError(
            f"{source}: next_observations have shape {steps.next_observations.shape}, observations "
            f"{steps.observations.shape}; save both with the same shape"
        )
    if count == 0:
        raise InputError(f"{source}: no steps; log at least one")
    terminated, truncated = steps.terminated.astype(bool), steps.truncated.astype(bool)
    ends = terminated | truncated
    ends[-1] = True
    last = np.flatnonzero(ends)
    first = np.concatenate([[0], last[:-1] + 1])
    fell = terminated[last]
    unknown = ~fell if steps.next_observations is None else np.zeros(len(last), dtype=bool)
    mask = np.ones(count, dtype=bool)
    mask[last[unknown]] = False
    lengths = last - first + 1 - unknown
    some = lengths > 0
    if not some.any():
        raise InputError(
            f"{source}: every episode is one step long and the log has no next_observations, so no next state "
            "is known; add next_observations"
        )
    first, last, lengths, fell = first[some], last[some], lengths[some], fell[some]
    # Observation rows: those of the remaining steps, and after every episode its final observation.
    final = steps.observations[last] if steps.next_observations is None else steps.next_observations[last]
    index = np.flatnonzero(mask)
    # Convert before numpy.insert, which casts inserted values to the type of the array.
    rows = steps.observations[index]
    rows = rows if rows.ndim == 4 else rows.astype(np.float32)
    observations = np.insert(rows, lengths.cumsum(), final, axis=0)
    actions = _tensor(steps.actions[index])
    low, high = _bounds(actions, steps.discrete) if action_bounds is None else action_bounds
    rewards = np.full(len(index), np.nan) if steps.rewards is None else steps.rewards[index]
    successes = np.zeros(len(index), dtype=bool) if steps.successes is None else steps.successes[index]
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
    return transitions, Rewards(
        _tensor(rewards), torch.from_numpy(successes.astype(bool)), torch.tensor(steps.successes is not None)
    )


def first_gap(steps: Steps) -> tuple[int, int | None] | None:
    """Find the first step within an episode whose next observation is not the observation of the next row.

    Returns:
        Its row, and the dimension that differs (None for images); None if all rows follow each other, or the log
        has no ``next_observations``.
    """
    observations, following = steps.observations, steps.next_observations
    if following is None:
        return None
    rows = np.flatnonzero(~np.logical_or(steps.terminated, steps.truncated)[:-1])
    if observations.ndim == 4:  # images are equal or not; block by block
        for block in np.array_split(rows, max(1, len(rows) // 1024)):
            same = (following[block] == observations[block + 1]).reshape(len(block), -1).all(1)
            if not same.all():
                return int(block[int(same.argmin())]), None
        return None
    spread = np.subtract(observations.max(0), observations.min(0), dtype=np.float64)
    gaps = np.abs(np.subtract(following[rows], observations[rows + 1], dtype=np.float64))
    broken = np.argwhere(gaps > GAP * spread)
    return (int(rows[broken[0, 0]]), int(broken[0, 1])) if len(broken) else None


def _bounds(actions: Tensor, discrete: bool) -> tuple[Tensor, Tensor]:
    if discrete:  # the log may lack some of the actions
        return torch.zeros(actions.shape[1]), torch.ones(actions.shape[1])
    return actions.amin(0), actions.amax(0)


def _tensor(values: Array | Tensor) -> Tensor:
    if isinstance(values, Tensor):
        return values.float()
    # Copy, for any byte order or owner, so that the tensor never shares memory with the log.
    return torch.from_numpy(np.array(values, dtype=np.float32))
