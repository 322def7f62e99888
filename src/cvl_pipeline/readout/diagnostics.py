"""How good are the values? Measured on held-out episodes."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from scipy import stats

from cvl_pipeline.networks.critic import ContrastiveCritic
from cvl_pipeline.readout.exact import Readout, state_action_values
from cvl_pipeline.trajectories.container import Rewards, Split, Transitions
from cvl_pipeline.trajectories.preparation import discounted_returns


def value_table(
    critic: ContrastiveCritic, readout: Readout, transitions: Transitions, rewards: Rewards, split: Split
) -> pd.DataFrame:
    """Values beside discounted Monte Carlo returns, one row a held-out transition.

    The critic's p_gamma is renormalised over what a truncated episode shows, and so is the return: with
    L steps left it is divided by ``1 - gamma^L``, which makes it an unbiased sample of the very quantity
    that the readout estimates. A terminated episode's return is complete as it is.

    Returns:
        ``episode`` (id), ``step`` (within it), ``q``, ``return`` and ``effective_sample_size``.
    """
    held_out = transitions.select(split.validation)
    labels = rewards.select(transitions.transition_index(split.validation))
    values, sizes = state_action_values(critic, readout, held_out.states(), held_out.actions)
    discount = float(readout.discount)
    index = torch.arange(len(held_out))
    episodes = held_out.episode_of(index)
    steps_left = held_out.episode_starts[episodes + 1] - index
    returns = discounted_returns(labels.rewards, held_out, discount)
    seen = torch.where(held_out.terminated[episodes], 1.0, 1.0 - discount ** steps_left.double())
    return pd.DataFrame(
        {
            "episode": split.validation[episodes].numpy(),
            "step": (index - held_out.episode_starts[episodes]).numpy(),
            "q": values.numpy(),
            "return": (returns / seen).numpy(),
            "effective_sample_size": sizes.numpy(),
        }
    )


def value_report(values: pd.DataFrame, references: int) -> dict[str, float | None]:
    """Correlation and calibration of Q against held-out returns, and the weights' effective sample size.

    Args:
        values: of ``value_table``.
        references: K of the readout.

    Returns:
        ``spearman`` and ``pearson`` over all held-out transitions, ``slope`` and ``intercept`` of the
        least-squares line return = slope * Q + intercept (1 and 0 where values are calibrated), the median
        and tenth percentile of the effective sample size, K, and the number of transitions. Correlation,
        slope and intercept are None where values or returns are all equal.
    """
    q, returns = values["q"].to_numpy(np.float64), values["return"].to_numpy(np.float64)
    constant = np.ptp(q) == 0.0 or np.ptp(returns) == 0.0
    line = None if constant else stats.linregress(q, returns)
    sizes = values["effective_sample_size"]
    return {
        "spearman": None if constant else float(stats.spearmanr(q, returns).statistic),
        "pearson": None if line is None else float(line.rvalue),
        "slope": None if line is None else float(line.slope),
        "intercept": None if line is None else float(line.intercept),
        "q_mean": float(q.mean()),
        "return_mean": float(returns.mean()),
        "effective_sample_size_median": float(sizes.median()),
        "effective_sample_size_p10": float(sizes.quantile(0.1)),
        "references": float(references),
        "transitions": float(len(values)),
    }
