"""Comparison of CVL's Q with the exact Q of random and hand-made worlds (docs/truth.md).

Families of worlds, their recipes and their seeds are in ``benchmarks.worlds``. In every cell, CVL stands beside a
regression on returns-to-go and, in finite worlds, beside counting and beside the values of the counted model. The last
line of the output has the results of the default settings.

    python -m benchmarks.truth                    the final table, two seeds (at most 15 minutes on two cores)
    python -m benchmarks.truth --full             three seeds, the first version, losses, readouts, ends, curves
    python -m benchmarks.truth --curves           only the curves over training steps and sizes of the log
    python -m benchmarks.truth --study            the study's families, for choosing and tuning
    python -m benchmarks.truth --garnet '{"states": 80, "actions": 3, "branching": 2, "discount": 0.9,
        "rewards": "signed"}' --transitions 50000                         any other world of the recipe
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Generator

from benchmarks.common import RESULTS, half_width, markdown, record_path, write_record
from benchmarks.regression import regress_returns
from benchmarks.worlds import (
    CLEAR,
    EARLIER,
    FINAL,
    FIRST_SEED,
    STUDY,
    Family,
    Floats,
    Queries,
    queries,
)
from cvl_pipeline.api import EpisodeData, QFunction, train_critic
from cvl_pipeline.dynamics.module import train_dynamics
from cvl_pipeline.dynamics.parameters import DynamicsParameters
from cvl_pipeline.episodes.container import Transitions
from cvl_pipeline.episodes.preparation import fit_normalisation, split_episodes
from cvl_pipeline.networks.critic import ContrastiveCritic
from cvl_pipeline.readout.action_values import ActionValues
from cvl_pipeline.readout.build import build_readout, exact_readout, horizon_quantiles
from cvl_pipeline.readout.moving_average import MovingFeatures
from cvl_pipeline.readout.parameters import READOUTS
from cvl_pipeline.readout.readouts import Readout, feature_readout
from cvl_pipeline.readout.references import all_references, compress, draw_references
from cvl_pipeline.testing.builders import identity_normalisation
from cvl_pipeline.testing.finite_mdp import FiniteMDP, garnet
from cvl_pipeline.testing.linear_gaussian import linear_gaussian
from cvl_pipeline.training.devices import available_cores

DEFAULT, REWARD_FREE, REGRESSION = "CVL", "CVL, reward-free", "regression"
FIRST_VERSION = "CVL, first version"
COUNTING, MODEL = "counting", "counted model"
STEPS = 3000
"""Gradient steps of the pipeline's critic by default. The regression takes as many; CVL's own takes 2500 more."""
SMALL = {"hidden": (64, 64), "representation_size": 32}
"""Networks of the tables of losses and readouts, as small as their worlds."""
STATES = 32_768
"""Reference states of the default: enough for logs of 10^6 steps, and no more than fit the time."""
HORIZONS = 16
FEATURES = 1024
REFERENCES = 256
SUMMED = 8192  # references summed by the features; about 30 states need no more


def critic_discount(discount: float) -> float:
    """The default's rule for the critic's discount: the square root of the values' horizon, 0.83 for 0.97."""
    return 1.0 - math.sqrt(1.0 - discount)


@dataclass(frozen=True)
class Cell:
    """A world and one log of it."""

    family: Family
    seed: int
    transitions: int | None = None

    def data(self) -> EpisodeData:
        """Simulate the log, and hold out a twentieth of its episodes."""
        transitions, rewards = self.family.log(self.seed, self.transitions)
        split = split_episodes(transitions, 0.05, self.seed)
        # One-hot vectors stay as they are; other observations are standardised, as in the pipeline.
        one_hot = isinstance(self.family.world(self.seed), FiniteMDP)
        normalisation = (
            identity_normalisation(transitions) if one_hot else fit_normalisation(transitions, split, 1e-3)
        )
        return EpisodeData(transitions, split, normalisation, rewards)


def dynamics(steps: int, values_discount: float, **changes: Any) -> DynamicsParameters:
    """The pipeline's defaults for values of a discount, with changes."""
    training = {"steps": steps, "validation_interval": steps, "accelerator": "cpu"}
    values = {"discount": critic_discount(values_discount), "validation_batches": 1, "training": training}
    return DynamicsParameters.model_validate(values | changes)


