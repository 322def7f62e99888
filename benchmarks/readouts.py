"""Readouts at equal cost: error, rank correlation and CPU microseconds per query.

The script compares them with the exact readout, for critics of the truth benchmark's grid and of Meta-World
episodes. It varies the temperature and the number of references, prototypes or random features. Each of them
costs one inner product and one exponential per query.

    python -m benchmarks.readouts
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Iterator
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Generator, Tensor

from benchmarks import truth
from benchmarks.common import RESULTS, defaults, machine, markdown
from cvl_pipeline.dynamics.module import train_dynamics
from cvl_pipeline.dynamics.parameters import DynamicsParameters
from cvl_pipeline.episodes.container import Normalisation, Rewards, Split, Transitions
from cvl_pipeline.episodes.preparation import fit_normalisation, split_episodes
from cvl_pipeline.networks.critic import ContrastiveCritic
from cvl_pipeline.readout.build import exact_readout, horizon_quantiles
from cvl_pipeline.readout.diagnostics import readout_error
from cvl_pipeline.readout.q_function import QFunction
from cvl_pipeline.readout.readouts import Readout, feature_readout
from cvl_pipeline.readout.references import References, all_references, compress, draw_references
from cvl_pipeline.sources.load import load
from cvl_pipeline.sources.parameters import DatasetParameters

TEMPERATURES = (0.05, 0.1, 0.25, 1.0)
SIZES = (256, 1024, 4096, 16384, 65536)
MOST_PROTOTYPES = 4096  # with more, Lloyd's algorithm takes more time than it saves
QUERIES = 1000


def grid_critics(steps: int) -> Iterator[tuple[float, ContrastiveCritic, Transitions, Rewards, Split]]:
    """Train critics on the truth benchmark's grid, one per temperature."""
    transitions, rewards = truth.cases(12_000)["grid"].log(0)
    split = split_episodes(transitions, 0.1, 0)
    for temperature in TEMPERATURES:
        parameters = truth.parameters(steps, temperature=temperature)
        critic, _ = train_dynamics(transitions, split, truth.identity(transitions, split), parameters, 0)
        yield temperature, critic, transitions, rewards, split


def metaworld_critics(
    task: str, episodes: int, steps: int
) -> Iterator[tuple[float, ContrastiveCritic, Transitions, Rewards, Split]]:
    """Train critics on a Meta-World task, one per temperature, with default settings otherwise."""
    dataset = DatasetParameters(**defaults("dataset") | {"task": task, "episodes": episodes})
    transitions, rewards = load(dataset, seed=0, workers=None)
    split = split_episodes(transitions, 0.1, 0)
    normalisation: Normalisation = fit_normalisation(transitions, split, 1e-3)
    for temperature in TEMPERATURES:
        values = defaults("contrastive_dynamics")
        training = values["training"] | {"steps": steps, "validation_interval": steps}
        parameters = DynamicsParameters(**values | {"temperature": temperature, "training": training})
        critic, _ = train_dynamics(transitions, split, normalisation, parameters, 0)
        yield temperature, critic, transitions, rewards, split


def made_readouts(
    critic: ContrastiveCritic, everything: References, sizes: tuple[int, ...], drawn_only: bool
) -> Iterator[tuple[str, int, Readout, float]]:
    """Build readouts: name, size, readout and build seconds; ``drawn_only``: only with sampled references."""
    none: Tensor = horizon_quantiles(0.5, 0)
    temperature, discount = critic.temperature.detach(), critic.shape.discount
    for size in sizes:
        generator = Generator().manual_seed(size)
        recipes: dict[str, Any] = {
            "references": lambda g, n: exact_readout(
                critic, draw_references(everything, n, False, g), none, discount
            ),
            "references by reward": lambda g, n: exact_readout(
                critic, draw_references(everything, n, True, g), none, discount
            ),
            "prototypes": lambda g, n: exact_readout(
                critic, compress(everything, n, temperature, g), none, discount
            ),
        }
        for method in ("random_fourier", "positive_random"):
            recipes[method] = lambda g, n, method=method: feature_readout(
                everything, method, n, g,
                temperature=temperature, horizons=none, discount=discount, self_normalised=True,
            )  # fmt: skip
        for name, make in recipes.items():
            if name == "prototypes" and size > MOST_PROTOTYPES:
                continue
            if drawn_only and not name.startswith("references"):
                continue
            start = time.perf_counter()
            readout = make(generator, size)
            yield name, size, readout, time.perf_counter() - start


