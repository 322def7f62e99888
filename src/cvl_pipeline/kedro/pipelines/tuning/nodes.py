"""Nodes of the tuning pipeline.

What needs Optuna is imported when a node runs: it comes with the extra ``tuning``, and no other pipeline has
to wait for it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from cvl_pipeline.episodes.container import Normalisation, Rewards, Split, Transitions
from cvl_pipeline.kedro.parameters import check_parameters
from cvl_pipeline.tuning.parameters import TuningParameters
from cvl_pipeline.tuning.storage import StudyLocation


def search(
    transitions: Transitions,
    rewards: Rewards,
    split: Split,
    normalisation: Normalisation,
    parameters: dict[str, Any],
    location: StudyLocation,
    folder: Path,
) -> pd.DataFrame:
    """Run trials on this machine until the study has as many finished ones as it should."""
    from cvl_pipeline.tuning.search import search as run
    from cvl_pipeline.tuning.trial import Log

    given = check_parameters(parameters)
    log = Log(transitions, rewards, split, normalisation)
    return run(log, given.stages, given.tuning, location, folder)


def choose(trials: pd.DataFrame, parameters: TuningParameters) -> dict[str, Any]:
    """The best parameters, which ``tuned=true`` trains with."""
    from cvl_pipeline.tuning.results import best_parameters

    return best_parameters(trials, parameters)


def report(trials: pd.DataFrame, parameters: TuningParameters) -> dict[str, Any]:
    """How the study went, and which offline number agrees with the environment."""
    from cvl_pipeline.tuning import results

    return results.report(trials, parameters)


def plot_history(trials: pd.DataFrame, parameters: TuningParameters) -> Any:
    """Values over the trials."""
    from cvl_pipeline.tuning.results import history_plot

    return history_plot(trials, parameters)


def plot_importance(trials: pd.DataFrame, parameters: TuningParameters) -> Any:
    """Which parameter matters."""
    from cvl_pipeline.tuning.results import importance_plot

    return importance_plot(trials, parameters)


def plot_parallel(trials: pd.DataFrame, parameters: TuningParameters) -> Any:
    """All trials at once."""
    from cvl_pipeline.tuning.results import parallel_plot

    return parallel_plot(trials, parameters)
