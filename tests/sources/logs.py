"""A small collection in Hopper, written in every format that sources read."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import torch

from cvl_pipeline.environments.collection import Disturbances, collect
from cvl_pipeline.environments.gymnasium import GymnasiumEnvironment
from cvl_pipeline.episodes.container import Rewards, Transitions
from cvl_pipeline.sources.gymnasium import UserController
from cvl_pipeline.sources.minari_writer import save_minari
from tests.sources.rows import GROUPS, groups_of, write_groups

ENVIRONMENT = "Hopper-v5"
MINARI_ID = "mine/hopper-v0"
COLUMNS: dict[str, Any] = {
    "observations": "obs_*", "actions": "act_*", "next_observations": "next_*", "rewards": "reward",
    "terminated": "fell", "truncated": None, "episode": "episode",
}  # fmt: skip
"""Names of the columns of ``hopper.csv``."""
DEMOS: dict[str, Any] = GROUPS
"""Names of the arrays of ``demos.hdf5``."""


def collect_hopper(episodes: int) -> tuple[Transitions, Rewards]:
    """Random actions; the hopper falls after about ten steps."""
    make = partial(GymnasiumEnvironment, ENVIRONMENT)
    return collect(
        make, partial(UserController, None, make), Disturbances(0.0, 1.0, 5, random_min=1.0),
        episodes=episodes, seed=0, workers=1, name=ENVIRONMENT,
    )  # fmt: skip


def write_all(folder: Path, transitions: Transitions, rewards: Rewards) -> None:
    """Write one collection in every format.

    The files are ``hopper.hdf5`` in D4RL's format, ``hopper.csv`` with one row per step, ``demos.hdf5`` with
    one group per episode, and a Minari dataset.
    """
    rows = torch.arange(len(transitions))
    episodes = transitions.episode_of(rows)
    last = rows == transitions.episode_starts[episodes + 1] - 1
    fell = (last & transitions.terminated[episodes]).numpy()
    with h5py.File(folder / "hopper.hdf5", "w") as file:
        file["observations"] = transitions.states().numpy()
        file["next_observations"] = transitions.arrivals().numpy()
        file["actions"] = transitions.actions.numpy()
        file["rewards"] = rewards.rewards.numpy()
        file["terminals"] = fell
        file["timeouts"] = last.numpy() & ~fell
    write_groups(folder / "demos.hdf5", groups_of(transitions, rewards))
    table = {"episode": episodes.numpy(), "fell": fell.astype(int), "reward": rewards.rewards.numpy()}
    for prefix, values in (("obs", transitions.states()), ("next", transitions.arrivals())):
        table |= {f"{prefix}_{i}": values[:, i].numpy() for i in range(values.shape[1])}
    table |= {f"act_{i}": transitions.actions[:, i].numpy() for i in range(transitions.actions.shape[1])}
    pd.DataFrame(table).astype({"reward": np.float64}).to_csv(folder / "hopper.csv", index=False)
    save_minari(transitions, rewards, MINARI_ID, root=folder / "minari", environment=ENVIRONMENT)
