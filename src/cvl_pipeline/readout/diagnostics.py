"""Quality of the values, measured on held-out episodes."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from cvl_pipeline.episodes.container import Rewards, Split, Transitions
from cvl_pipeline.episodes.preparation import logged_shares, observed_returns
from cvl_pipeline.errors import InputError
from cvl_pipeline.readout.action_values import ROUNDING
from cvl_pipeline.readout.build import exact_readout
from cvl_pipeline.readout.parameters import READOUTS, ReadoutParameters, ValueReportParameters
from cvl_pipeline.readout.q_function import QFunction
from cvl_pipeline.readout.references import all_references
from cvl_pipeline.training.seeds import stream_seed

logger = logging.getLogger(__name__)

RANK_CORRELATION_NEEDED = 0.9
"""Below it, the readout's own error visibly changes the order of actions, and a warning is logged."""

OBSERVED_SHARE = 0.25
"""Share of a step's discounted future that must be logged for its return to be ranked."""
FEW_RANKED, FEW_SHARE = 100, 0.1
"""Ranked steps, and their share of all held-out ones, below which a warning says that they are few."""


def value_table(
    q: QFunction,
    transitions: Transitions,
    labels: Rewards,
    split: Split,
    parameters: ValueReportParameters,
    seed: int,
) -> pd.DataFrame:
    """Compare values with discounted Monte Carlo returns and the exact readout, one row per held-out transition.

    In a truncated episode, the critic's p_gamma is normalised over the logged future, and so is the return: with
    L steps left, it is divided by ``1 - gamma^L``. So it is an unbiased sample of the quantity that the readout
    estimates. The return in a terminated episode is complete and stays unchanged.

    Args:
        q: critic and readout.
        transitions: all episodes.
        labels: rewards of all transitions.
        split: defines the held-out episodes.
        parameters: ``compared_transitions`` is the number of rows with an exact value.
        seed: seed for the choice of these rows.

    Returns:
        ``episode`` (id), ``step`` (within it), ``q``, ``return``, ``share``, the part of the return's future that is
        logged, ``effective_sample_size``,
        ``q_alone``, the value of the readout without regression on returns, and ``q_exact``, that of the exact,
        self-normalised readout over every logged future state; NaN if not computed.
    """
    index = transitions.transition_index(split.validation)
    values, sizes = q.of_transitions(transitions, index)
    generator = Generator().manual_seed(stream_seed(seed, "references", 1))
    compared = torch.randperm(len(index), generator=generator)[: parameters.compared_transitions]
    exact, exact_sizes = _exact(q, transitions, labels, split).of_transitions(transitions, index[compared])
    alone = QFunction(q.critic, q.readout.alone).of_transitions(transitions, index[compared])[0]
    values_exact, values_alone = torch.full((2, len(values)), torch.nan)
    values_exact[compared], values_alone[compared] = exact, alone
    if sizes.isnan().all():  # random features have no weights of single references
        sizes[compared] = exact_sizes
    episodes = transitions.episode_of(index)
    returns = observed_returns(labels.rewards, transitions, q.readout.discount)
    return pd.DataFrame(
        {
            "episode": episodes.numpy(),
            "step": (index - transitions.episode_starts[episodes]).numpy(),
            "q": values.numpy(),
            "return": returns[index].numpy(),
            "share": logged_shares(transitions, q.readout.discount)[index].numpy(),
            "effective_sample_size": sizes.numpy(),
            "q_alone": values_alone.numpy(),
            "q_exact": values_exact.numpy(),
        }
    )


def label_discount(q: QFunction) -> float | None:
    """Discount of the labels of reference states: the values'; None: the critic itself covers it."""
    return None if q.critic.shape.horizon_conditioning else q.readout.discount


def _exact(q: QFunction, transitions: Transitions, labels: Rewards, split: Split) -> QFunction:
    references = all_references(q.critic, transitions, labels, split.train, label_discount(q))
    return QFunction(q.critic, exact_readout(q.critic, references, q.readout.horizons, q.readout.discount))


