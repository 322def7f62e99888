"""Nodes of the tuning pipeline.

Optuna comes with the extra ``tuning``. It is imported when a node runs, so no other pipeline waits for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cvl_pipeline.kedro.parameters import check_parameters
from cvl_pipeline.kedro.workspace import workspace
from cvl_pipeline.tuning.parameters import TuningParameters

if TYPE_CHECKING:
    import pandas as pd

    from cvl_pipeline.episodes.container import Normalisation, Rewards, Split, Transitions


def search(
    transitions: Transitions,
    rewards: Rewards,
    split: Split,
    normalisation: Normalisation,
    parameters: dict[str, Any],
) -> pd.DataFrame:
    """Run trials on this machine until the study has as many finished ones as it should."""
    from cvl_pipeline.episodes.data import EpisodeData
    from cvl_pipeline.tuning.search import search as run

    given, place = check_parameters(parameters), workspace.get()
    if place.study is None or place.study_folder is None:
        raise RuntimeError("a hook of the project says where the study is stored")
    data = EpisodeData(transitions, split, normalisation, rewards)
    return run(data, given.stages, given.tuning, place.study, place.study_folder)


def choose(trials: pd.DataFrame, parameters: dict[str, Any]) -> dict[str, Any]:
    """The best parameters, which ``tuned=true`` trains with."""
    from cvl_pipeline.tuning.results import best_parameters

    return best_parameters(trials, TuningParameters.model_validate(parameters))


def report(trials: pd.DataFrame, parameters: dict[str, Any]) -> dict[str, Any]:
    """How the study went, and which offline number agrees with the environment."""
    from cvl_pipeline.tuning import results

    return results.report(trials, TuningParameters.model_validate(parameters))


def plot_history(trials: pd.DataFrame, parameters: dict[str, Any]) -> Any:
    """Values over the trials."""
    from cvl_pipeline.tuning.results import history_plot

    return history_plot(trials, TuningParameters.model_validate(parameters))


def plot_importance(trials: pd.DataFrame, parameters: dict[str, Any]) -> Any:
    """Which parameter matters."""
    from cvl_pipeline.tuning.results import importance_plot

    return importance_plot(trials, TuningParameters.model_validate(parameters))


def plot_parallel(trials: pd.DataFrame, parameters: dict[str, Any]) -> Any:
    """All trials at once."""
    from cvl_pipeline.tuning.results import parallel_plot

    return parallel_plot(trials, TuningParameters.model_validate(parameters))
