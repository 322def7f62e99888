"""Nodes of the value_readout pipeline."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from cvl_pipeline.episodes.container import Rewards, Split, Transitions
from cvl_pipeline.networks.critic import ContrastiveCritic
from cvl_pipeline.readout import rewards as reward_functions
from cvl_pipeline.readout.build import build_readout
from cvl_pipeline.readout.diagnostics import value_report, value_table
from cvl_pipeline.readout.parameters import ReadoutParameters, RewardParameters
from cvl_pipeline.readout.q_function import QFunction
from cvl_pipeline.readout.readouts import Readout
from cvl_pipeline.reports import plots


def label(transitions: Transitions, rewards: Rewards, reward: RewardParameters) -> Rewards:
    """Say what every transition is worth: as logged, or by another reward."""
    return reward_functions.label(transitions, rewards, reward)


def read_out(
    critic: ContrastiveCritic,
    transitions: Transitions,
    labels: Rewards,
    split: Split,
    parameters: ReadoutParameters,
    seed: int,
) -> Readout:
    """Weigh the labelled future states of the training episodes."""
    return build_readout(critic, transitions, labels, split, parameters, seed)


def evaluate(
    critic: ContrastiveCritic,
    readout: Readout,
    transitions: Transitions,
    labels: Rewards,
    split: Split,
    parameters: ReadoutParameters,
    seed: int,
) -> pd.DataFrame:
    """Values, discounted returns and, for some, exact values of every held-out transition."""
    return value_table(QFunction(critic, readout), transitions, labels, split, parameters, seed)


def report(values: pd.DataFrame, parameters: ReadoutParameters) -> dict[str, float | None]:
    """Correlation, calibration, effective sample size and the readout's own error."""
    return value_report(values, parameters)


def plot(values: pd.DataFrame, report: dict[str, float | None]) -> Figure:
    """Values against returns."""
    return plots.values_against_returns(values, report)