def estimates(
    cell: Cell,
    data: EpisodeData,
    methods: list[str],
    steps: int,
    changes: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Floats]:
    """Values of all queries by each method, (N, C) each; ``changes`` are those of CVL's critic."""
    world = cell.family.world(cell.seed)
    assert data.rewards is not None
    asked, gamma, seed = queries(world), world.discount, cell.seed
    found: dict[str, Floats] = {}

    def values(q: QFunction) -> Floats:
        return q_values(asked, q)

    if DEFAULT in methods:
        parameters = READOUTS.validate({"method": "exact", "references": STATES, "discount": gamma})
        critic = train_critic(data, dynamics(steps, gamma, **changes), seed).critic.requires_grad_(False)
        readout = build_readout(critic, data.transitions, data.rewards, data.split, parameters, seed)  # type: ignore[arg-type]
        found[DEFAULT] = values(QFunction(critic, readout))
        found[REWARD_FREE] = values(QFunction(critic, readout.alone))
    if FIRST_VERSION in methods:
        critic = train_critic(data, dynamics(steps, gamma, discount=gamma), seed).critic.requires_grad_(False)
        everything = all_references(critic, data.transitions, data.rewards, data.split.train)
        found[FIRST_VERSION] = values(QFunction(critic, exact_readout(critic, everything, NONE, gamma)))
    if REGRESSION in methods:
        found[REGRESSION] = values(regress_returns(data, gamma, steps, (256, 256), seed))
    if isinstance(world, FiniteMDP):
        alive = ~world.terminal
        if COUNTING in methods:
            found[COUNTING] = tabular_values(world, data.transitions)[alive]
        if MODEL in methods:
            found[MODEL] = model_values(world, data.transitions)[alive]
    return found


NONE = torch.zeros(0, dtype=torch.int64)
"""No horizons: the critic is not conditioned on the offset."""


def q_values(asked: Queries, q: ActionValues) -> Floats:
    """Q of all queries, (N, C)."""
    count, choices = asked.exact.shape
    observations = asked.observations.repeat_interleave(choices, dim=0)
    values, _ = q.in_batches(observations, asked.actions.reshape(count * choices, -1))
    return values.reshape(count, choices).double().numpy()


def score(exact: Floats, estimate: Floats, noise: float) -> dict[str, float]:
    """Compare values with the exact ones, (N, C) each: C actions at each of N states.

    Returns:
        ``correlation``: Pearson's, over all pairs. ``within``: the same after the mean of each state is taken off.
        ``error``: root mean square difference after the best scaling of the values, divided by the exact values'
        standard deviation. ``clear_states``: share of states whose gap between best and second-best action exceeds
        ``noise``. ``greedy_agreement``: share of those states with the right best action (NaN if there are none).
    """
    scale = (exact * estimate).sum() / max((estimate * estimate).sum(), 1e-300)
    ordered = np.sort(exact, axis=1)
    clear = ordered[:, -1] - ordered[:, -2] > noise
    agrees = exact.argmax(1) == estimate.argmax(1)
    inside = [values - values.mean(1, keepdims=True) for values in (exact, estimate)]
    return {
        "correlation": _correlation(exact, estimate),
        "within": _correlation(*inside),
        "error": float(np.sqrt(np.mean((scale * estimate - exact) ** 2)) / exact.std()),
        "greedy_agreement": float(agrees[clear].mean()) if clear.any() else float("nan"),
        "clear_states": float(clear.mean()),
    }


def _correlation(first: Floats, second: Floats) -> float:
    """Pearson's correlation; 0 if one side is constant, which knows nothing of the other."""
    if first.std() < 1e-12 or second.std() < 1e-12:
        return 0.0
    return float(np.corrcoef(first.ravel(), second.ravel())[0, 1])


