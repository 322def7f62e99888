"""Nodes of the contrastive_dynamics pipeline."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from cvl_pipeline.dynamics.parameters import DynamicsParameters
from cvl_pipeline.episodes.container import Normalisation, Split, Transitions
from cvl_pipeline.networks.critic import ContrastiveCritic
from cvl_pipeline.reports import plots
from cvl_pipeline.training import launch


def train(
    transitions: Transitions,
    split: Split,
    normalisation: Normalisation,
    parameters: DynamicsParameters,
    seed: int,
    checkpoints: Path,
    logs: Path,
) -> tuple[ContrastiveCritic, pd.DataFrame]:
    """Train the contrastive critic on transitions alone."""
    # Not above: Lightning takes two seconds to import, which a run that trains nothing need not wait for.
    from cvl_pipeline.dynamics.module import train_dynamics

    inputs = {"transitions": transitions, "split": split, "normalisation": normalisation}
    return launch.train(train_dynamics, "critic", parameters, seed, checkpoints, logs, inputs)


def report(history: pd.DataFrame) -> dict[str, float]:
    """Held-out metrics at the end of training."""
    return {str(name): float(value) for name, value in history.iloc[-1].items()}


def plot(history: pd.DataFrame) -> Figure:
    """Loss, accuracy and mutual-information bound over training."""
    return plots.dynamics_history(history)
