"""Values of every method that learns Q of the behaviour, compared with exact ones over sizes of the log.

Worlds, logs and scores are those of ``benchmarks.truth``, tried actions those of ``benchmarks.simulators``. Every
method has the same episodes and takes the same gradient steps. A cell is a world and a size of its log, or a task and a
seed. The scores of each method are written to benchmarks/results/truth_methods.json as soon as it has learned. Run the
same command again to go on; delete the file to start over.

    python -m benchmarks.truth_methods                 worlds, then simulators, then the largest logs; hours
    python -m benchmarks.truth_methods --families "linear, 16" --sizes 10000 --seeds 1 --tasks
    python -m benchmarks.truth_methods --report        only the tables and the picture of the record
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from benchmarks import simulators, truth
from benchmarks.common import RESULTS, markdown, write_record
from benchmarks.regression import regress_alone
from benchmarks.worlds import FINAL, FIRST_SEED, queries
from cvl_pipeline.api import EpisodeData, QFunction, train_critic
from cvl_pipeline.methods.base import METHODS
from cvl_pipeline.methods.one_step import OneStep, Phases
from cvl_pipeline.readout.action_values import ActionValues
from cvl_pipeline.readout.build import build_readout
from cvl_pipeline.readout.parameters import READOUTS, RegressionParameters
from cvl_pipeline.testing.finite_mdp import FiniteMDP

FAMILIES = ["30 states, sparse", "linear, 16", "200 states, terminal, skewed", "linear, 64"]
SIZES = [1_000, 10_000, 100_000, 1_000_000]
LARGE = 1_000_000
"""Size of a log from which on a cell waits until all others are finished."""
TASKS = ["reach-v3", "push-v3"]
STEPS = 7500
"""Gradient steps of a default run of CVL: 3000 of the critic, 2500 of the regression and 2000 of the policy."""
CRITIC_SHARE, REGRESSION_SHARE = 3000 / 7500, 2500 / 7500

CVL, READOUT, REGRESSION = "CVL", "readout alone", "regression alone"
ONE_STEP = ("mc_awr", "sarsa", "one_step_model")
METHOD_NAMES = (CVL, READOUT, REGRESSION, *ONE_STEP)
SCORES = ["within", "correlation", "error", "greedy_agreement"]


def regression_parameters(steps: int) -> RegressionParameters:
    """Parameters of CVL's regression with a number of steps, a fifth of them for V, as by default."""
    value_steps = max(1, round(steps / 5))
    return RegressionParameters(steps=max(1, steps - value_steps), value_steps=value_steps)


def learned_values(
    data: EpisodeData, discount: float, seed: int, steps: int = STEPS, done: Collection[str] = ()
) -> Iterator[tuple[str, ActionValues, float]]:
    """Learn Q of the behaviour by every method.

    No policy is trained, so each method takes the share of the steps that a default CVL has for Q, 5500 of 7500. The
    readout alone is the one beside CVL's regression: its critic has 3000 of these steps.

    Args:
        data: the episodes, with rewards.
        discount: gamma.
        seed: of all training.
        steps: gradient steps, those of the policy included.
        done: methods to leave out.

    Yields:
        Name of the method, its Q, and the seconds of processor time that it took.
    """
    critic_steps = max(1, round(CRITIC_SHARE * steps))
    regression_steps = max(1, round(REGRESSION_SHARE * steps))
    if not {READOUT, CVL} <= set(done):
        yield from _contrastive(data, discount, seed, critic_steps, regression_steps)
    if REGRESSION not in done:
        start = time.process_time()
        alone = regression_parameters(critic_steps + regression_steps)
        q = regress_alone(data, discount, truth.critic_discount(discount), alone, seed)
        yield REGRESSION, q, time.process_time() - start
    settings = {
        "discount": discount,
        "value_share": CRITIC_SHARE + REGRESSION_SHARE,
        "training": {"steps": steps, "validation_interval": steps, "accelerator": "cpu"},
    }
    for name in ONE_STEP:
        if name not in done:
            start = time.process_time()
            method = METHODS.create(METHODS.validate({"method": name, **settings}))
            assert isinstance(method, OneStep)
            yield name, method.learn(data, seed, Phases(None, None)), time.process_time() - start


def _contrastive(
    data: EpisodeData, discount: float, seed: int, critic_steps: int, regression_steps: int
) -> Iterator[tuple[str, ActionValues, float]]:
    """The readout alone, and with the regression."""
    assert data.rewards is not None
    start = time.process_time()
    critic = train_critic(data, truth.dynamics(critic_steps, discount), seed).critic.requires_grad_(False)
    trained = time.process_time() - start
    regression = regression_parameters(regression_steps).model_dump()
    parameters = READOUTS.validate(
        {"method": "exact", "references": truth.STATES, "discount": discount, "regression": regression}
    )
    readout = build_readout(critic, data.transitions, data.rewards, data.split, parameters, seed)  # type: ignore[arg-type]
    both = time.process_time() - start
    yield READOUT, QFunction(critic, readout.alone), trained
    yield CVL, QFunction(critic, readout), both


