"""Nodes of the contrastive_dynamics pipeline."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cvl_pipeline.dynamics.parameters import DynamicsParameters
from cvl_pipeline.kedro.workspace import workspace
from cvl_pipeline.training.keeping import kept_checkpoints

if TYPE_CHECKING:
    import pandas as pd

    from cvl_pipeline.episodes.container import Normalisation, Split, Transitions
    from cvl_pipeline.networks.critic import ContrastiveCritic


def train(
    transitions: Transitions,
    split: Split,
    normalisation: Normalisation,
    parameters: dict[str, Any],
    seed: int,
) -> tuple[ContrastiveCritic, pd.DataFrame]:
    """Train the contrastive critic on transitions alone."""
    from cvl_pipeline.api import train_critic
    from cvl_pipeline.episodes.data import EpisodeData

    data = EpisodeData(transitions, split, normalisation)
    place = workspace.get()
    given = DynamicsParameters.model_validate(parameters)
    with kept_checkpoints():
        return train_critic(data, given, seed, checkpoints=place.checkpoints, logs=place.logs)


def report(history: pd.DataFrame) -> dict[str, float]:
    """Return the metrics at the end of training."""
    return {str(name): float(value) for name, value in history.iloc[-1].items()}


def plot(history: pd.DataFrame) -> Any:
    """Draw loss, accuracy and mutual-information bound over training."""
    from cvl_pipeline.reports import plots

    return plots.dynamics_history(history)
