"""Tables and picture of ``benchmarks.rivals``, from its records alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from benchmarks.common import markdown
from cvl_pipeline.methods.base import METHODS
from cvl_pipeline.reports.comparison import BEHAVIOUR, OURS, THRESHOLDS, Comparison, interval
from cvl_pipeline.reports.plots import COLOURS
from cvl_pipeline.reports.statistics import Estimate, estimate, interquartile_mean

CRITIC = ("contrastive_dynamics.train", "value_readout.label", "value_readout.read_out")
"""Nodes that train what CVL, and every method that needs its critic, stands on."""
VARIANT = "__"
"""Stands between the names of a method and of a variant of its settings."""


def cost(method: str, seconds: Mapping[str, float]) -> float:
    """Seconds that a method takes to train, with the critic if it needs one; NaN if a node was not measured."""
    needs_critic = METHODS[method.partition(VARIANT)[0]].needs_critic
    nodes = [*(CRITIC if needs_critic else ()), f"policy_extraction.train_{method}"]
    return sum(seconds.get(node, np.nan) for node in nodes)


def frame(records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """One row per cell and method: its success rate, and its seconds if the run was not interrupted."""
    rows = []
    for record in records:
        place = {name: record[name] for name in ("preset", "task", "seed")}
        rows.append({**place, "method": BEHAVIOUR, "success": record["behaviour"], "seconds": np.nan})
        for name, values in record["methods"].items():
            run = record["runs"][values["run"]]
            seconds = np.nan if run["interrupted"] else cost(name, run["seconds"])
            rows.append({**place, "method": name, "success": np.mean(values["success"]), "seconds": seconds})
    return pd.DataFrame(rows)


def success_table(table: Comparison) -> pd.DataFrame:
    """Interquartile mean of success by method and preset, and the optimality gap."""
    return pd.DataFrame([{"method": name, **_texts(row)} for name, row in table.success().items()])


def task_table(table: Comparison) -> pd.DataFrame:
    """Mean success over seeds by preset and task."""
    return pd.DataFrame(table.by_task())


def improvement_table(table: Comparison) -> pd.DataFrame:
    """Probability that a run of CVL beats a run of each other method on the same task."""
    return pd.DataFrame([{f"{OURS} beats": name, **_texts(row)} for name, row in table.improvement().items()])


def _texts(row: Mapping[str, Estimate]) -> dict[str, str]:
    return {name: interval(numbers) for name, numbers in row.items()}


def time_table(table: Comparison, rows: pd.DataFrame) -> pd.DataFrame:
    """Median seconds of training and success of each method, fastest first."""
    seconds = rows.groupby("method")["seconds"].median()
    times = pd.DataFrame(
        [
            {
                "method": name,
                "seconds": seconds[name],
                "success": interval(estimate(interquartile_mean, table.scores(name))),
            }
            for name in table.methods
        ]
    )
    times = times.sort_values("seconds")
    return times.assign(seconds=[f"{value:.0f}" if value == value else "" for value in times["seconds"]])


def picture(table: Comparison, rows: pd.DataFrame) -> Figure:
    """Performance profiles with their intervals, and success against the time of training."""
    figure = Figure(figsize=(11.0, 4.2), layout="constrained")
    profiles, times = figure.subplots(1, 2)
    seconds = rows.groupby("method")["seconds"].median()
    for position, name in enumerate(table.methods):
        style: dict[str, Any] = {
            "color": COLOURS[position % len(COLOURS)], "ls": "-" if position < len(COLOURS) else "--"
        }  # fmt: skip
        scores = table.scores(name)
        profile = table.profile(name)
        profiles.plot(THRESHOLDS, profile.value, label=name, **style)
        profiles.fill_between(THRESHOLDS, profile.low, profile.high, color=style["color"], alpha=0.12, lw=0)
        value, low, high = map(float, estimate(interquartile_mean, scores))
        if seconds[name] == seconds[name]:
            times.errorbar(
                seconds[name], value, yerr=[[max(0.0, value - low)], [max(0.0, high - value)]], fmt="o",
                color=style["color"],
            )  # fmt: skip
            times.annotate(
                name, (seconds[name], value), xytext=(5, 4), textcoords="offset points", fontsize=8
            )
    profiles.set(
        xlabel="success rate t",
        ylabel="share of runs above t",
        title="Performance profiles",
        ylim=(-0.02, 1.02),
    )
    profiles.legend(frameon=False, fontsize=8)
    times.set(
        xlabel="seconds of training, median, one core", ylabel="success, interquartile mean",
        title="Success against time", ylim=(-0.05, 1.05),
    )  # fmt: skip
    times.margins(x=0.15)
    for axis in (profiles, times):
        axis.grid(alpha=0.25)
    return figure


def protocol_lines(records: Sequence[Mapping[str, Any]], table: Comparison) -> list[str]:
    """What the tables are made from."""
    runs = [run for record in records for run in record["runs"]]

    def distinct(pick: Callable[[Mapping[str, Any]], Any]) -> str:
        return ", ".join(dict.fromkeys(str(pick(run) or "with changes not committed") for run in runs))

    tasks = ", ".join(dict.fromkeys(task for _, task in table.places))
    lines = [
        f"- {len(records)} cells; seeds {', '.join(map(str, table.seeds))}; tasks {tasks or 'none'}; "
        f"budget {records[0]['budget']}.",
        f"- Code: {distinct(lambda run: run['commit'])}.",
        f"- Machine: {distinct(lambda run: run['machine'])}; "
        f"cores of a cell: {distinct(lambda run: run['threads'])}.",
    ]
    if table.incomplete:
        names = ", ".join(f"{task} ({preset})" for preset, task in table.incomplete)
        lines.append(f"- Left out, because a method or a seed is missing: {names}.")
    return lines


def write(
    records: Sequence[Mapping[str, Any]],
    methods: Sequence[str],
    axes: Mapping[str, Sequence[Any]],
    folder: Path,
) -> str:
    """Write ``report.md`` and ``report.png`` into a folder and return the text.

    Args:
        records: of the cells at hand, at least one.
        methods: names of the methods to compare.
        axes: ``seeds``, ``presets`` and ``tasks`` of the report.
        folder: of the records.
    """
    rows = frame(records)
    table = Comparison(rows, methods, axes)
    parts = ["\n".join(protocol_lines(records, table))]
    if table.places:
        parts += [
            "**Success, interquartile mean over tasks and seeds** (95 % intervals, seeds of each task resampled):",
            markdown(success_table(table)),
            "**Success by task, mean over seeds**:",
            markdown(task_table(table), digits=2),
        ]
        if len(table.methods) > 1:
            parts += [
                f"**Probability that {OURS} improves on another method**:",
                markdown(improvement_table(table)),
            ]
        parts += [
            "**Success and seconds of training** (median; one core):",
            markdown(time_table(table, rows)),
        ]
        folder.mkdir(parents=True, exist_ok=True)
        picture(table, rows).savefig(folder / "report.png", dpi=120)
        (folder / "report.md").write_text("\n\n".join([*parts, "![profiles](report.png)"]) + "\n")
    return "\n\n".join(parts)
