"""Nodes of the value_readout pipeline."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from cvl_pipeline.networks.critic import ContrastiveCritic
from cvl_pipeline.pipelines import plots
from cvl_pipeline.readout.diagnostics import value_report, value_table
from cvl_pipeline.readout.exact import Readout, build_readout
from cvl_pipeline.readout.parameters import ReadoutParameters
from cvl_pipeline.trajectories.container import Rewards, Split, Transitions


def read_out(
    critic: ContrastiveCritic,
    transitions: Transitions,
    rewards: Rewards,
    split: Split,
    parameters: ReadoutParameters,
    seed: int,
) -> Readout:
    """Draw and label the references, from the training episodes."""
    return build_readout(critic, transitions, rewards, split, parameters, seed)


def evaluate(
    critic: ContrastiveCritic, readout: Readout, transitions: Transitions, rewards: Rewards, split: Split
) -> pd.DataFrame:
    """Values and discounted returns of every held-out transition."""
    return value_table(critic, readout, transitions, rewards, split)


def report(values: pd.DataFrame, readout: Readout) -> dict[str, float | None]:
    """Correlation, calibration and effective sample size."""
    return value_report(values, references=len(readout.psi))


def plot(values: pd.DataFrame, report: dict[str, float | None]) -> Figure:
    """Values against returns."""
    return plots.values_against_returns(values, report)