def discrete(data: EpisodeData) -> EpisodeData:
    """Episodes whose actions are declared one-hot, so that a clone of the behaviour is categorical."""
    return replace(data, transitions=replace(data.transitions, discrete=torch.tensor(True)))


@dataclass(frozen=True)
class World:
    """A world, and one log of it."""

    family: str
    seed: int
    transitions: int

    @property
    def place(self) -> tuple[str, int, int]:
        """Where the cell's rows are in the record."""
        return self.family, self.seed, self.transitions

    def rows(self, steps: int, done: Collection[str] = ()) -> Iterator[dict[str, Any]]:
        """Scores of every method that is not done, and of the counted model in finite worlds."""
        cell = truth.Cell(FINAL[self.family], self.seed, self.transitions)
        world, data = cell.family.world(self.seed), cell.data()
        asked, noise = queries(world), truth.noise_level(cell, data.transitions)
        if isinstance(world, FiniteMDP):
            data = discrete(data)
        if isinstance(world, FiniteMDP) and truth.MODEL not in done:
            counted = truth.model_values(world, data.transitions)[~world.terminal]
            yield {"method": truth.MODEL, **truth.score(asked.exact, counted, noise)}
        for name, q, seconds in learned_values(data, world.discount, self.seed, steps, done):
            scores = truth.score(asked.exact, truth.q_values(asked, q), noise)
            yield {"method": name, **scores, "seconds": seconds}


@dataclass(frozen=True)
class Simulated:
    """A task of a simulator, with the returns of tried actions that ``benchmarks.simulators`` keeps."""

    task: str
    seed: int

    @property
    def place(self) -> tuple[str, int, int]:
        """Where the cell's rows are in the record."""
        return self.task, self.seed, 0

    def rows(self, steps: int, done: Collection[str] = ()) -> Iterator[dict[str, Any]]:
        """Scores of every method that is not done."""
        run = simulators.Run(self.task, self.seed)
        table = pd.read_parquet(run.table)
        simulators.collect(run, workers=1)
        data = simulators.load_data(run)
        for name, q, seconds in learned_values(data, run.discount, self.seed, steps, done):
            yield {"method": name, **simulators.value_scores(q, table), "seconds": seconds}


Cell = World | Simulated


def ordered(cells: list[Cell]) -> list[Cell]:
    """Small logs before simulators before large logs; a world of every family before the second of any."""

    def key(cell: Cell) -> tuple[int, int]:
        large = isinstance(cell, World) and cell.transitions >= LARGE
        return 2 if large else int(isinstance(cell, Simulated)), cell.seed

    return sorted(cells, key=key)


def read_rows() -> list[dict[str, Any]]:
    """Rows of the methods that are finished."""
    path = RESULTS / "truth_methods.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"] if path.exists() else []
    return rows


def run_cells(cells: list[Cell], steps: int) -> list[dict[str, Any]]:
    """Run the methods that the record lacks, add each to it, and return all rows."""
    rows = read_rows()
    for cell in ordered(cells):
        name, seed, transitions = cell.place
        shared = {"name": name, "seed": seed, "transitions": transitions, "steps": steps}
        done = {row["method"] for row in rows if shared.items() <= row.items()}
        if done.issuperset(METHOD_NAMES):
            continue
        print(f"{name}, seed {seed}, {transitions or 'all'} transitions", flush=True)  # noqa: T201
        for row in cell.rows(steps, done):
            rows.append(shared | row)
            write_record(RESULTS / "truth_methods.json", rows=rows)
    return rows


def over_worlds(rows: pd.DataFrame, measure: str, against: str | None = None) -> pd.DataFrame:
    """Mean of a measure over worlds, by family, size of the log and method, with 95 % intervals.

    Args:
        rows: of ``run_cells``.
        measure: a column.
        against: a method; the measure is then the difference from this method in the same world.

    Returns:
        Columns ``name``, ``transitions``, ``method``, ``value``, ``ci``, ``worlds``.
    """
    cells = rows.pivot_table(
        index=["name", "transitions", "seed"], columns="method", values=measure, sort=False
    )
    if against is not None:
        cells = cells.sub(cells[against], axis=0).drop(columns=against)
    out = []
    for (name, transitions), part in cells.groupby(level=["name", "transitions"], sort=False):
        for method in cells.columns:
            values = part[method].dropna()
            if len(values):
                out.append(
                    {
                        "name": name, "transitions": transitions, "method": method, "value": values.mean(),
                        "ci": truth.interval(values), "worlds": len(values),
                    }
                )  # fmt: skip
    return pd.DataFrame(out)


def wide(table: pd.DataFrame, order: Callable[[str], int], sign: str = "") -> pd.DataFrame:
    """One row per family and size of the log, and one column per method."""
    table = table.assign(
        cell=[
            f"{value:{sign}.3f}" + ("" if np.isnan(ci) else f" ± {ci:.3f}")
            for value, ci in zip(table["value"], table["ci"], strict=True)
        ],
        worlds=table["worlds"].astype(str),
    ).sort_values(["name", "transitions"], key=lambda part: part.map(order) if part.name == "name" else part)
    index = ["name", "transitions", "worlds"]
    pivot = table.pivot_table(index=index, columns="method", values="cell", sort=False, aggfunc="first")
    columns = [name for name in (*METHOD_NAMES, truth.MODEL) if name in pivot]
    pivot = pivot[columns].fillna("").reset_index().rename_axis(columns=None)
    return pivot.assign(transitions=[f"{size:,}".replace(",", " ") for size in pivot["transitions"]])


