"""Nodes of the policy_extraction pipeline."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from torch import nn

from cvl_pipeline.episodes.container import Normalisation, Rewards, Split, Transitions
from cvl_pipeline.networks.critic import ContrastiveCritic
from cvl_pipeline.objectives.parameters import PolicyParameters
from cvl_pipeline.readout.readouts import Readout
from cvl_pipeline.reports import plots
from cvl_pipeline.training import launch


def extract(
    critic: ContrastiveCritic,
    readout: Readout,
    transitions: Transitions,
    labels: Rewards,
    split: Split,
    normalisation: Normalisation,
    parameters: PolicyParameters,
    seed: int,
    checkpoints: Path,
    logs: Path,
) -> tuple[nn.Module, pd.DataFrame]:
    """Extract a policy from the frozen critic."""
    # Not above, here and below: Lightning takes two seconds to import, which a run that trains nothing need
    # not wait for.
    from cvl_pipeline.objectives.module import extract_policy

    inputs = {
        "transitions": transitions, "split": split, "normalisation": normalisation, "labels": labels,
        "critic": critic, "readout": readout,
    }  # fmt: skip
    return launch.train(extract_policy, "policy", parameters, seed, checkpoints, logs, inputs)


def clone(
    transitions: Transitions,
    split: Split,
    normalisation: Normalisation,
    parameters: PolicyParameters,
    seed: int,
    checkpoints: Path,
    logs: Path,
) -> tuple[nn.Module, pd.DataFrame]:
    """Clone the behaviour: same data, network and gradient steps, no critic."""
    from cvl_pipeline.objectives.module import train_policy

    control = parameters.model_copy(update={"objective": "bc"})
    inputs = {"transitions": transitions, "split": split, "normalisation": normalisation}
    return launch.train(train_policy, "policy", control, seed, checkpoints, logs, inputs)


def plot(policy_history: pd.DataFrame, bc_history: pd.DataFrame) -> Figure:
    """Losses of both policies over training."""
    return plots.policy_histories({"CVL": policy_history, "BC": bc_history})