def tabular_values(mdp: FiniteMDP, transitions: Transitions, ends: str = "ours") -> Floats:
    """Estimate Q from the log by counting, without a network, (S, A).

    Every pair of a transition and a state k steps later counts ``gamma^(k-1)`` (and so does every absorbed
    future, with reward 0), normalised over the pairs of each (s, a). A pair that was never logged has the mean of all.

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
    mean = expected.sum() / mass.sum()
    result: Floats = np.where(mass > 0, expected / np.maximum(mass, 1e-12), mean) / (1.0 - mdp.discount)
    return result


def model_values(mdp: FiniteMDP, transitions: Transitions) -> Floats:
    """Q of the MDP and policy that the log's counts make most likely, (S, A): the best a table can do with the log.

    Rewards and terminal states are known. A pair that was never logged leads anywhere, as often as the log does.
    """
    index = torch.arange(len(transitions))
    rows = index + transitions.episode_of(index)
    states = transitions.observations.argmax(1)
    counts = np.zeros((mdp.states, mdp.actions, mdp.states))
    np.add.at(
        counts, (states[rows].numpy(), transitions.actions.argmax(1).numpy(), states[rows + 1].numpy()), 1
    )
    visits = counts.sum(-1)
    step = np.where(
        visits[..., None] > 0, counts / np.maximum(visits, 1)[..., None], counts.sum((0, 1)) / counts.sum()
    )
    of_state = visits.sum(1, keepdims=True)
    policy = np.where(of_state > 0, visits / np.maximum(of_state, 1), 1.0 / mdp.actions)
    return replace(mdp, step=step, policy=policy).q()


def noise_level(cell: Cell, transitions: Transitions) -> float:
    """Gap above which a state counts as clear.

    In a finite world it is the root mean square error of counting on the same log, the uncertainty of the data for any
    method. In a continuous world it is a tenth of the standard deviation of Q.
    """
    world = cell.family.world(cell.seed)
    if not isinstance(world, FiniteMDP):
        return CLEAR * float(queries(world).exact.std())
    alive = ~world.terminal
    return float(np.sqrt(np.mean((tabular_values(world, transitions)[alive] - world.q()[alive]) ** 2)))


CellJob = tuple[Cell, list[str], int, dict[str, Any]]


def one_cell(job: CellJob) -> list[dict[str, Any]]:
    """Score all methods in one cell: the cell, the methods, the steps, and changes of CVL's critic."""
    cell, methods, steps, changes = job
    torch.set_num_threads(1)
    logging.getLogger("lightning").setLevel(logging.ERROR)
    start = time.perf_counter()
    exact = queries(cell.family.world(cell.seed)).exact
    data = cell.data()
    noise = noise_level(cell, data.transitions)
    shared = {
        "family": cell.family.name, "seed": cell.seed, "noise": noise, "steps": steps,
        "transitions": cell.transitions or cell.family.transitions,
    }  # fmt: skip
    found = estimates(cell, data, methods, steps, changes)
    print(f"{cell.family.name}, seed {cell.seed}: {time.perf_counter() - start:.0f} s", flush=True)  # noqa: T201
    return [shared | {"method": name, **score(exact, values, noise)} for name, values in found.items()]


def in_parallel(work: Any, jobs: list[Any], workers: int) -> pd.DataFrame:
    """Run jobs, largest log first, and collect their rows in one table."""
    if workers == 1:
        results = [work(job) for job in jobs]
    else:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            results = list(pool.map(work, jobs))
    return pd.DataFrame([row for result in results for row in result])


SCORES = ["correlation", "within", "greedy_agreement"]


def interval(values: pd.Series) -> float:
    """Half of the 95 % interval of a mean over seeds, by Student's t; NaN for one seed."""
    return float(half_width(values.sem(), values.count() - 1))