@torch.no_grad()
def measure(
    where: str,
    temperature: float,
    critic: ContrastiveCritic,
    transitions: Transitions,
    rewards: dict[str, Tensor],
    split: Split,
    sizes: tuple[int, ...],
) -> list[dict[str, Any]]:
    """Compare every readout of a critic with the exact readout, on held-out pairs."""
    held_out = transitions.transition_index(split.validation)
    index = held_out[torch.randint(len(held_out), (QUERIES,), generator=Generator().manual_seed(0))]
    queries = (transitions.states(index), transitions.actions[index])
    phi = critic.phi(*queries)
    rows = []
    for reward, values in rewards.items():
        everything = all_references(critic, transitions, Rewards(values, values > 0), split.train)
        none = horizon_quantiles(0.5, 0)
        exact = QFunction(critic, exact_readout(critic, everything, none, critic.shape.discount))
        truth_values, ess = exact.in_batches(*queries)
        drawn_only = reward == "sparse"
        for name, size, readout, seconds in made_readouts(critic, everything, sizes, drawn_only):
            start = time.process_time()  # CPU time, which excludes other work on the machine
            estimates = readout.values(phi)
            micros = (time.process_time() - start) / QUERIES * 1e6
            error, rank = readout_error(estimates.numpy(), truth_values.numpy())
            rows.append(
                {
                    "critic": where, "temperature": temperature, "reward": reward, "readout": name,
                    "size": size, "error": error, "rank_correlation": rank, "microseconds": micros,
                    "build_seconds": seconds, "effective_sample_size": float(ess.median()),
                }
            )  # fmt: skip
    return rows


def plot(rows: pd.DataFrame) -> Figure:
    """Plot error against size, with one panel per critic and temperature."""
    critics = list(dict.fromkeys(rows["critic"]))
    figure = Figure(figsize=(4.0 * len(TEMPERATURES), 3.4 * len(critics)), layout="constrained")
    axes = figure.subplots(len(critics), len(TEMPERATURES), sharex=True, sharey=True, squeeze=False)
    dense = rows[rows["reward"] == "dense"]
    for row, critic in zip(axes, critics, strict=True):
        for axis, temperature in zip(row, TEMPERATURES, strict=True):
            part = dense[(dense["critic"] == critic) & (dense["temperature"] == temperature)]
            for name, line in part.groupby("readout", sort=False):
                axis.plot(line["size"], line["error"].clip(1e-4, 10.0), "o-", ms=3, label=name)
            axis.set(xscale="log", yscale="log", title=f"{critic}, T = {temperature:g}")
            axis.grid(alpha=0.25)
        row[0].set_ylabel("error, in deviations of Q (up to 10)")
    for axis in axes[-1]:
        axis.set_xlabel("references, prototypes or features")
    axes[0][0].legend(frameon=False, fontsize=8)
    return figure


def wide(rows: pd.DataFrame, value: str, digits: int) -> str:
    """Format the rows as a table with one column per size."""
    table = rows.pivot_table(
        index=["critic", "reward", "temperature", "readout"], columns="size", values=value, sort=False
    )

    def cell(number: float) -> str:
        if number != number:  # not measured
            return ""
        return "> 100" if value == "error" and number >= 100 else f"{number:.{digits}f}"

    return markdown(table.map(cell).reset_index().astype(str))


def main() -> None:
    """Train the critics, measure the readouts, print and save the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--task", default="reach-v3")
    parser.add_argument("--episodes", type=int, default=400, help="of Meta-World, 200 steps each")
    parser.add_argument("--steps", type=int, default=4000, help="of contrastive training")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    arguments = parser.parse_args()
    start = time.perf_counter()
    rows = []
    for where, critics in (
        ("grid", grid_critics(arguments.steps // 4)),
        (arguments.task, metaworld_critics(arguments.task, arguments.episodes, arguments.steps)),
    ):
        for temperature, critic, transitions, rewards, split in critics:
            labels = {"dense": rewards.rewards, "sparse": rewards.successes.float()}
            rows += measure(where, temperature, critic, transitions, labels, split, tuple(arguments.sizes))
    table = pd.DataFrame(rows)
    RESULTS.mkdir(exist_ok=True)
    record = {
        "command": shlex.join(["python", "-m", "benchmarks.readouts", *sys.argv[1:]]),
        "machine": machine(),
        "seconds": time.perf_counter() - start,
        "rows": rows,
    }
    (RESULTS / "readouts.json").write_text(json.dumps(record, indent=2) + "\n")
    plot(table).savefig(RESULTS / "readouts.png", dpi=80)
    print("\nError, in standard deviations of the exact Q\n\n" + wide(table, "error", 3))  # noqa: T201
    print("\nRank correlation with the exact Q\n\n" + wide(table, "rank_correlation", 3))  # noqa: T201
    print("\nMicroseconds per query\n\n" + wide(table, "microseconds", 1))  # noqa: T201


if __name__ == "__main__":
    main()
