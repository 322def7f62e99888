"""Episodes from logs with one row per step, such as D4RL files and most user logs."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cvl_pipeline.episodes.container import Rewards, Transitions
from cvl_pipeline.episodes.parts import Layout
from cvl_pipeline.errors import InputError
from cvl_pipeline.io.pieces import Column, block_rows, by_block, first_where, slices
from cvl_pipeline.sources.precision import numbers_or_images, single_precision

logger = logging.getLogger(__name__)

Array = NDArray[Any]

GAP = 1e-3
"""Share of a dimension's range by which a next observation may differ from the row that follows it."""


@dataclass(frozen=True)
class Steps:
    """A log of N steps, episode after episode. Its arrays may be mapped files that are larger than memory.

    Attributes:
        observations: (N, O) numbers, (N, H, W, C) uint8 images, or (N, B) uint8 packed rows, before the action.
        actions: (N, A), one-hot if discrete.
        terminated: (N,) bool, the environment ended the episode after this step.
        truncated: (N,) bool, the log ended after this step, but the environment did not end the episode.
        next_observations: same shape as observations, after the action, or None if the log has none.
        rewards: (N,), on arrival, or None.
        successes: (N,) bool, solved on arrival, or None.
        discrete: whether actions are discrete.
        ignored: (N,) bool, rows logged after the end of an episode, which are dropped, or None.
        parts: what packed rows hold; None: observations are not packed.
    """

    observations: Array
    actions: Array
    terminated: Array
    truncated: Array
    next_observations: Array | None = None
    rewards: Array | None = None
    successes: Array | None = None
    discrete: bool = False
    ignored: Array | None = None
    parts: Layout | None = None


def packed(parts: Mapping[str, Array], place: str) -> tuple[Array, Layout | None]:
    """Pack the parts of N observations, block by block.

    Args:
        parts: (N, K) numbers or (N, H, W, C) uint8 images by name; ``""`` alone is not packed.
        place: name of the log in errors.

    Returns:
        (N, B) uint8 and their layout; the array itself and None if it is one without a name.

    Raises:
        InputError: a part is neither numbers nor images.
    """
    if list(parts) == [""]:
        return parts[""], None
    try:
        layout = Layout.of(parts)
    except InputError as error:
        raise InputError(f"{place}: {error}") from error

    def pack(*rows: Array) -> Array:
        return layout.pack(dict(zip(parts, rows, strict=True))).numpy()

    return by_block(pack, *parts.values()), layout


