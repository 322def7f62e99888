"""Comparison of CVL's Q with the exact Q of finite MDPs, from a linear solve (docs/truth.md).

The library's own sampler, losses and readouts run on logs of small MDPs. The last line of the output has the
results of the default settings, averaged over MDPs and seeds.

    python -m benchmarks.truth
"""

from __future__ import annotations

import argparse
import logging
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from scipy import stats
from torch import Generator

from benchmarks.common import RESULTS, markdown, write_record
from cvl_pipeline.api import EpisodeData, QFunction
from cvl_pipeline.dynamics.module import train_dynamics
from cvl_pipeline.dynamics.parameters import DynamicsParameters
from cvl_pipeline.environments.rollouts import available_cores
from cvl_pipeline.episodes.container import Rewards, Transitions
from cvl_pipeline.episodes.preparation import split_episodes
from cvl_pipeline.networks.critic import ContrastiveCritic
from cvl_pipeline.readout.build import exact_readout, horizon_quantiles
from cvl_pipeline.readout.moving_average import MovingFeatures
from cvl_pipeline.readout.readouts import Readout, feature_readout
from cvl_pipeline.readout.references import all_references, compress, draw_references
from cvl_pipeline.testing.builders import identity_normalisation
from cvl_pipeline.testing.finite_mdp import FiniteMDP, Floats, chain, grid_world

DEFAULT_LOSS, DEFAULT_READOUT = "symmetric_infonce", "exact, self-normalised"
HORIZONS = 16
FEATURES = 1024
REFERENCES = 256
SUMMED = 8192  # references summed by the features; about 30 states need no more