COLOURS = {
    CVL: "#1b6ca8", READOUT: "#7fbce6", REGRESSION: "#b3423a", "mc_awr": "#e0a070", "sarsa": "#2f8f4e",
    "one_step_model": "#8457a8", truth.MODEL: "#222222",
}  # fmt: skip


def plot(rows: pd.DataFrame, order: Callable[[str], int]) -> Figure:
    """Plot two measures of every method over sizes of the log, one column per family."""
    names = sorted(rows["name"].unique(), key=order)
    figure = Figure(figsize=(3.4 * len(names), 6.2), layout="constrained")
    axes = figure.subplots(2, len(names), squeeze=False, sharex=True, sharey="row")
    for line, measure in enumerate(("within", "error")):
        table = over_worlds(rows, measure)
        for axis, name in zip(axes[line], names, strict=True):
            for number, (method, colour) in enumerate(COLOURS.items()):
                part = table[(table["name"] == name) & (table["method"] == method)].sort_values("transitions")
                axis.errorbar(
                    part["transitions"] * 1.03 ** (number - 3), part["value"], part["ci"].fillna(0.0), label=method,
                    color=colour, ls=":" if method == truth.MODEL else "-", marker="o", ms=4, lw=1.2, elinewidth=0.7,
                )  # fmt: skip
            axis.set(xscale="log")
            axis.grid(alpha=0.3)
        axes[0, 0].set_ylabel("correlation with the exact Q\nwithin states")
        axes[1, 0].set_ylabel("error / std of the exact Q")
    axes[0, 0].set_ylim(0.0, 1.02)
    axes[1, 0].set_ylim(0.0, 1.4)
    for axis, name in zip(axes[0], names, strict=True):
        axis.set_title(name, fontsize=10)
    for axis in axes[1]:
        axis.set_xlabel("logged transitions")
    axes[1, -1].legend(fontsize=7, loc="upper right")
    return figure


def report(rows: list[dict[str, Any]], steps: int) -> None:
    """Print the tables of as many gradient steps, and draw the picture, without unfinished cells."""
    everything = pd.DataFrame([row for row in rows if row["steps"] == steps])
    cells = everything.groupby(["name", "seed", "transitions"], sort=False)
    everything = cells.filter(lambda cell: set(METHOD_NAMES) <= set(cell["method"]))
    order = list(FINAL).index
    worlds = everything[everything["transitions"] > 0]
    tasks = everything[everything["transitions"] == 0]
    if len(worlds):
        for measure in SCORES:
            print(f"\n{measure}\n\n" + markdown(wide(over_worlds(worlds, measure), order)))  # noqa: T201
        difference = over_worlds(worlds, "within", CVL)
        print("\nwithin, minus CVL's\n\n" + markdown(wide(difference, order, "+")))  # noqa: T201
        plot(worlds, order).savefig(RESULTS / "truth_methods.png", dpi=90)
    if len(tasks):
        measures = [f"{after} {name}" for after in simulators.AFTER for name in ("correlation", "advantage")]
        intervals = [f"{measure}_ci" for measure in measures]
        shown = tasks[["name", "seed", "method", *measures, *intervals]].astype({"seed": str})
        print("\nSimulators\n\n" + markdown(shown, 2))  # noqa: T201
    seconds = everything.groupby("method", sort=False)["seconds"].median().dropna().reset_index()
    print("\nSeconds of processor time, median over cells\n\n" + markdown(seconds, 0))  # noqa: T201


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--families", nargs="*", default=FAMILIES, choices=list(FINAL), metavar="FAMILY")
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES, help="of a log, in transitions")
    parser.add_argument("--seeds", type=int, default=3, help="worlds of each family")
    parser.add_argument("--tasks", nargs="*", default=TASKS, help="with tables of benchmarks.simulators")
    parser.add_argument("--task-seeds", nargs="+", type=int, default=[30, 31])
    parser.add_argument(
        "--steps", type=int, default=STEPS, help="gradient steps, those of the policy included"
    )
    parser.add_argument("--report", action="store_true", help="run nothing")
    return parser.parse_args()


def main() -> None:
    """Run the cells that are missing, and report all."""
    arguments = parse()
    torch.set_num_threads(1)
    logging.getLogger("lightning").setLevel(logging.ERROR)
    first = FIRST_SEED["final"]
    cells: list[Cell] = [
        World(family, first + number, size)
        for number in range(arguments.seeds)
        for size in sorted(arguments.sizes)
        for family in arguments.families
    ]
    cells += [Simulated(task, seed) for seed in arguments.task_seeds for task in arguments.tasks]
    if not arguments.report:
        run_cells(cells, arguments.steps)
    report(read_rows(), arguments.steps)


if __name__ == "__main__":
    main()