def episodes_from_steps(
    steps: Steps,
    source: str,
    action_bounds: tuple[Array, Array] | None = None,
    prefix: str = "",
    unneeded: str = "leave the column out",
) -> tuple[Transitions, Rewards]:
    """Split a log into episodes.

    An episode ends after every terminated or truncated step, and after the last step of the log. The container
    also needs the final observation of each episode:

    * With ``next_observations``, it is the last of them.
    * Without, a truncated episode loses its last step, because its next state is unknown. An episode of one
      step is dropped.
    * Without, a terminated episode keeps its last step, with its reward and the termination. The last
      observation replaces the missing one, because the absorbing state follows in any case.

    Dropped steps are counted in ``Rewards`` and logged. The log is refused if they have every reward that differs
    from the rest, or every success, because nothing could be learned from what is left.

    Args:
        steps: the log.
        source: name of the log in errors, such as a file.
        action_bounds: smallest and largest action, (A,) each; None: 0 and 1 for discrete actions, else the
            smallest and largest logged actions.
        prefix: of the names of columns in errors, such as ``dataset.columns.``.
        unneeded: how to do without a column of rewards or successes, in errors.

    Returns:
        The episodes and their rewards, which are all NaN if the log has none.

    Raises:
        InputError: fields differ in their number of rows, flags that are not 0 or 1, numbers that single
            precision cannot distinguish, no episodes, or dropped steps with all rewards or successes.
    """
    count = len(steps.observations)
    columns: dict[str, Array | None] = {
        "actions": steps.actions, "terminated": steps.terminated, "truncated": steps.truncated,
        "next_observations": steps.next_observations, "rewards": steps.rewards, "successes": steps.successes,
        "ignored": steps.ignored,
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
    flags = (("terminated", steps.terminated), ("truncated", steps.truncated), ("successes", steps.successes))
    terminated, truncated, successes = (_flags(values, count, f"{source}: {name}") for name, values in flags)
    last, rank = _ends(terminated, truncated, steps.ignored)
    first = np.concatenate([[0], rank[:-1] + 1])
    fell = terminated[last]
    unknown = ~fell if steps.next_observations is None else np.zeros(len(last), dtype=bool)
    lengths = rank - first + 1 - unknown
    some = lengths > 0
    if not some.any():
        raise InputError(
            f"{source}: every episode is one step long and the log has no next_observations, so no next state "
            "is known; add next_observations"
        )
    keep = _kept(terminated, last[unknown], steps.ignored)
    last, lengths, fell = last[some], lengths[some], fell[some]
    rewards: Array = np.broadcast_to(np.float32(np.nan), count)  # takes no memory
    if steps.rewards is not None:
        rewards = single_precision(steps.rewards, f"{source}: rewards")
    kept = _selected(rewards, keep), _selected(successes, keep)
    lost = _selected(rewards, keep, dropped=True), _selected(successes, keep, dropped=True)
    refuse_loss(kept, lost, source, prefix, _remedy(prefix, unneeded))
    # Observation rows: those of the remaining steps, and after every episode its final observation.
    rows, final = steps.observations, steps.next_observations
    if steps.parts is None:
        rows = numbers_or_images(rows, f"{source}: observations")
        final = None if final is None else numbers_or_images(final, f"{source}: next_observations")
    observations = _with_final(rows, rows if final is None else final, keep, last)
    actions = torch.from_numpy(single_precision(_selected(steps.actions, keep), f"{source}: actions"))
    if action_bounds is not None:
        low, high = (np.array(bound, dtype=np.float32) for bound in action_bounds)
    elif steps.discrete:  # the log may lack some of the actions
        low, high = np.zeros(actions.shape[1], np.float32), np.ones(actions.shape[1], np.float32)
    else:
        low, high = bounds_of(actions.numpy(), None, None)
    transitions = Transitions(
        observations=torch.from_numpy(observations),
        actions=actions,
        episode_starts=torch.from_numpy(np.concatenate([[0], lengths.cumsum()]).astype(np.int64)),
        terminated=torch.from_numpy(fell),
        truncated=torch.from_numpy(~fell),
        action_low=torch.from_numpy(low),
        action_high=torch.from_numpy(high),
        discrete=torch.tensor(steps.discrete),
        parts=steps.parts,
    )
    return transitions, Rewards(
        torch.from_numpy(kept[0]),
        torch.from_numpy(kept[1]),
        torch.tensor(steps.successes is not None),
        **report_dropped(*lost, int(unknown.sum()), int((~some).sum()), source),
    )


def _flags(values: Array | None, count: int, place: str) -> NDArray[np.bool_]:
    if values is None:
        return np.zeros(count, dtype=bool)
    if values.dtype == bool:
        return values
    wrong = (
        first_where(lambda part: (part != 0) & (part != 1), values) if values.dtype.kind in "iuf" else (0,)
    )
    if wrong is not None:
        raise InputError(
            f"{place} have {values[wrong[0]]!s} at row {wrong[0]}; give flags, 0 and 1 or False and True"
        )
    return by_block(lambda part: part.astype(bool), values)


def _ends(
    terminated: NDArray[np.bool_], truncated: NDArray[np.bool_], ignored: Array | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Last row of each episode, (E,), and its number among the rows that are not ignored, (E,)."""
    last, rank = [], []
    count, final = 0, 0
    for rows in slices(terminated):
        ends = terminated[rows] | truncated[rows]
        belongs = np.ones(len(ends), dtype=bool) if ignored is None else ~ignored[rows].astype(bool)
        numbers = count + belongs.cumsum() - 1
        found = np.flatnonzero(ends & belongs)
        last.append(rows.start + found)
        rank.append(numbers[found])
        if belongs.any():
            final = rows.start + int(np.flatnonzero(belongs)[-1])
        count += int(belongs.sum())
    ended = max((int(found[-1]) for found in last if len(found)), default=-1)
    if ended != final:
        last.append(np.array([final]))
        rank.append(np.array([count - 1]))
    return np.concatenate(last), np.concatenate(rank)


def _kept(log: Array, lost: NDArray[np.int64], ignored: Array | None) -> NDArray[np.bool_]:
    """Whether each row of a log becomes a transition, (N,): it is neither ignored nor one of those that are lost."""
    keep = Column()
    for rows in slices(log):
        part = np.ones(len(log[rows]), dtype=bool) if ignored is None else ~ignored[rows].astype(bool)
        part[_within(lost, rows)] = False
        keep.append(part)
    return keep.array()


def _within(ascending: NDArray[np.int64], rows: slice) -> NDArray[np.int64]:
    """Those of the given rows that are in a block, counted from its start."""
    first, end = np.searchsorted(ascending, [rows.start, rows.stop])
    return np.asarray(ascending[first:end] - rows.start)


def _selected(values: Array, keep: NDArray[np.bool_], dropped: bool = False) -> Array:
    """The rows that are kept, or those that are dropped."""
    return by_block(lambda part, mask: part[mask != dropped], values, keep)


def _with_final(observations: Array, final: Array, keep: NDArray[np.bool_], last: NDArray[np.int64]) -> Array:
    """The observations that are kept, and after each episode, which ends with row ``last``, its final one."""
    result = Column()
    for rows in slices(observations, final):
        mask, ends = keep[rows], _within(last, rows)
        result.append(np.insert(observations[rows][mask], mask.cumsum()[ends], final[rows][ends], axis=0))
    return result.array()


def _remedy(prefix: str, unneeded: str) -> str:
    return (
        f"give {prefix}next_observations, or flag the last row of every episode that ended there, such as by solving "
        f"the task, as {prefix}terminated; or {unneeded} if you do not need it"
    )


def refuse_loss(
    kept: tuple[Array, Array], lost: tuple[Array, Array], source: str, prefix: str, remedy: str
) -> None:
    """Raise InputError if dropped steps have all rewards that differ from the rest, or all successes.

    Args:
        kept: rewards, (N,), NaN where unknown, and successes, (N,) bool, of the steps that are kept.
        lost: likewise, of dropped steps.
        source: name of the log.
        prefix: of the names of columns.
        remedy: what to do, in the error.
    """
    rewards, successes = kept
    faults, usual = [], rewards[0]
    different = int((lost[0] != usual).sum()) - int(np.isnan(lost[0]).sum())
    if different and first_where(lambda part: part != usual, rewards) is None:
        faults.append(f"all {different} rewards other than {usual:g} ({prefix}rewards)")
    if lost[1].any() and not successes.any():
        faults.append(f"all {lost[1].sum()} successes ({prefix}successes)")
    if faults:
        raise InputError(
            f"{source}: {' and '.join(faults)} are in the last step of an episode, which is dropped because nothing "
            f"says where it led; {remedy}"
        )


def report_dropped(
    rewards: NDArray[Any],
    successes: NDArray[np.bool_],
    unknown: int,
    episodes: int,
    source: str,
    cure: str = " (next_observations would keep them)",
) -> dict[str, Tensor]:
    """Count dropped steps, and log them.

    Args:
        rewards: (M,) of the dropped steps; NaN where unknown.
        successes: (M,) bool, likewise.
        unknown: how many of them are dropped because their next observation is unknown.
        episodes: episodes of which no step is left.
        source: name of the log.
        cure: how to keep these, in the message.

    Returns:
        The fields of ``Rewards``.
    """
    if not len(rewards):
        return {}
    total = np.nansum(rewards, dtype=np.float64)
    reasons = [f"{unknown} because nothing says where they led{cure}"] * (unknown > 0)
    others = len(rewards) - unknown
    reasons += [f"{others} because the episode was over"] * (others > 0)
    losses = [f"episodes {episodes}"] * (episodes > 0)
    losses += [f"reward {total:g}"] * (not np.isnan(rewards).all())
    losses += [f"successes {successes.sum()}"] * bool(successes.any())
    logger.warning(
        f"{source}: dropped {len(rewards)} of the logged steps, {' and '.join(reasons)}"
        + f"; lost with them: {', '.join(losses)}" * bool(losses)
    )
    return {
        "dropped_steps": torch.tensor(len(rewards)),
        "dropped_episodes": torch.tensor(episodes),
        "dropped_reward": torch.tensor(total, dtype=torch.float32),
        "dropped_successes": torch.tensor(int(successes.sum())),
    }


class Gap(NamedTuple):
    """A next observation that is not the observation of the next row."""

    row: int
    dimension: int | None  # None for images
    part: str  # name of the part; "" if there are no parts
    found: float  # the next observation; the first number that differs
    expected: float  # the same number of the next row


def first_gap(steps: Steps) -> Gap | None:
    """Find the first step within an episode whose next observation is not the observation of the next row.

    Returns:
        Where it is; None if all rows follow each other, or the log has no ``next_observations``.
    """
    if steps.next_observations is None:
        return None
    if steps.parts is None:
        return _gap(steps.observations, steps.next_observations, steps, "")
    observations, following = (
        steps.parts.unpack(torch.from_numpy(values))
        for values in (steps.observations, steps.next_observations)
    )
    gaps = (
        _gap(observations[name].numpy(), following[name].numpy(), steps, name) for name in steps.parts.names
    )
    return min((gap for gap in gaps if gap is not None), key=lambda gap: gap.row, default=None)


def _gap(observations: Array, following: Array, steps: Steps, part: str) -> Gap | None:
    images = observations.ndim == 4  # equal or not
    spread = 0.0 if images else np.subtract(observations.max(0), observations.min(0), dtype=np.float64)
    for rows in slices(observations[:-1], following[:-1]):
        inside = ~np.logical_or(steps.terminated[rows], steps.truncated[rows])
        found, starts = following[rows][inside], observations[rows.start + 1 : rows.stop + 1][inside]
        gaps = found != starts if images else abs(np.subtract(found, starts, dtype=np.float64)) > GAP * spread
        if gaps.any():
            place = tuple(np.argwhere(gaps)[0])
            row = int(rows.start + np.flatnonzero(inside)[place[0]])
            dimension = None if images else int(place[1])
            return Gap(row, dimension, part, float(found[place]), float(starts[place]))
    return None


def one_hot(codes: Array, size: int) -> Array:
    """Discrete actions as one-hot vectors, (N, size) float32, from their codes, (N,), block by block."""
    vectors = Column()
    rows = block_rows((len(codes), size), np.dtype(np.float32).itemsize)
    for first in range(0, len(codes), rows):
        vectors.append((codes[first : first + rows, None] == np.arange(size)).astype(np.float32))
    return vectors.array()


def bounds_of(
    actions: NDArray[Any], low: NDArray[Any] | None, high: NDArray[Any] | None
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Smallest and largest action, (A,) each: as given, else the smallest and largest of the log, (N, A).

    A bound of the log never crosses a given one.
    """
    lowest, highest = actions.min(0), actions.max(0)
    if low is not None:
        lowest, highest = low, np.maximum(highest, low)
    if high is not None:
        lowest, highest = lowest if low is not None else np.minimum(lowest, high), high
    return lowest, highest
