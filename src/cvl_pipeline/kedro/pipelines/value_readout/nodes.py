"""Nodes of the value_readout pipeline."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cvl_pipeline.readout.parameters import READOUTS, REWARDS, ValueReportParameters

if TYPE_CHECKING:
    import pandas as pd

    from cvl_pipeline.episodes.container import Normalisation, Rewards, Split, Transitions
    from cvl_pipeline.networks.critic import ContrastiveCritic
    from cvl_pipeline.readout.readouts import Readout


def label(transitions: Transitions, rewards: Rewards, reward: dict[str, Any]) -> Rewards:
    """Label every transition with the reward in force, the log's own or another."""
    from cvl_pipeline.api import label_rewards

    return label_rewards(transitions, rewards, REWARDS.validate(reward))  # type: ignore[arg-type]


def read_out(
    critic: ContrastiveCritic,
    transitions: Transitions,
    split: Split,
    normalisation: Normalisation,
    labels: Rewards,
    parameters: dict[str, Any],
    seed: int,
) -> Readout:
    """Weigh the labelled future states of the training episodes."""
    from cvl_pipeline.api import read_out as read_out_values
    from cvl_pipeline.episodes.data import EpisodeData

    data = EpisodeData(transitions, split, normalisation, labels)
    return read_out_values(critic, data, READOUTS.validate(parameters), seed)  # type: ignore[arg-type]


def evaluate(
    critic: ContrastiveCritic,
    readout: Readout,
    transitions: Transitions,
    labels: Rewards,
    split: Split,
    parameters: dict[str, Any],
    seed: int,
) -> pd.DataFrame:
    """Compute values and discounted returns of every held-out transition, and exact values of some."""
    from cvl_pipeline.readout.diagnostics import value_table
    from cvl_pipeline.readout.q_function import QFunction

    given = ValueReportParameters.model_validate(parameters)
    return value_table(QFunction(critic, readout), transitions, labels, split, given, seed)


def report(values: pd.DataFrame, labels: Rewards, parameters: dict[str, Any]) -> dict[str, float | None]:
    """Report correlation, calibration, effective sample size and the readout's own error."""
    from cvl_pipeline.readout.diagnostics import value_report

    given: Any = READOUTS.validate(parameters)
    return value_report(values, labels, given)


def plot(values: pd.DataFrame, report: dict[str, float | None]) -> Any:
    """Draw values against returns."""
    from cvl_pipeline.reports import plots

    return plots.values_against_returns(values, report)
