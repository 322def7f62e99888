"""Logs with one row per step, written in every supported format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray

from cvl_pipeline.episodes.container import Rewards, Transitions
from cvl_pipeline.errors import InputError
from cvl_pipeline.sources.columns import Columns
from cvl_pipeline.sources.files import load_file
from cvl_pipeline.testing.builders import make_rewards, slices

Array = NDArray[Any]
Log = dict[str, Array]

ARRAYS = ("log.hdf5", "log.h5", "log.npz")
TABLES = ("log.parquet", "log.csv", "log.csv.gz")

# One observation, one action and a column of episode ends.
SMALL: dict[str, Any] = {
    "observations": "x", "actions": "u", "rewards": None, "successes": None, "next_observations": None,
    "terminated": "end", "truncated": None,
}  # fmt: skip
# Names that ``groups_of`` uses.
GROUPS: dict[str, Any] = {
    "groups": "data/demo_*", "observations": "obs/place obs/rest", "actions": "actions",
    "rewards": "rewards", "successes": None, "terminated": "dones", "truncated": None,
    "next_observations": None,
}  # fmt: skip


def log_of(data: Transitions, rewards: Rewards | None = None) -> Log:
    """A log with one row per step and all supported columns; random rewards by default."""
    rewards = rewards or make_rewards(data)
    last = data.episode_starts[1:] - 1
    ends = torch.zeros(2, len(data), dtype=torch.bool)
    ends[0, last], ends[1, last] = data.terminated, data.truncated
    episode = data.episode_of(torch.arange(len(data)))
    columns = {
        "observation": data.states(),
        "action": data.actions,
        "next": data.arrivals(),
        "reward": rewards.rewards,
        "success": rewards.successes,
        "terminated": ends[0],
        "truncated": ends[1],
        "episode": episode,
        "step": torch.arange(len(data)) - data.episode_starts[episode],
    }
    return {name: values.numpy() for name, values in columns.items()}


def _frame(log: Log) -> pd.DataFrame:
    """Vectors as columns, observation_0, observation_1, ..."""
    columns: dict[str, Array] = {}
    for name, values in log.items():
        wide = {f"{name}_{i}": values[:, i] for i in range(values.shape[1])} if values.ndim > 1 else {}
        columns |= wide or {name: values}
    return pd.DataFrame(columns)


def write(path: Path, log: Log) -> Path:
    if path.name in TABLES:
        frame = _frame(log)
        frame.to_parquet(path) if path.suffix == ".parquet" else frame.to_csv(path, index=False)
    elif path.suffix == ".npz":
        named: dict[str, Any] = log  # for mypy, because a key could be called allow_pickle
        np.savez(path, **named)
    else:
        with h5py.File(path, "w") as file:
            for name, values in log.items():
                file[name] = values
    return path


def groups_of(data: Transitions, rewards: Rewards | None = None) -> dict[str, Log]:
    """One group per episode: T + 1 observations in two arrays, T rows of everything else."""
    rewards = rewards or make_rewards(data)
    groups = {}
    for number, episode in enumerate(slices(data)):
        observations, flags = episode["observations"].numpy(), np.zeros(len(episode["index"]), dtype=bool)
        flags[-1] = episode["terminated"]
        groups[f"data/demo_{number}"] = {
            "obs/place": observations[:, :1],
            "obs/rest": observations[:, 1:],
            "actions": episode["actions"].numpy(),
            "rewards": rewards.rewards[episode["index"]].numpy(),
            "dones": flags,
        }
    return groups


def write_groups(path: Path, groups: dict[str, Log]) -> Path:
    """Write an HDF5 file of groups, in the given order."""
    with h5py.File(path, "w") as file:
        for group, arrays in groups.items():
            file.create_group(group)
            for name, values in arrays.items():
                file[f"{group}/{name}"] = values
    return path


def mapping(**changes: Any) -> Columns:
    values: dict[str, Any] = {
        "groups": None,
        "observations": "observation",
        "actions": "action",
        "rewards": "reward",
        "successes": "success",
        "terminated": "terminated",
        "truncated": "truncated",
        "episode": None,
        "step": None,
        "next_observations": "next",
        "discrete": False,
        "action_count": None,
    }
    return Columns(**(values | changes))


def mapping_of(name: str, **changes: Any) -> Columns:
    """Names that ``write`` uses in a file of that name."""
    table = {"observations": "observation_*", "actions": "action_*", "next_observations": "next_*"}
    return mapping(**((table if name in TABLES else {}) | changes))


def refusal(path: Path, columns: Columns | None = None, **bounds: Any) -> str:
    with pytest.raises(InputError) as caught:
        load_file(path, columns or mapping_of(path.name), **bounds)
    text = str(caught.value)
    assert path.name in text or "dataset.action_" in text
    assert "\n" not in text
    return text


def assert_equal(found: tuple[Transitions, Rewards], expected: tuple[Transitions, Rewards]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(vars(ours), vars(theirs), rtol=0, atol=0, equal_nan=True)
