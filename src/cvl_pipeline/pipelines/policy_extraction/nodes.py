"""Nodes of the policy_extraction pipeline."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from torch import nn

from cvl_pipeline.networks.critic import ContrastiveCritic
from cvl_pipeline.pipelines import plots
from cvl_pipeline.policies.module import train_policy
from cvl_pipeline.policies.parameters import PolicyParameters
from cvl_pipeline.readout.q_function import QFunction
from cvl_pipeline.readout.readouts import Readout
from cvl_pipeline.trajectories.container import Normalisation, Rewards, Split, Transitions


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
) -> tuple[nn.Module, pd.DataFrame]:
    """Extract a policy from the frozen critic."""
    return train_policy(
        transitions, split, normalisation, parameters, seed, checkpoints,
        q=QFunction(critic, readout), labels=labels,
    )  # fmt: skip


def clone(
    transitions: Transitions,
    split: Split,
    normalisation: Normalisation,
    parameters: PolicyParameters,
    seed: int,
    checkpoints: Path,
) -> tuple[nn.Module, pd.DataFrame]:
    """Clone the behaviour: same data, network and gradient steps, no critic."""
    control = parameters.model_copy(update={"objective": "bc"})
    return train_policy(transitions, split, normalisation, control, seed, checkpoints)


def plot(policy_history: pd.DataFrame, bc_history: pd.DataFrame) -> Figure:
    """Losses of both policies over training."""
    return plots.policy_histories({"CVL": policy_history, "BC": bc_history})