@dataclass(frozen=True)
class Case:
    """An MDP and the size of its log."""

    mdp: FiniteMDP
    steps: int  # maximum length of an episode
    transitions: int  # approximate number of logged transitions

    def log(self, seed: int) -> tuple[Transitions, Rewards]:
        """Simulate the log of one seed."""
        return self.mdp.log_episodes(self.transitions // self.steps, self.steps, seed)


def cases(transitions: int) -> dict[str, Case]:
    """Build the four MDPs."""
    return {
        "grid": Case(grid_world(side=5, goal=True), 100, transitions),
        "chain": Case(chain(states=12), 100, transitions),
        "grid with terminal states": Case(grid_world(side=5, goal=True, terminal=True), 100, transitions),
        "grid with timeouts": Case(grid_world(side=5, goal=True), 20, transitions),
    }


LOSSES: dict[str, dict[str, Any]] = {
    DEFAULT_LOSS: {},
    "symmetric_infonce, learned temperature": {"learned_temperature": True},
    "symmetric_infonce, raw": {"representation": "raw", "temperature": 1.0},
    "symmetric_infonce, horizon-conditioned": {"horizon_conditioning": True},
    "infonce": {"loss": "infonce"},
    "infonce, logsumexp penalty 0.01": {"loss": {"name": "infonce", "logsumexp_penalty": 0.01}},
    "nce": {"loss": "nce"},
    "nce, raw": {"loss": "nce", "representation": "raw", "temperature": 1.0},
}


def parameters(steps: int, **changes: Any) -> DynamicsParameters:
    """Build parameters: the pipeline's defaults where they matter (loss, temperature), with small networks."""
    training = {"steps": steps, "validation_interval": steps, "accelerator": "cpu"}
    values: dict[str, Any] = {
        "discount": 0.9, "representation_size": 32, "hidden": (64, 64), "validation_batches": 1,
        "training": training,
    }  # fmt: skip
    return DynamicsParameters.model_validate(values | changes)


def readouts(
    critic: ContrastiveCritic, data: EpisodeData, moving: MovingFeatures | None
) -> dict[str, Readout]:
    """Build all readouts of a critic."""
    assert data.rewards is not None
    generator = Generator().manual_seed(0)
    everything = all_references(critic, data.transitions, data.rewards, data.split.train)
    summed = draw_references(everything, SUMMED, False, generator)
    discount, temperature = critic.shape.discount, critic.temperature.detach()
    horizons = horizon_quantiles(discount, HORIZONS if critic.shape.horizon_conditioning else 0)

    def exact(references: Any, self_normalised: bool = True) -> Readout:
        return exact_readout(critic, references, horizons, discount, self_normalised)

    by_name = {
        DEFAULT_READOUT: exact(everything),
        "exact, unnormalised": exact(everything, self_normalised=False),
        f"exact, {REFERENCES} references": exact(draw_references(everything, REFERENCES, False, generator)),
        f"exact, {REFERENCES} references by reward": exact(
            draw_references(everything, REFERENCES, True, generator)
        ),
        "exact, 16 prototypes": exact(compress(everything, 16, temperature, generator)),
    }
    for method, fourier in (("random_fourier", True), ("positive_random", False)):
        for normalised in (True, False):
            name = f"{method}, {'self-normalised' if normalised else 'unnormalised'}"
            by_name[name] = feature_readout(
                summed, fourier, FEATURES, generator,
                temperature=temperature, horizons=horizons, discount=discount, self_normalised=normalised,
            )  # fmt: skip
    if moving is not None:
        by_name["random_fourier, moving average"] = moving.readout(critic)
    return by_name


def q_table(mdp: FiniteMDP, q: QFunction) -> Floats:
    """Q of every state and action, (S, A)."""
    with torch.no_grad():
        values: Floats = q.of_all_actions(torch.eye(mdp.states)).double().numpy()
    return values


def score(mdp: FiniteMDP, values: Floats, noise: float) -> dict[str, float]:
    """Compare a table of values (S, A) with the exact one, without terminal states.

    Returns:
        ``correlation``: Pearson's, over all pairs. ``error``: root mean square difference after the best
        scaling of the values, divided by the exact values' standard deviation. ``clear_states``: share of
        states whose gap between best and second-best action exceeds ``noise``. ``greedy_agreement``: share of
        those states with the right best action (NaN if there are none).
    """
    exact, estimate = mdp.q()[~mdp.terminal], values[~mdp.terminal]
    scale = (exact * estimate).sum() / (estimate * estimate).sum()
    ordered = np.sort(exact, axis=1)
    clear = ordered[:, -1] - ordered[:, -2] > noise
    agrees = exact.argmax(1) == estimate.argmax(1)
    return {
        "correlation": float(np.corrcoef(exact.ravel(), estimate.ravel())[0, 1]),
        "error": float(np.sqrt(np.mean((scale * estimate - exact) ** 2)) / exact.std()),
        "greedy_agreement": float(agrees[clear].mean()) if clear.any() else float("nan"),
        "clear_states": float(clear.mean()),
    }


def tabular_values(mdp: FiniteMDP, transitions: Transitions, ends: str = "ours") -> Floats:
    """Estimate Q from the log by counting, without a network, (S, A).

    Every pair of a transition and a state k steps later counts ``gamma^(k-1)`` (and so does every absorbed
    future, with reward 0), normalised over the pairs of each (s, a).

    Args:
        mdp: provides the rewards and the discount.
        transitions: the log.
        ends: treatment of episode ends. ``ours``: see SegmentSampler. ``uniform anchors``: the paper's, k is
            truncated and renormalised per anchor. ``no absorbing state``: the same, with terminations treated
            as timeouts. ``clamped``: offsets past the end count for the last state.
    """
    index = torch.arange(len(transitions))
    episodes = transitions.episode_of(index)
    left = (transitions.episode_starts[episodes + 1] - index).numpy()
    rows = (index + episodes).numpy()
    states = transitions.observations.argmax(1).numpy()
    actions = transitions.actions.argmax(1).numpy()
    terminated = transitions.terminated[episodes].numpy() & (ends != "no absorbing state")
    logged = 1.0 - mdp.discount**left
    total = np.where(terminated, 1.0, logged)
    weight = 1.0 / total if ends in ("uniform anchors", "no absorbing state") else np.ones(len(index))
    if ends == "clamped":
        total = np.ones(len(index))
    expected, mass = np.zeros((2, mdp.states, mdp.actions))
    at = (states[rows], actions)
    np.add.at(mass, at, weight * total)
    for k in range(1, int(left.max()) + 1):
        reach = left >= k
        share = (1.0 - mdp.discount) * mdp.discount ** (k - 1) * weight
        reward = share[reach] * mdp.reward[states[rows[reach] + k]]
        np.add.at(expected, (at[0][reach], at[1][reach]), reward)
    if ends == "clamped":
        np.add.at(expected, at, mdp.discount**left * mdp.reward[states[rows + left]])
    result: Floats = expected / np.maximum(mass, 1e-12) / (1.0 - mdp.discount)
    return result


def noise_level(mdp: FiniteMDP, transitions: Transitions) -> float:
    """Root mean square error of counting on the same log, the uncertainty of the data for any method."""
    alive = ~mdp.terminal
    return float(np.sqrt(np.mean((tabular_values(mdp, transitions)[alive] - mdp.q()[alive]) ** 2)))


def one_critic(job: tuple[str, str, int, int, int]) -> list[dict[str, Any]]:
    """Train one critic on one log and score all its readouts."""
    case_name, loss, seed, transitions_wanted, steps = job
    torch.set_num_threads(1)
    logging.getLogger("lightning").setLevel(logging.ERROR)
    case = cases(transitions_wanted)[case_name]
    transitions, rewards = case.log(seed)
    noise = noise_level(case.mdp, transitions)
    if loss == "without absorbing state":
        ends = transitions.terminated
        transitions = replace(transitions, terminated=torch.zeros_like(ends), truncated=torch.ones_like(ends))
    split = split_episodes(transitions, 0.05, seed)
    data = EpisodeData(transitions, split, identity_normalisation(transitions), rewards)
    settings = parameters(steps, **LOSSES.get(loss, {}))
    moving = None
    if loss == DEFAULT_LOSS:
        moving = MovingFeatures(
            rewards.rewards, features=FEATURES, size=settings.representation_size,
            temperature=settings.temperature, decay=0.99, seed=seed,
        )  # fmt: skip
    critic = train_dynamics(data, settings, seed, observer=moving).critic.requires_grad_(False)
    rows = []
    for name, readout in readouts(critic, data, moving).items():
        start = time.perf_counter()
        values = q_table(case.mdp, QFunction(critic, readout))
        micros = (time.perf_counter() - start) / values.size * 1e6
        rows.append(
            {
                "mdp": case_name, "loss": loss, "readout": name, "seed": seed, "noise": noise,
                "microseconds": micros, "values": values.tolist(), **score(case.mdp, values, noise),
            }
        )  # fmt: skip
    return rows


def summarise(rows: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Mean over MDPs and seeds with a 95 % interval, in which seeds are random and MDPs are fixed."""
    scores = ["correlation", "error", "greedy_agreement"]
    out = []
    for key, part in rows.groupby(by, sort=False):
        entry: dict[str, Any] = dict(zip(by, key if isinstance(key, tuple) else (key,), strict=True))
        for name in scores:
            cells = part.groupby("mdp")[name]
            seeds, mdps = int(cells.count().min()), len(cells)
            entry[name] = cells.mean().mean()
            if seeds > 1:
                error = np.sqrt((cells.var() / seeds).sum()) / mdps
                entry[f"{name}_ci"] = float(stats.t.ppf(0.975, mdps * (seeds - 1)) * error)
        out.append(entry)
    return pd.DataFrame(out)


def plot(rows: pd.DataFrame, table: pd.DataFrame, transitions: int) -> Figure:
    """Plot default against exact values for each MDP, and the correlation of every loss and readout."""
    figure = Figure(figsize=(15, 9), layout="constrained")
    grid = figure.add_gridspec(2, 4, height_ratios=[1, 1.25])
    for column, (name, case) in enumerate(cases(transitions).items()):
        axis = figure.add_subplot(grid[0, column])
        exact = case.mdp.q()[~case.mdp.terminal].ravel()
        chosen = rows[(rows["mdp"] == name) & (rows["readout"] == DEFAULT_READOUT)]
        for loss, colour in ((DEFAULT_LOSS, "#1b6ca8"), ("without absorbing state", "#b3423a")):
            part = chosen[chosen["loss"] == loss]
            if len(part):
                values = np.array(part["values"].iloc[0])[~case.mdp.terminal].ravel()
                axis.scatter(exact, values, s=12, color=colour, label=loss)
        span = [exact.min(), exact.max()]
        axis.plot(span, span, ":", color="black", lw=1)
        axis.set(title=name, xlabel="exact Q", ylabel="CVL's Q")
        axis.legend(frameon=False, fontsize=8)
    axis = figure.add_subplot(grid[1, :])
    matrix = table.pivot_table(index="loss", columns="readout", values="correlation", sort=False)
    image = axis.imshow(matrix.to_numpy(), vmin=0.5, vmax=1.0, cmap="viridis", aspect="auto")
    axis.set_xticks(range(matrix.shape[1]), list(matrix.columns), rotation=25, ha="right", fontsize=8)
    axis.set_yticks(range(matrix.shape[0]), list(matrix.index), fontsize=8)
    for (i, j), value in np.ndenumerate(matrix.to_numpy()):
        if np.isfinite(value):
            axis.text(
                j,
                i,
                f"{value:.3f}",
                ha="center",
                va="center",
                fontsize=8,
                color="white" if value < 0.85 else "black",
            )
    axis.set_title("Correlation with the exact Q, mean over MDPs and seeds")
    figure.colorbar(image, ax=axis)
    return figure


def ends_table(transitions: int, seeds: int) -> pd.DataFrame:
    """Table of the effect of each treatment of episode ends on Q, by counting, without training."""
    rows = []
    for name, case in cases(transitions).items():
        if name not in ("grid with terminal states", "grid with timeouts"):
            continue
        for seed in range(seeds):
            log, _ = case.log(seed)
            noise = noise_level(case.mdp, log)
            for ends in ("ours", "uniform anchors", "clamped", "no absorbing state"):
                values = tabular_values(case.mdp, log, ends)
                rows.append({"mdp": name, "ends": ends, "seed": seed, **score(case.mdp, values, noise)})
    return pd.concat(
        [summarise(part, ["mdp", "ends"]) for _, part in pd.DataFrame(rows).groupby("mdp", sort=False)]
    )


def run(transitions: int, seeds: int, steps: int, workers: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Run all critics and readouts; return all rows, and the means."""
    jobs = [
        (case, loss, seed, transitions, steps)
        for seed in range(seeds)
        for case in cases(transitions)
        for loss in [*LOSSES, *(["without absorbing state"] if "terminal" in case else [])]
    ]
    if workers == 1:
        results = [one_critic(job) for job in jobs]
    else:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            results = list(pool.map(one_critic, jobs))
    rows = pd.DataFrame([row for result in results for row in result])
    return rows, summarise(rows[rows["loss"] != "without absorbing state"], ["loss", "readout"])


def main() -> None:
    """Run everything, print and save the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--transitions", type=int, default=200_000, help="logged in each MDP")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2000, help="of contrastive training")
    parser.add_argument("--workers", type=int, default=available_cores())
    arguments = parser.parse_args()
    start = time.perf_counter()
    rows, table = run(arguments.transitions, arguments.seeds, arguments.steps, arguments.workers)
    ends = ends_table(arguments.transitions, arguments.seeds)
    terminal = rows[(rows["mdp"] == "grid with terminal states") & (rows["readout"] == DEFAULT_READOUT)]
    absorbing = summarise(
        terminal[terminal["loss"].isin([DEFAULT_LOSS, "without absorbing state"])], ["loss"]
    )
    by_mdp = summarise(rows[(rows["loss"] == DEFAULT_LOSS) & (rows["readout"] == DEFAULT_READOUT)], ["mdp"])
    noise = rows.groupby("mdp", sort=False)[["noise", "clear_states"]].mean().reset_index()
    write_record(
        RESULTS / "truth.json",
        seconds=time.perf_counter() - start,
        table=table.to_dict("records"),
        default_by_mdp=by_mdp.to_dict("records"),
        absorbing_state=absorbing.to_dict("records"),
        ends=ends.to_dict("records"),
        noise=noise.to_dict("records"),
    )
    plot(rows, table, arguments.transitions).savefig(RESULTS / "truth.png", dpi=90)
    print("\nLosses and readouts, mean over the MDPs\n\n" + markdown(table))  # noqa: T201
    print("\nThe default on each MDP\n\n" + markdown(by_mdp))  # noqa: T201
    print("\nTerminal states, with and without the absorbing state\n\n" + markdown(absorbing))  # noqa: T201
    print("\nEnds of episodes, by counting alone\n\n" + markdown(ends))  # noqa: T201
    print("\nNoise level and share of states above it\n\n" + markdown(noise))  # noqa: T201
    default = table[(table["loss"] == DEFAULT_LOSS) & (table["readout"] == DEFAULT_READOUT)].iloc[0]
    correlation, agreement = default["correlation"], default["greedy_agreement"]
    print(f"\ndefault: correlation={correlation:.4f} greedy_agreement={agreement:.3f}")  # noqa: T201


if __name__ == "__main__":
    main()
