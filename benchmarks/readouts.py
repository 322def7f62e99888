"""Readouts at equal cost: error, rank correlation and CPU microseconds per query.

The script compares them with the exact readout, for critics of the truth benchmark's grid and of Meta-World
episodes. It varies the temperature and the number of references, prototypes or random features. Each of them
costs one inner product and one exponential per query.

    python -m benchmarks.readouts
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Generator

from benchmarks import truth
from benchmarks.common import RESULTS, markdown, write_record
from benchmarks.worlds import EARLIER
from cvl_pipeline.api import EpisodeData, QFunction, load_episodes, train_critic
from cvl_pipeline.dynamics.parameters import DynamicsParameters
from cvl_pipeline.episodes.container import Rewards
from cvl_pipeline.episodes.preparation import split_episodes
from cvl_pipeline.networks.critic import ContrastiveCritic
from cvl_pipeline.readout.build import exact_readout, horizon_quantiles
from cvl_pipeline.readout.diagnostics import readout_error
from cvl_pipeline.readout.readouts import Readout, feature_readout
from cvl_pipeline.readout.references import References, all_references, compress, draw_references
from cvl_pipeline.testing.builders import identity_normalisation

TEMPERATURES = (0.05, 0.1, 0.25, 1.0)
SIZES = (256, 1024, 4096, 16384, 65536)
MOST_PROTOTYPES = 4096  # with more, Lloyd's algorithm takes more time than it saves
QUERIES = 1000
NO_HORIZONS = horizon_quantiles(0.5, 0)


def grid_data() -> EpisodeData:
    """Simulate a log of the grid of ``benchmarks.truth``."""
    transitions, rewards = EARLIER["grid"].log(0, 12_000)
    split = split_episodes(transitions, 0.1, 0)
    return EpisodeData(transitions, split, identity_normalisation(transitions), rewards)


def grid_parameters(steps: int) -> DynamicsParameters:
    """A small critic for the grid, with the discount of the values."""
    return truth.dynamics(steps, 0.9, discount=0.9, **truth.SMALL)


def critics(data: EpisodeData, parameters: DynamicsParameters) -> Iterator[tuple[float, ContrastiveCritic]]:
    """Train critics, one per temperature."""
    for temperature in TEMPERATURES:
        changed = parameters.model_copy(update={"temperature": temperature})
        yield temperature, train_critic(data, changed).critic


def build_readouts(
    critic: ContrastiveCritic, everything: References, sizes: tuple[int, ...], references_only: bool
) -> Iterator[tuple[str, int, Readout, float]]:
    """Build readouts: name, size, readout and build seconds; ``references_only``: only with sampled references."""
    temperature, discount = critic.temperature.detach(), critic.shape.discount

    def exact(references: References) -> Readout:
        return exact_readout(critic, references, NO_HORIZONS, discount)

    def features(fourier: bool, size: int, generator: Generator) -> Readout:
        return feature_readout(
            everything, fourier, size, generator,
            temperature=temperature, horizons=NO_HORIZONS, discount=discount, self_normalised=True,
        )  # fmt: skip

    recipes: dict[str, Callable[[int, Generator], Readout]] = {
        "references": lambda n, g: exact(draw_references(everything, n, False, g)),
        "references by reward": lambda n, g: exact(draw_references(everything, n, True, g)),
        "prototypes": lambda n, g: exact(compress(everything, n, temperature, g)),
        "random_fourier": partial(features, True),
        "positive_random": partial(features, False),
    }
    for size in sizes:
        generator = Generator().manual_seed(size)
        for name, make in recipes.items():
            if name == "prototypes" and size > MOST_PROTOTYPES:
                continue
            if references_only and not name.startswith("references"):
                continue
            start = time.perf_counter()
            readout = make(size, generator)
            yield name, size, readout, time.perf_counter() - start


@torch.no_grad()
def measure(
    where: str,
    temperature: float,
    critic: ContrastiveCritic,
    data: EpisodeData,
    sizes: tuple[int, ...],
) -> list[dict[str, Any]]:
    """Compare every readout of a critic with the exact readout, on held-out pairs."""
    assert data.rewards is not None
    transitions = data.transitions
    held_out = transitions.transition_index(data.split.validation)
    index = held_out[torch.randint(len(held_out), (QUERIES,), generator=Generator().manual_seed(0))]
    queries = (transitions.states(index), transitions.actions[index])
    phi = critic.phi(*queries)
    rows = []
    for reward, values in (("dense", data.rewards.rewards), ("sparse", data.rewards.successes.float())):
        everything = all_references(critic, transitions, Rewards(values, values > 0), data.split.train)
        exact = QFunction(critic, exact_readout(critic, everything, NO_HORIZONS, critic.shape.discount))
        truth_values, ess = exact.in_batches(*queries)
        references_only = reward == "sparse"
        for name, size, readout, seconds in build_readouts(critic, everything, sizes, references_only):
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
    steps, sizes = arguments.steps, tuple(arguments.sizes)
    task_data = load_episodes("metaworld", task=arguments.task, episodes=arguments.episodes)
    training = {"steps": steps, "validation_interval": steps}
    rows = [
        row
        for where, data, parameters in (
            ("grid", grid_data(), grid_parameters(steps // 4)),
            (arguments.task, task_data, DynamicsParameters.model_validate({"training": training})),
        )
        for temperature, critic in critics(data, parameters)
        for row in measure(where, temperature, critic, data, sizes)
    ]
    table = pd.DataFrame(rows)
    write_record(RESULTS / "readouts.json", seconds=time.perf_counter() - start, rows=rows)
    plot(table).savefig(RESULTS / "readouts.png", dpi=80)
    print("\nError, in standard deviations of the exact Q\n\n" + wide(table, "error", 3))  # noqa: T201
    print("\nRank correlation with the exact Q\n\n" + wide(table, "rank_correlation", 3))  # noqa: T201
    print("\nMicroseconds per query\n\n" + wide(table, "microseconds", 1))  # noqa: T201


if __name__ == "__main__":
    main()
