"""Write episodes in formats that other programs read: Minari, LeRobot v3.0, and HDF5 with one group per episode."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from cvl_pipeline.episodes.container import Rewards, Transitions
from cvl_pipeline.episodes.validation import validate_rewards, validate_transitions
from cvl_pipeline.errors import InputError, look_up
from cvl_pipeline.io.storage import kind_at, shown, write_atomically
from cvl_pipeline.paths import expanded
from cvl_pipeline.sources import FORMATS
from cvl_pipeline.sources.lerobot_frames import TASK_PART
from cvl_pipeline.sources.lerobot_writer import LeRobotWriter
from cvl_pipeline.sources.minari_writer import save_minari
from cvl_pipeline.sources.tables import HELD_OUT, PART


def export_dataset(
    transitions: Transitions,
    rewards: Rewards,
    form: str,
    out: Path | str,
    *,
    tasks: Sequence[str] = (),
    name: str = "episodes",
    rate: int = 10,
    videos: bool = False,
) -> tuple[Path, dict[str, str]]:
    """Write episodes in another format, completely or not at all.

    All formats keep every observation, also the last one of each episode, and our sources read the same episodes again.

    Args:
        transitions: the episodes.
        rewards: their rewards and successes.
        form: one of ``sources.FORMATS``.
        out: ``hdf5``: a file that does not exist; ``lerobot``: a folder that does not exist; ``minari``: the folder of
            Minari's datasets.
        tasks: texts of several tasks, whose one-hot vector is a part ``task`` of the observations, or at their end.
        name: ``minari``: id of the dataset, such as ``mine/door-open-v0``; ``lerobot``: text of the only task.
        rate: ``lerobot``: steps per second.
        videos: ``lerobot``: AV1 videos instead of exact PNG images.

    Returns:
        The file or folder, and the parameters that read it.

    Raises:
        InputError: an unknown format, a fault in the episodes, a place that exists or cannot be written, a library that
            is missing, or pictures that the format does not have.
    """
    look_up("format", form, dict.fromkeys(FORMATS))
    validate_transitions(transitions)
    validate_rewards(rewards, transitions)
    out = expanded(out)
    if form == "minari":
        folder = save_minari(transitions, rewards, name, out)
        return folder, {"dataset.source": "minari", "dataset.task": name, "dataset.path": shown(out)}
    if kind_at(out) is not None:
        raise InputError(f"{shown(out)} exists already; delete it first, or give another --out")
    if form == "hdf5":
        if out.suffix not in (".hdf5", ".h5"):
            raise InputError(
                f"{shown(out)}: a file of this format must end in .hdf5 or .h5; give another --out"
            )
        _write(out, lambda path: write_hdf5(path, transitions, rewards))
        return out, _columns(transitions, rewards) | {"dataset.path": shown(out)}
    numbers, left_out = _task_of(transitions, tasks)
    texts = list(tasks) or [name]
    _write(
        out,
        lambda path: LeRobotWriter(
            path, transitions, rewards, texts, numbers, rate, videos, left_out
        ).write(),
    )
    return out, {"dataset.source": "lerobot", "dataset.path": shown(out)} | (
        {"dataset.tasks": "ignore"} if tasks and left_out is None else {}
    )


def _write(out: Path, write: Any) -> None:
    try:
        write_atomically(out, write)
    except (OSError, RuntimeError) as error:  # h5py raises RuntimeError for a full disk
        raise InputError(f"{shown(out)} cannot be written: {error}") from error


def _task_of(transitions: Transitions, tasks: Sequence[str]) -> tuple[np.ndarray[Any, Any], str | None]:
    """Number of each episode's task, (E,) int64, and the part that says so, if it is a part of its own."""
    if not tasks:
        return np.zeros(transitions.episodes, dtype=np.int64), None
    first = transitions.episode_starts[:-1] + torch.arange(transitions.episodes)
    rows, layout = transitions.observations[first], transitions.parts
    if layout is None:
        return rows[:, -len(tasks) :].argmax(1).numpy(), None
    return layout.part(rows, TASK_PART).argmax(1).numpy(), TASK_PART


def _columns(transitions: Transitions, rewards: Rewards) -> dict[str, str]:
    """Parameters of ``source: files`` for the arrays that ``write_hdf5`` writes."""
    names = {"groups": "data/demo_*"}
    if transitions.parts is not None:
        names["observations"] = " ".join(_paths(transitions.parts.names).values())
    if rewards.missing:
        names["rewards"] = "null"
    if rewards.reports_success:
        names["successes"] = "successes"
    if transitions.discrete:
        names |= {"discrete": "true", "action_count": str(transitions.actions.shape[1])}
    parameters = {
        "dataset.source": "files",
        **{f"dataset.columns.{field}": name for field, name in names.items()},
    }
    if not transitions.discrete:
        for side in ("low", "high"):
            bound = getattr(transitions, f"action_{side}").tolist()
            parameters[f"dataset.action_{side}"] = " ".join(map(repr, bound))
    return parameters


def _paths(parts: Sequence[str]) -> dict[str, str]:
    """Path of each part: below ``observations``, with a group for each dot in its name.

    If a name cannot be a path or a parameter, such as one with a blank, paths are numbers.
    """
    plain = all(re.fullmatch(r"[\w-]+(\.[\w-]+)*", part) for part in parts)
    within = any(other.startswith(f"{part}.") for part in parts for other in parts)
    numbered = not plain or within
    return {
        part: f"observations/{index if numbered else part.replace('.', '/')}"
        for index, part in enumerate(parts)
    }


def write_hdf5(path: Path, transitions: Transitions, rewards: Rewards) -> None:
    """Write one group per episode, ``data/demo_<n>``, which ``source: files`` reads.

    An episode of T steps has T + 1 observations (a group of arrays if they have parts), T actions (numbers of choices
    if they are discrete), rewards, flags ``terminated`` and ``truncated``, and, if they are reported, ``successes``.
    The attribute ``cvl_part`` of an array is the name of the part, and a group that is held out has ``cvl_held_out``.
    """
    data, labels = transitions.to("cpu"), rewards.to("cpu")
    actions = data.actions.argmax(1) if data.discrete else data.actions
    with h5py.File(path, "w") as file:
        for episode, (start, end) in enumerate(pairwise(data.episode_starts.tolist())):
            group = file.create_group(f"data/demo_{episode}")
            if episode >= data.episodes - int(data.held_out):
                group.attrs[HELD_OUT] = True
            observations = data.observations[start + episode : end + episode + 1]
            if data.parts is None:
                group["observations"] = observations.numpy()
            else:
                for part, place in _paths(data.parts.names).items():
                    group[place] = data.parts.part(observations, part).numpy()
                    group[place].attrs[PART] = part
            group["actions"] = actions[start:end].numpy()
            if not labels.missing:
                group["rewards"] = labels.rewards[start:end].numpy()
            if labels.reports_success:
                group["successes"] = labels.successes[start:end].numpy()
            last = np.arange(start, end) == end - 1
            group["terminated"] = last & bool(data.terminated[episode])
            group["truncated"] = last & bool(data.truncated[episode])
