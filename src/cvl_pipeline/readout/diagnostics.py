"""How good are the values? Measured on held-out episodes."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Generator

from cvl_pipeline.episodes.container import Rewards, Split, Transitions
from cvl_pipeline.episodes.preparation import observed_returns
from cvl_pipeline.errors import InputError
from cvl_pipeline.readout.build import exact_readout
from cvl_pipeline.readout.parameters import READOUTS, ReadoutParameters, ValueReportParameters
from cvl_pipeline.readout.q_function import QFunction
from cvl_pipeline.readout.references import all_references
from cvl_pipeline.training.seeds import stream_seed

logger = logging.getLogger(__name__)

RANK_CORRELATION_NEEDED = 0.9
"""Below it, a readout orders actions by its own error as much as by the critic's values: a warning is due."""

OBSERVED_SHARE = 0.25
"""Of its discounted future, that a step must show for its return to be ranked."""


def value_table(
    q: QFunction,
    transitions: Transitions,
    labels: Rewards,
    split: Split,
    parameters: ValueReportParameters,
    seed: int,
) -> pd.DataFrame:
    """Values beside discounted Monte Carlo returns and the exact readout, one row a held-out transition.

    The critic's p_gamma is normalised over what a truncated episode shows, and so is the return: with
    L steps left it is divided by ``1 - gamma^L``, which makes it an unbiased sample of the very quantity
    that the readout estimates. A terminated episode's return is complete as it is.

    Args:
        q: critic and readout.
        transitions: all episodes.
        labels: their rewards.
        split: which episodes are held out.
        parameters: ``compared_transitions`` rows get the exact value too.
        seed: chooses those rows.

    Returns:
        ``episode`` (id), ``step`` (within it), ``q``, ``return``, ``effective_sample_size``, and ``q_exact``:
        by the exact, self-normalised readout over every logged future state; NaN where it was not computed.
    """
    index = transitions.transition_index(split.validation)
    values, sizes = q.of_transitions(transitions, index)
    generator = Generator().manual_seed(stream_seed(seed, "references", 1))
    compared = torch.randperm(len(index), generator=generator)[: parameters.compared_transitions]
    exact, exact_sizes = _exact(q, transitions, labels, split).of_transitions(transitions, index[compared])
    values_exact = torch.full_like(values, torch.nan)
    values_exact[compared] = exact
    if sizes.isnan().all():  # random features never weigh single references
        sizes[compared] = exact_sizes
    episodes = transitions.episode_of(index)
    returns = observed_returns(labels.rewards, transitions, q.readout.discount)
    return pd.DataFrame(
        {
            "episode": episodes.numpy(),
            "step": (index - transitions.episode_starts[episodes]).numpy(),
            "q": values.numpy(),
            "return": returns[index].numpy(),
            "effective_sample_size": sizes.numpy(),
            "q_exact": values_exact.numpy(),
        }
    )


def _exact(q: QFunction, transitions: Transitions, labels: Rewards, split: Split) -> QFunction:
    references = all_references(q.critic, transitions, labels, split.train)
    return QFunction(q.critic, exact_readout(q.critic, references, q.readout.horizons, q.readout.discount))


def value_report(
    values: pd.DataFrame, labels: Rewards, parameters: ReadoutParameters
) -> dict[str, float | None]:
    """Correlation and calibration of Q against held-out returns, and the readout's own error.

    Logs a warning if the readout's order of values is not the exact readout's.

    Args:
        values: of ``value_table``.
        labels: rewards of all transitions.
        parameters: of the readout.

    Returns:
        ``spearman`` and ``pearson`` over all held-out transitions, ``slope`` and ``intercept`` of the
        least-squares line return = slope * Q + intercept (1 and 0 where values are calibrated), the median
        and tenth percentile of the effective sample size, ``readout_error`` (root mean square difference from
        the exact readout, over the exact values' standard deviation), ``readout_rank_correlation`` (Spearman,
        with the exact readout), the number of transitions, and ``success_states``, the logged states that
        count as success (None where nothing reports success). Correlations, slope, intercept and error are
        None where values or returns are all equal.
    """
    q, returns = values["q"].to_numpy(np.float64), values["return"].to_numpy(np.float64)
    constant = np.ptp(q) == 0.0 or np.ptp(returns) == 0.0
    line = None if constant else stats.linregress(q, returns)
    sizes = values["effective_sample_size"]
    compared = values.dropna(subset=["q_exact"])
    error, rank = readout_error(compared["q"].to_numpy(), compared["q_exact"].to_numpy())
    if rank is not None and rank < RANK_CORRELATION_NEEDED:
        logger.warning(
            "value_readout: %s with %s misses the exact values by %.2g of their standard deviations (rank "
            "correlation %.2f): they are too few for the critic's temperature; use %smore of them, method exact, "
            "or a higher temperature",
            parameters.method, READOUTS.create(parameters).size, error, rank,
            "" if parameters.self_normalised else "self_normalised=true, ",
        )  # fmt: skip
    return {
        "spearman": None if constant else float(stats.spearmanr(q, returns).statistic),
        "pearson": None if line is None else float(line.rvalue),
        "slope": None if line is None else float(line.slope),
        "intercept": None if line is None else float(line.intercept),
        "q_mean": float(q.mean()),
        "return_mean": float(returns.mean()),
        "effective_sample_size_median": float(sizes.median()),
        "effective_sample_size_p10": float(sizes.quantile(0.1)),
        "readout_error": error,
        "readout_rank_correlation": rank,
        "transitions": float(len(values)),
        "success_states": float(labels.successes.sum()) if labels.reports_success else None,
    }


def returns_correlation(
    q: QFunction, transitions: Transitions, labels: Rewards, split: Split, discount: float
) -> float:
    """Spearman's correlation of Q with held-out returns at a given discount, whatever the critic's own.

    At one discount for all, critics of different horizons are asked the same question. Of truncated episodes
    only those steps count of whose discounted future at least OBSERVED_SHARE was logged: a return over less
    is mostly extrapolation.

    Args:
        q: critic and readout.
        transitions: all episodes.
        labels: their rewards.
        split: which episodes are held out.
        discount: of the returns.

    Raises:
        InputError: no held-out step shows enough of its future, or values or returns are all equal.
    """
    index = transitions.transition_index(split.validation)
    episodes = transitions.episode_of(index)
    left = transitions.episode_starts[episodes + 1] - index
    seen = transitions.terminated[episodes] | (1.0 - discount ** left.double() >= OBSERVED_SHARE)
    index = index[seen]
    if len(index) < 2:
        raise InputError(
            f"returns_correlation: no held-out episode shows {100 * OBSERVED_SHARE:g} % of the future at "
            f"discount {discount}; lower tuning.returns_discount"
        )
    values = q.of_transitions(transitions, index)[0].numpy()
    returns = observed_returns(labels.rewards, transitions, discount)[index].numpy()
    if np.ptp(values) == 0.0 or np.ptp(returns) == 0.0:
        raise InputError("returns_correlation: held-out values or returns are all equal, and rank nothing")
    return float(stats.spearmanr(values, returns).statistic)


def readout_error(
    values: NDArray[np.float64], exact: NDArray[np.float64]
) -> tuple[float | None, float | None]:
    """Root mean square difference over the standard deviation of ``exact``, and Spearman correlation.

    None where either is constant.
    """
    if np.ptp(values) == 0.0 or np.ptp(exact) == 0.0:
        return None, None
    error = np.sqrt(np.mean((values - exact) ** 2)) / exact.std()
    return float(error), float(stats.spearmanr(values, exact).statistic)
