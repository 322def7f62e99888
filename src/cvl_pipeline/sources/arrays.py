"""Episodes from arrays in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from cvl_pipeline.episodes.bounds import bound_actions
from cvl_pipeline.episodes.container import Rewards, Transitions
from cvl_pipeline.episodes.parameters import OutOfBounds
from cvl_pipeline.episodes.parts import Layout
from cvl_pipeline.episodes.validation import outside_bounds
from cvl_pipeline.errors import InputError, one_line
from cvl_pipeline.sources.columns import MOST_ACTIONS
from cvl_pipeline.sources.precision import numbers_or_images, single_precision
from cvl_pipeline.sources.steps import Steps, bounds_of, episodes_from_steps, first_gap

Array = NDArray[Any]


def load_arrays(
    observations: ArrayLike | Mapping[str, ArrayLike],
    actions: ArrayLike,
    rewards: ArrayLike | None = None,
    *,
    terminated: ArrayLike | None = None,
    truncated: ArrayLike | None = None,
    successes: ArrayLike | None = None,
    next_observations: ArrayLike | Mapping[str, ArrayLike] | None = None,
    action_low: ArrayLike | None = None,
    action_high: ArrayLike | None = None,
    action_count: int | None = None,
    actions_out_of_bounds: OutOfBounds = "refuse",
) -> tuple[Transitions, Rewards]:
    """Make episodes from arrays with one row per step; see ``cvl_pipeline.episodes_from_arrays``.

    Raises:
        InputError: a fault in the arrays, with name, place and value.
    """
    layout = None
    if isinstance(observations, Mapping):
        states, layout = _packed("observations", observations)
    elif isinstance(next_observations, Mapping):
        raise InputError("next_observations are a dictionary, but observations are not; give both alike")
    else:
        states = _observations("observations", observations)
    count = len(states)
    if count == 0:
        raise InputError("observations have no rows; give one per step")
    following = None
    if next_observations is not None and not isinstance(next_observations, Mapping):
        if layout is not None:
            raise InputError("observations are a dictionary, but next_observations are not; give both alike")
        following = _observations("next_observations", next_observations)
    elif next_observations is not None:
        following, other = _packed("next_observations", next_observations)
        if other != layout:
            raise InputError(
                f"next_observations have the parts {_described(other)}, but observations {_described(layout)}; give "
                "both the same"
            )
    if following is not None and following.shape != states.shape:
        raise InputError(
            f"next_observations have shape {following.shape}, but observations {states.shape}; give both the same "
            "shape"
        )
    taken = _numbers("actions", actions)
    discrete = taken.ndim == 1
    if taken.ndim not in (1, 2) or taken.shape[1:] == (0,):
        raise InputError(
            f"actions have shape {taken.shape}; give vectors, (N, A), or discrete actions, (N,) integers"
        )
    if len(taken) != count:
        raise InputError(f"actions have {len(taken)} rows, but observations {count}; give one per step")
    if discrete:
        if action_low is not None or action_high is not None:
            raise InputError("action_low and action_high: discrete actions have no bounds; leave both out")
        taken = _one_hot(taken, action_count)
    elif action_count is not None:
        raise InputError(f"action_count is {action_count}, but actions are vectors; leave it out")
    _check_finite("actions", taken)
    if actions_out_of_bounds not in get_args(OutOfBounds):
        raise InputError(
            f"actions_out_of_bounds is {actions_out_of_bounds!r}; it must be {', '.join(get_args(OutOfBounds))}"
        )
    bounds = None
    if action_low is not None or action_high is not None:
        taken = single_precision(taken, "arrays: actions")
        bounds = _bounds(taken, action_low, action_high)
        if actions_out_of_bounds == "refuse":
            _check_bounds(taken, *bounds)
    steps = Steps(
        observations=states,
        actions=taken,
        terminated=_flags("terminated", terminated, count),
        truncated=_flags("truncated", truncated, count),
        next_observations=following,
        rewards=None if rewards is None else _column("rewards", rewards, count),
        successes=None if successes is None else _flags("successes", successes, count),
        discrete=discrete,
        parts=layout,
    )
    _check_continuity(steps)
    transitions, labels = episodes_from_steps(steps, "arrays", bounds)
    return bound_actions(transitions, actions_out_of_bounds, "arrays", "actions_out_of_bounds"), labels


def _numbers(name: str, values: ArrayLike) -> Array:
    if np.ma.is_masked(values):
        raise InputError(
            f"{name} have masked values, which have no number; fill them in, or remove their episodes"
        )
    try:
        array = np.asarray(values)
    except (RuntimeError, TypeError, ValueError) as error:  # ragged lists, tensors on a GPU
        raise InputError(f"{name} are not an array of numbers ({one_line(error)})") from error
    if array.dtype.kind not in "biuf":
        raise InputError(f"{name} are {array.dtype}, not numbers")
    return array


def _packed(name: str, values: Mapping[str, ArrayLike]) -> tuple[Array, Layout]:
    """Pack the parts of observations, which are checked one by one."""
    arrays = {}
    for part, given in values.items():
        array = _observations(f"{name}['{part}']", given)
        arrays[str(part)] = numbers_or_images(array, f"{name}['{part}']")
    rows = {part: len(array) for part, array in arrays.items()}
    if len(set(rows.values())) > 1:
        raise InputError(
            f"{name} have {', '.join(f'{count} rows of {part}' for part, count in rows.items())}; give the same number"
        )
    layout = Layout.of(arrays)
    return layout.pack(arrays).numpy(), layout


def _described(layout: Layout | None) -> str:
    return ", ".join(f"{part.name} {part.shape}" for part in layout.parts) if layout else ""


def _observations(name: str, values: ArrayLike) -> Array:
    array = _numbers(name, values)
    images = array.ndim == 4 and array.dtype == np.uint8
    if (array.ndim != 2 and not images) or 0 in array.shape[1:]:
        raise InputError(
            f"{name} are {array.dtype} of shape {array.shape}; give vectors, (N, O), or images, "
            "(N, height, width, channels) uint8"
        )
    _check_finite(name, array)
    return array


def _column(name: str, values: ArrayLike, count: int) -> Array:
    array = _numbers(name, values)
    if array.shape != (count,):
        raise InputError(f"{name} have shape {array.shape}, not ({count},); give one number per step")
    _check_finite(name, array)
    return array


def _flags(name: str, values: ArrayLike | None, count: int) -> Array:
    if values is None:
        return np.zeros(count, dtype=bool)
    array = _column(name, values, count)
    wrong = np.flatnonzero((array != 0) & (array != 1))
    if len(wrong):
        raise InputError(
            f"{name}[{wrong[0]}] is {array[wrong[0]]}, not a flag; give 0 and 1, or False and True"
        )
    return array.astype(bool)


def _check_finite(name: str, array: Array, fix: str = "; repair or remove its episode") -> None:
    if array.dtype.kind != "f":
        return
    with np.errstate(over="ignore"):
        wrong = np.argwhere(~np.isfinite(array.astype(np.float32)))
    if len(wrong):
        place = tuple(int(index) for index in wrong[0])
        value = array[place]
        fault = "too large for single precision" if np.isfinite(value) else "not a finite number"
        raise InputError(f"{name}[{', '.join(map(str, place))}] is {value}, {fault}{fix}")


def _one_hot(codes: Array, action_count: int | None) -> Array:
    """One-hot vectors, (N, A), of discrete actions, (N,)."""
    if codes.dtype.kind not in "iu":
        raise InputError(
            f"actions are {codes.dtype} of shape ({len(codes)},), which means discrete actions; give integers "
            "from 0, or vectors, (N, A)"
        )
    if action_count is not None and not 2 <= action_count <= MOST_ACTIONS:
        raise InputError(f"action_count is {action_count}; it must be from 2 to {MOST_ACTIONS}")
    limit = action_count or MOST_ACTIONS
    outside = np.flatnonzero((codes < 0) | (codes >= limit))
    if len(outside):
        raise InputError(
            f"actions[{outside[0]}] is {codes[outside[0]]}, not from 0 to {limit - 1}; number the "
            "discrete actions from 0, and see action_count"
        )
    size = action_count or int(codes.max()) + 1
    if size < 2:
        raise InputError("actions are all 0, so there is nothing to choose; give action_count")
    vectors = np.zeros((len(codes), size), dtype=np.float32)
    vectors[np.arange(len(codes)), codes] = 1.0
    return vectors


def _bounds(actions: Array, low: ArrayLike | None, high: ArrayLike | None) -> tuple[Array, Array]:
    """Smallest and largest action, (A,) each."""
    given = (("action_low", low), ("action_high", high))
    return bounds_of(
        actions, *(None if bound is None else _bound(name, bound, actions.shape[1]) for name, bound in given)
    )


def _check_bounds(actions: Array, low: Array, high: Array) -> None:
    found = outside_bounds(*(torch.from_numpy(values) for values in (actions, low, high)))
    if found is not None:
        raise InputError(
            f"actions[{found.row}, {found.dimension}] is {found.value:g}, outside [{found.low:g}, {found.high:g}]; "
            + found.remedy("actions_out_of_bounds")
        )


def _bound(name: str, values: ArrayLike, size: int) -> Array:
    array = _numbers(name, values)
    if array.shape != (size,):
        raise InputError(
            f"{name} has shape {array.shape}, not ({size},); give one number per action dimension"
        )
    _check_finite(name, array, fix="")
    return array.astype(np.float32)


def _check_continuity(steps: Steps) -> None:
    """Refuse steps that do not follow each other, such as a shuffled replay buffer."""
    gap = first_gap(steps)
    if gap is not None:
        raise InputError(
            f"next_observations[{gap.row}] differs from observations[{gap.row + 1}], although no flag ends the "
            "episode between them; sort the steps of an episode by time, and flag its last step"
        )