def by_family(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean of each family and method over seeds, with intervals."""
    out = []
    for (family, method), part in rows.groupby(["family", "method"], sort=False):
        entry: dict[str, Any] = {"family": family, "method": method}
        for name in SCORES:
            entry |= {name: part[name].mean(), f"{name}_ci": interval(part[name])}
        out.append(entry)
    return pd.DataFrame(out)


def summary(rows: pd.DataFrame, method: str) -> dict[str, float]:
    """The numbers of the last line for one method.

    Returns:
        ``correlation``: mean over families; ``worst``: of the lowest family; ``greedy_agreement``: mean over families;
        ``beside_regression``: lowest difference of a family's correlation from that of the regression.
    """
    means = rows.groupby(["method", "family"], sort=False)[SCORES].mean()
    own, beside = means.loc[method], means.loc[REGRESSION]
    return {
        "correlation": float(own["correlation"].mean()),
        "worst": float(own["correlation"].min()),
        "greedy_agreement": float(own["greedy_agreement"].mean()),
        "beside_regression": float((own["correlation"] - beside["correlation"]).min()),
    }


def last_line(numbers: dict[str, float], name: str) -> str:
    """One line of the numbers of ``summary``."""
    return f"{name}: " + " ".join(
        f"{key}={value:{'+' if key == 'beside_regression' else ''}.4f}" for key, value in numbers.items()
    )


def wide(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """One row per family and one column per method, with intervals where there are any."""
    cells = table.assign(
        cell=[
            "" if math.isnan(value) else f"{value:.3f}" + ("" if math.isnan(ci) else f" ± {ci:.3f}")
            for value, ci in zip(table[column], table[f"{column}_ci"], strict=True)
        ]
    )
    pivot = cells.pivot_table(index="family", columns="method", values="cell", sort=False, aggfunc="first")
    return pivot.fillna("").reset_index().rename_axis(columns=None)


# What only --full runs.

LOSSES: dict[str, dict[str, Any]] = {
    "symmetric_infonce": {},
    "symmetric_infonce, discount of the values": {"discount": 0.9},
    "symmetric_infonce, learned temperature": {"learned_temperature": True},
    "symmetric_infonce, raw": {"representation": "raw", "temperature": 1.0},
    "symmetric_infonce, horizon-conditioned": {"horizon_conditioning": True, "discount": 0.9},
    "infonce": {"loss": "infonce"},
    "infonce, logsumexp penalty 0.01": {"loss": {"name": "infonce", "logsumexp_penalty": 0.01}},
    "nce": {"loss": "nce"},
    "nce, raw": {"loss": "nce", "representation": "raw", "temperature": 1.0},
}
"""Losses and critics, compared on the four worlds of the first version, whose discount is 0.9."""
EXACT = "exact, self-normalised"


def readouts(critic: ContrastiveCritic, data: EpisodeData, gamma: float) -> dict[str, Readout]:
    """Build all readouts of a critic, none of them regressed."""
    assert data.rewards is not None
    generator = Generator().manual_seed(0)
    conditioned = critic.shape.horizon_conditioning
    everything = all_references(
        critic, data.transitions, data.rewards, data.split.train, None if conditioned else gamma
    )
    summed = draw_references(everything, SUMMED, False, generator)
    temperature = critic.temperature.detach()
    horizons = horizon_quantiles(gamma, HORIZONS if conditioned else 0)

    def exact(references: Any, self_normalised: bool = True) -> Readout:
        return exact_readout(critic, references, horizons, gamma, self_normalised)

    by_name = {
        EXACT: exact(everything),
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
                temperature=temperature, horizons=horizons, discount=gamma, self_normalised=normalised,
            )  # fmt: skip
    return by_name


def one_critic(job: tuple[Cell, str, int]) -> list[dict[str, Any]]:
    """Train a small critic with one loss on one log and score all its readouts."""
    cell, loss, steps = job
    torch.set_num_threads(1)
    logging.getLogger("lightning").setLevel(logging.ERROR)
    data, world = cell.data(), cell.family.world(cell.seed)
    assert data.rewards is not None
    noise, asked, gamma = noise_level(cell, data.transitions), queries(world), world.discount
    if loss == "without absorbing state":
        ends = data.transitions.terminated
        data = replace(
            data,
            transitions=replace(
                data.transitions, terminated=torch.zeros_like(ends), truncated=torch.ones_like(ends)
            ),
        )
    parameters = dynamics(steps, gamma, **SMALL, **LOSSES.get(loss, {}))
    moving = None
    if loss == "symmetric_infonce, discount of the values":
        assert data.rewards is not None
        moving = MovingFeatures(
            data.rewards.rewards, features=FEATURES, size=parameters.representation_size,
            temperature=parameters.temperature, decay=0.99, seed=cell.seed,
        )  # fmt: skip
    critic = train_dynamics(data, parameters, cell.seed, observer=moving).critic.requires_grad_(False)
    by_name = readouts(critic, data, gamma)
    if moving is not None:
        by_name["random_fourier, moving average"] = moving.readout(critic)
    shared = {"family": cell.family.name, "loss": loss, "seed": cell.seed}
    return [
        shared | {"readout": name, **score(asked.exact, q_values(asked, QFunction(critic, readout)), noise)}
        for name, readout in by_name.items()
    ]


def over_families(rows: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Mean over families and seeds with a 95 % interval, in which seeds are random and families are fixed."""
    out = []
    for key, part in rows.groupby(by, sort=False):
        entry: dict[str, Any] = dict(zip(by, key if isinstance(key, tuple) else (key,), strict=True))
        for name in ("correlation", "error", "greedy_agreement"):
            cells = part.groupby("family")[name]
            seeds, count = int(cells.count().min()), len(cells)
            entry[name] = cells.mean().mean()
            if seeds > 1:
                error = np.sqrt((cells.var() / seeds).sum()) / count
                entry[f"{name}_ci"] = float(half_width(error, count * (seeds - 1)))
        out.append(entry)
    return pd.DataFrame(out)


def ends_table(seeds: list[int]) -> pd.DataFrame:
    """Table of the effect of each treatment of episode ends on Q, by counting, without training."""
    rows = []
    for name in ("grid with terminal states", "grid with timeouts"):
        for seed in seeds:
            cell = Cell(EARLIER[name], seed)
            transitions, world = cell.data().transitions, cell.family.world(seed)
            assert isinstance(world, FiniteMDP)
            noise, alive = noise_level(cell, transitions), ~world.terminal
            for ends in ("ours", "uniform anchors", "clamped", "no absorbing state"):
                values = tabular_values(world, transitions, ends)[alive]
                scores = score(world.q()[alive], values, noise)
                rows.append({"family": name, "ends": ends, "seed": seed, **scores})
    return pd.concat(
        [
            over_families(part, ["family", "ends"])
            for _, part in pd.DataFrame(rows).groupby("family", sort=False)
        ]
    )


CURVES = (
    "30 states, log of 10^3", "200 states, terminal, skewed", "1000 states", "linear, 16", "linear, 64",
)  # fmt: skip
"""Families in which the default or its reward-free part misses its aim."""
CURVE_STEPS = (750, 1500, 6000, 12_000)
CURVE_LOGS = (1000, 10_000, 100_000, 1_000_000)


def curve_jobs(seed: int, steps: int) -> list[CellJob]:
    """Cells along training steps and sizes of the log; those of the default have both."""
    methods = [DEFAULT, REGRESSION, COUNTING, MODEL]
    jobs: list[CellJob] = []
    for family in (FINAL[name] for name in CURVES):
        # 10^3 steps of 1000 states say nothing, and a one-hot log of 10^6 would take 4 GB.
        sizes = CURVE_LOGS[1:-1] if family.name == "1000 states" else CURVE_LOGS
        logs = [size for size in sizes if size != family.transitions]
        jobs += [(Cell(family, seed), methods, count, {}) for count in (*CURVE_STEPS, steps)]
        jobs += [(Cell(family, seed, size), methods, steps, {}) for size in logs]
    return sorted(jobs, key=lambda job: -(job[2] + (job[0].transitions or job[0].family.transitions) // 100))


def curves(seed: int, arguments: argparse.Namespace) -> pd.DataFrame:
    """Run the curves, print them, and return their rows."""
    rows = in_parallel(one_cell, curve_jobs(seed, arguments.steps), arguments.workers)
    columns = ["family", "transitions", "steps"]
    shown = rows.pivot_table(index=columns, columns="method", values="correlation").reset_index()
    shown = shown.sort_values(
        columns, key=lambda part: part.map(CURVES.index) if part.name == "family" else part
    )
    methods = list(dict.fromkeys(rows["method"]))
    shown[methods] = shown[methods].map(lambda value: "" if math.isnan(value) else f"{value:.3f}")
    shown = shown[[*columns, *methods]].astype({"transitions": str, "steps": str})
    print("\nAlong training steps and sizes of the log\n\n" + markdown(shown))  # noqa: T201
    return rows[["family", "transitions", "steps", "method", "correlation", "within", "greedy_agreement"]]


def plot_curves(rows: pd.DataFrame, steps: int) -> Figure:
    """Plot correlations along training steps, above, and sizes of the log, below; one column per family."""
    families = list(dict.fromkeys(rows["family"]))
    figure = Figure(figsize=(2.6 * len(families), 5.4), layout="constrained")
    axes = figure.subplots(2, len(families), sharey=True, squeeze=False)
    for column, family in enumerate(families):
        here = rows[rows["family"] == family]
        for axis, along, fixed in (
            (axes[0, column], "steps", "transitions"),
            (axes[1, column], "transitions", "steps"),
        ):
            default = FINAL[family].transitions if fixed == "transitions" else steps
            for method, part in here[here[fixed] == default].groupby("method", sort=False):
                marker, colour = STYLES[str(method)]
                part = part.sort_values(along)
                axis.plot(
                    part[along], part["correlation"], marker=marker, ms=4, color=colour, label=str(method)
                )
            axis.set(xscale="log", xlabel="gradient steps" if along == "steps" else "logged steps")
            axis.axhline(0.95, ls=":", color="black", lw=1)
            axis.grid(alpha=0.3)
        axes[0, column].set_title(family, fontsize=9)
    for axis in axes[:, 0]:
        axis.set_ylabel("correlation with the exact Q")
    axes[0, 0].legend(fontsize=7)
    return figure


STYLES = {
    DEFAULT: ("o", "#1b6ca8"), REWARD_FREE: ("s", "#7fbce6"), REGRESSION: ("^", "#b3423a"),
    FIRST_VERSION: ("X", "#777777"), COUNTING: ("d", "#999999"), MODEL: ("|", "#222222"),
}  # fmt: skip
"""Marker and colour of each method."""


def plot(rows: pd.DataFrame) -> Figure:
    """Plot the correlation of every method in every family: a small mark per seed, a large one for their mean."""
    families = list(dict.fromkeys(rows["family"]))
    figure = Figure(figsize=(11, 0.42 * len(families) + 1.6), layout="constrained")
    axis = figure.add_subplot()
    lanes = {method: 0.12 * (lane - 2) for lane, method in enumerate(STYLES)}
    for method, part in rows.groupby("method", sort=False):
        marker, colour = STYLES[str(method)]
        places = part["family"].map(families.index) + lanes[str(method)]
        axis.scatter(part["correlation"], places, s=10, marker=marker, color=colour, alpha=0.6)
        means = part.groupby("family", sort=False)["correlation"].mean()
        centres = [families.index(name) + lanes[str(method)] for name in means.index]
        axis.scatter(means, centres, s=55, marker=marker, color=colour, label=str(method))
    axis.set_yticks(range(len(families)), families)
    axis.invert_yaxis()
    axis.axvline(0.95, ls=":", color="black", lw=1)
    axis.set(
        xlabel="correlation with the exact Q", title="Small: each seed's world. Large: their mean.",
        xlim=(max(0.0, rows["correlation"].min() - 0.02), 1.005),
    )  # fmt: skip
    axis.grid(alpha=0.3)
    axis.legend(frameon=True, fontsize=8, loc="center left")
    return figure


def make_parser() -> argparse.ArgumentParser:
    """Parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--full", action="store_true", help="everything that docs/truth.md shows; hours")
    parser.add_argument("--curves", action="store_true", help="only the curves over training steps and logs")
    parser.add_argument("--study", action="store_true", help="the study's families instead of the final ones")
    parser.add_argument("--families", nargs="+", help="names of families; default: all")
    parser.add_argument("--garnet", type=json.loads, help="settings of a random MDP, instead of the families")
    parser.add_argument("--linear", type=json.loads, help="settings of a linear-Gaussian world, likewise")
    parser.add_argument("--transitions", type=int, default=100_000, help="logged, with --garnet or --linear")
    parser.add_argument("--seeds", type=int, help="worlds and logs of each family; default 2, with --full 3")
    parser.add_argument("--steps", type=int, default=STEPS, help="of contrastive training, and of regression")
    parser.add_argument("--critic", type=json.loads, default={}, help="changes of CVL's critic, for a study")
    parser.add_argument("--workers", type=int, default=available_cores())
    return parser


def chosen_families(arguments: argparse.Namespace) -> dict[str, Family]:
    """The families that the command line names."""
    if arguments.garnet or arguments.linear:
        recipes = (("garnet", garnet, arguments.garnet), ("linear", linear_gaussian, arguments.linear))
        return {
            name: Family(name, make, settings, arguments.transitions)
            for name, make, settings in recipes
            if settings
        }
    families = STUDY if arguments.study else FINAL
    chosen = arguments.families or list(families)
    if unknown := [name for name in chosen if name not in families]:
        sys.exit(f"--families: no family '{unknown[0]}'; known: {', '.join(families)}")
    return {name: families[name] for name in chosen}


def main() -> None:
    """Run everything, print and save the tables."""
    parser = make_parser()
    arguments = parser.parse_args()
    start = time.perf_counter()
    if arguments.curves or arguments.full:
        along = curves(FIRST_SEED["final"], arguments)
        path = record_path(RESULTS / "truth_curves.json", parser, arguments, *KINDS)
        write_record(path, seconds=time.perf_counter() - start, rows=along.to_dict("records"))
        plot_curves(along, arguments.steps).savefig(path.with_suffix(".png"), dpi=90)
        start = time.perf_counter()
    if arguments.curves:
        return
    families = chosen_families(arguments)
    first = FIRST_SEED["study" if arguments.study else "final"]
    seeds = [first + number for number in range(arguments.seeds or (3 if arguments.full else 2))]
    methods = [DEFAULT, REGRESSION, COUNTING, MODEL, *([FIRST_VERSION] if arguments.full else [])]
    largest = sorted(families.values(), key=lambda family: -family.transitions)
    jobs = [
        (Cell(family, seed), methods, arguments.steps, arguments.critic)
        for family in largest
        for seed in seeds
    ]
    rows = in_parallel(one_cell, jobs, arguments.workers)
    order = {name: place for place, name in enumerate(families)}
    rows = rows.sort_values(["family", "seed"], key=lambda part: part.map(order).fillna(part), kind="stable")
    table = by_family(rows)
    lines = {name: summary(rows, method) for name, method in LINES.items() if method in set(rows["method"])}
    record: dict[str, Any] = {"rows": rows.to_dict("records"), "summary": lines}
    print("\nCorrelation with the exact Q\n\n" + markdown(wide(table, "correlation")))  # noqa: T201
    print("\nCorrelation within states\n\n" + markdown(wide(table, "within")))  # noqa: T201
    print("\nGreedy agreement\n\n" + markdown(wide(table, "greedy_agreement")))  # noqa: T201
    if arguments.full:
        record |= full(seeds, arguments)
    if families == FINAL and not arguments.critic:
        name = "truth_full" if arguments.full else "truth"
        path = record_path(RESULTS / f"{name}.json", parser, arguments, *KINDS)
        write_record(path, seconds=time.perf_counter() - start, seeds=seeds, **record)
        plot(rows).savefig(path.with_suffix(".png"), dpi=90)
    print()  # noqa: T201
    for name, numbers in reversed(lines.items()):
        print(last_line(numbers, name))  # noqa: T201


KINDS = ("full", "curves")
"""Options whose results have a record of their own."""
LINES = {"default": DEFAULT, "reward-free": REWARD_FREE, "first version": FIRST_VERSION}


def full(seeds: list[int], arguments: argparse.Namespace) -> dict[str, Any]:
    """Run losses, readouts and ends of episodes; print and return their tables."""
    steps = min(arguments.steps, 2000)
    jobs = [
        (Cell(family, seed), loss, steps)
        for seed in seeds
        for name, family in EARLIER.items()
        for loss in [*LOSSES, *(["without absorbing state"] if "terminal" in name else [])]
    ]
    rows = in_parallel(one_critic, jobs, arguments.workers)
    table = over_families(rows[rows["loss"] != "without absorbing state"], ["loss", "readout"])
    terminal = rows[(rows["family"] == "grid with terminal states") & (rows["readout"] == EXACT)]
    chosen = terminal[terminal["loss"].isin(["symmetric_infonce", "without absorbing state"])]
    absorbing, ends = over_families(chosen, ["loss"]), ends_table(seeds)
    print("\nLosses and readouts on the four first worlds\n\n" + markdown(table))  # noqa: T201
    print("\nTerminal states, with and without the absorbing state\n\n" + markdown(absorbing))  # noqa: T201
    print("\nEnds of episodes, by counting alone\n\n" + markdown(ends))  # noqa: T201
    tables = {"losses": table, "absorbing_state": absorbing, "ends": ends}
    return {name: part.to_dict("records") for name, part in tables.items()}


if __name__ == "__main__":
    main()