def value_report(
    values: pd.DataFrame, labels: Rewards, parameters: ReadoutParameters
) -> dict[str, float | None]:
    """Correlation and calibration of Q against held-out returns, and the readout's own error.

    Log a warning if the readout orders values differently from the exact readout.

    Args:
        values: table from ``value_table``.
        labels: rewards of all transitions.
        parameters: parameters of the readout.

    Returns:
        ``spearman`` and ``pearson`` over all held-out transitions; ``slope`` and ``intercept`` of the
        least-squares line return = slope * Q + intercept (1 and 0 for calibrated values); the median and tenth
        percentile of the effective sample size; ``readout_error`` (root mean square difference from the exact
        readout, divided by the exact values' standard deviation); ``readout_rank_correlation`` (Spearman, with
        the exact readout); ``transitions``, the number of held-out transitions;
        ``success_states``, how many of the ``logged_states``, which all logged transitions arrive in, count as
        success (None if nothing reports success). Correlations, slope, intercept and error are None if values or
        returns are all equal.
    """
    q, returns = values["q"].to_numpy(np.float64), values["return"].to_numpy(np.float64)
    constant = _constant(q) or _constant(returns)
    line = None if constant else _line(q, returns)
    sizes = values["effective_sample_size"]
    if "q_alone" not in values:  # a table of an older version, without regression
        values = values.assign(q_alone=values["q"])
    compared = values.dropna(subset=["q_exact"])
    error, rank = readout_error(compared["q_alone"].to_numpy(), compared["q_exact"].to_numpy())
    if rank is not None and not rank >= RANK_CORRELATION_NEEDED:  # of values that are no numbers, it is none
        logger.warning(
            "value_readout: %s with %s differs from the exact values by %.2g of their standard deviation (rank "
            "correlation %.2f): that is too few for the critic's temperature; use %smore of them, method exact, "
            "or a higher temperature",
            parameters.method, READOUTS.create(parameters).size, error, rank,
            "" if parameters.self_normalised else "self_normalised=true, ",
        )  # fmt: skip
    return {
        "spearman": None if constant else _rank_correlation(q, returns),
        "pearson": None if line is None else float(line.rvalue),
        "slope": None if line is None else float(line.slope),
        "intercept": None if line is None else float(line.intercept),
        "q_mean": float(q.mean()),
        "return_mean": float(np.average(returns, weights=values.get("share"))),
        "effective_sample_size_median": float(sizes.median()),
        "effective_sample_size_p10": float(sizes.quantile(0.1)),
        "readout_error": error,
        "readout_rank_correlation": rank,
        "transitions": len(values),
        "logged_states": len(labels.successes),
        "success_states": int(labels.successes.sum()) if labels.reports_success else None,
    }


def returns_correlation(
    q: QFunction, transitions: Transitions, labels: Rewards, split: Split, discount: float
) -> float:
    """Spearman's correlation of Q with held-out returns at a given discount, independent of the critic's.

    One discount makes critics of different horizons comparable. In truncated episodes, steps count only if at
    least OBSERVED_SHARE of their discounted future was logged; other returns are mostly extrapolation.

    Args:
        q: critic and readout.
        transitions: all episodes.
        labels: rewards of all transitions.
        split: defines the held-out episodes.
        discount: discount of the returns.

    Raises:
        InputError: no held-out step has enough logged future, or values or returns are all equal.
    """
    index = _ranked_steps(transitions, split, discount)
    if len(index) < 2:
        raise InputError(
            f"returns_correlation: no held-out step has {100 * OBSERVED_SHARE:g} % of its future logged "
            f"at discount {discount}; lower tuning.returns_discount"
        )
    values = q.of_transitions(transitions, index)[0].numpy()
    returns = observed_returns(labels.rewards, transitions, discount)[index].numpy()
    if _constant(values) or _constant(returns):
        raise InputError(
            "returns_correlation: held-out values or returns are all equal, so they have no ranks"
        )
    return _rank_correlation(values, returns)


def _ranked_steps(transitions: Transitions, split: Split, discount: float) -> Tensor:
    """Held-out transitions of whose future the log has enough, (M,) int64."""
    index = transitions.transition_index(split.validation)
    episodes = transitions.episode_of(index)
    left = transitions.episode_starts[episodes + 1] - index
    ranked = transitions.terminated[episodes] | (1.0 - discount ** left.double() >= OBSERVED_SHARE)
    return index[ranked]


def check_ranked_steps(transitions: Transitions, split: Split, discount: float) -> None:
    """Warn if ``returns_correlation`` ranks few held-out steps: trials would differ by chance."""
    ranked = len(_ranked_steps(transitions, split, discount))
    steps = int(transitions.lengths[split.validation].sum())
    if 2 <= ranked < max(FEW_RANKED, FEW_SHARE * steps):
        logger.warning(
            "returns_correlation ranks only %d of %d held-out steps, those with %g %% of their future logged at "
            "discount %g; lower tuning.returns_discount, or raise data_ingestion.validation_fraction",
            ranked, steps, 100 * OBSERVED_SHARE, discount,
        )  # fmt: skip


def readout_error(
    values: NDArray[np.float64], exact: NDArray[np.float64]
) -> tuple[float | None, float | None]:
    """Root mean square difference over the standard deviation of ``exact``, and Spearman correlation.

    None if either is constant.
    """
    if _constant(values) or _constant(exact):
        return None, None
    error = np.sqrt(np.mean((values - exact) ** 2)) / exact.std()
    return float(error), _rank_correlation(values, exact)


def _constant(values: NDArray[Any]) -> bool:
    """Whether all values are equal, but for rounding."""
    return bool(np.ptp(values) <= ROUNDING * np.abs(values).max())


def _rank_correlation(values: NDArray[Any], others: NDArray[Any]) -> float:
    """Spearman's correlation."""
    from scipy import stats  # imported when needed: it takes half a second

    return float(stats.spearmanr(values, others).statistic)


def _line(values: NDArray[np.float64], returns: NDArray[np.float64]) -> Any:
    """The least-squares line of returns over values."""
    from scipy import stats

    return stats.linregress(values, returns)
