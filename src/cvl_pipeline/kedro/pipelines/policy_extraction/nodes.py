"""Nodes of the policy_extraction pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cvl_pipeline.kedro.workspace import workspace
from cvl_pipeline.methods.base import METHODS
from cvl_pipeline.objectives.base import OBJECTIVES
from cvl_pipeline.training.keeping import kept_checkpoints

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from cvl_pipeline.episodes.container import Normalisation, Rewards, Split, Transitions
    from cvl_pipeline.networks.critic import ContrastiveCritic
    from cvl_pipeline.readout.readouts import Readout


def extract(
    critic: ContrastiveCritic,
    readout: Readout,
    transitions: Transitions,
    split: Split,
    normalisation: Normalisation,
    labels: Rewards,
    parameters: dict[str, Any],
    seed: int,
) -> tuple[nn.Module, pd.DataFrame]:
    """Extract CVL's policy from the frozen critic."""
    from cvl_pipeline.api import extract_policy
    from cvl_pipeline.episodes.data import EpisodeData

    data = EpisodeData(transitions, split, normalisation, labels)
    place = workspace.get()
    with kept_checkpoints():
        return extract_policy(
            critic, readout, data, OBJECTIVES.validate(parameters), seed,  # type: ignore[arg-type]
            checkpoints=place.checkpoints, logs=place.logs,
        )  # fmt: skip


def train_baseline(
    transitions: Transitions,
    split: Split,
    normalisation: Normalisation,
    parameters: dict[str, Any],
    seed: int,
    labels: Rewards | None = None,
    values: Any = None,
) -> tuple[nn.Module, pd.DataFrame]:
    """Train the policy of a baseline; with labels, and with the values of actions, if it needs them."""
    from cvl_pipeline.api import train_parameters
    from cvl_pipeline.episodes.data import EpisodeData

    data = EpisodeData(transitions, split, normalisation, labels)
    place = workspace.get()
    with kept_checkpoints():
        return train_parameters(
            data, METHODS.validate(parameters), seed, values, place.checkpoints, place.logs
        )


def train_baseline_with_critic(
    critic: ContrastiveCritic, readout: Readout, **others: Any
) -> tuple[nn.Module, pd.DataFrame]:
    """Train the policy of a baseline that needs the values of actions."""
    from cvl_pipeline.readout.q_function import QFunction

    return train_baseline(**others, values=QFunction(critic, readout))


def plot(titles: Mapping[str, str], /, **histories: pd.DataFrame) -> Any:
    """Draw the losses of all policies over training."""
    from cvl_pipeline.reports import figures, plots

    return plots.policy_histories(histories, titles, {name: figures.colour(name) for name in histories})
