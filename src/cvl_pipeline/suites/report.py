"""Tables and pictures of a suite, from its records alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from cvl_pipeline.io.storage import write_atomically
from cvl_pipeline.methods.base import METHODS
from cvl_pipeline.reports.comparison import BEHAVIOUR, THRESHOLDS, Comparison, interval
from cvl_pipeline.reports.figures import colour
from cvl_pipeline.reports.html import SCRIPT, plotly_script
from cvl_pipeline.reports.markdown import markdown
from cvl_pipeline.reports.page import suite_page
from cvl_pipeline.reports.statistics import Estimate
from cvl_pipeline.reports.summary import return_digits
from cvl_pipeline.suites.parameters import OWN, VARIANT
from cvl_pipeline.suites.plan import Plan
from cvl_pipeline.suites.records import video_file, videos_of

RESULTS = "results.parquet"
"""The table of all episodes."""

CRITIC = ("contrastive_dynamics.train", "value_readout.label", "value_readout.read_out")
"""Nodes that train what CVL, and every method that needs its critic, stands on."""


def cost(method: str, seconds: Mapping[str, float], own: Mapping[str, str] | None = None) -> float:
    """Seconds that a method takes to train, with the critic if it needs one.

    NaN if a node was not measured, or for a method of the user's own that the suite does not name any more.

    Args:
        method: name of a method or a variant.
        seconds: of each node.
        own: ``module:Class`` of methods of the user's own.
    """
    name = method.partition(VARIANT)[0]
    chosen = (own or {}).get(name, name)
    if chosen == name and name not in METHODS.names:
        return np.nan
    needs_critic = METHODS[chosen].needs_critic
    nodes = [*(CRITIC if needs_critic else ()), f"policy_extraction.train_{method}"]
    return sum(seconds.get(node, np.nan) for node in nodes)


def episodes(records: Sequence[Mapping[str, Any]], own: Mapping[str, str] | None = None) -> pd.DataFrame:
    """Return one row per evaluation episode.

    Args:
        records: of cells.
        own: ``module:Class`` of methods of the user's own.

    Returns:
        Columns: task, preset, seed, method, episode, success, return, and seconds: those that the method took to
        train, missing if its run was interrupted. Success is missing if it is unknown. It is 0 instead if the success
        of any other episode of the task is known: the environment reports it, and did not do so here.
    """
    rows = []
    for record in records:
        place = {name: record[name] for name in ("task", "preset", "seed")}
        for name, values in record["methods"].items():
            run = record["runs"][values["run"]]
            seconds = np.nan if run["interrupted"] else cost(name, run["seconds"], own)
            pairs = zip(values["success"], values["returns"], strict=True)
            rows += [
                {
                    **place,
                    "method": name,
                    "episode": number,
                    "success": success,
                    "return": value,
                    "seconds": seconds,
                }
                for number, (success, value) in enumerate(pairs)
            ]
    table = pd.DataFrame(rows).astype({"success": np.float64})
    known = table.groupby("task")["success"].transform("count") > 0
    return table.assign(success=table["success"].mask(known & table["success"].isna(), 0.0))


def frame(records: Sequence[Mapping[str, Any]], own: Mapping[str, str] | None = None) -> pd.DataFrame:
    """One row per cell and method: success rate, mean return, and seconds of training; missing where unknown."""
    keys = ["preset", "task", "seed", "method"]
    rows = (
        episodes(records, own)
        .groupby(keys, sort=False)[["success", "return", "seconds"]]
        .mean()
        .reset_index()
    )
    behaviour = [
        {**{name: record[name] for name in keys[:3]}, "method": BEHAVIOUR, "success": record["behaviour"]}
        for record in records
    ]
    return pd.concat([rows, pd.DataFrame(behaviour).astype({"success": np.float64})], ignore_index=True)


def success_table(table: Comparison) -> pd.DataFrame:
    """Interquartile mean of success by method and preset, and the optimality gap."""
    return pd.DataFrame([{"method": name, **_texts(row)} for name, row in table.success().items()])


def task_table(table: Comparison) -> pd.DataFrame:
    """Mean success over seeds by preset and task, without columns of unknown success."""
    return pd.DataFrame(table.by_task()).dropna(axis="columns", how="all")


def improvement_table(table: Comparison) -> pd.DataFrame:
    """Probability that a run of CVL beats a run of each other method on the same task."""
    return pd.DataFrame([{f"{OWN} beats": name, **_texts(row)} for name, row in table.improvement().items()])


def _texts(row: Mapping[str, Estimate]) -> dict[str, str]:
    return {name: interval(numbers) for name, numbers in row.items()}


def time_table(table: Comparison, rows: pd.DataFrame) -> pd.DataFrame:
    """Median seconds of training and success of each method, fastest first."""
    seconds = rows.groupby("method")["seconds"].median()
    return pd.DataFrame(
        [
            {
                "method": name,
                "seconds": "" if np.isnan(time) else f"{time:.0f}",
                "success": "" if score is None else interval(score),
            }
            for name, time, score in table.times(seconds)
        ]
    )


def picture(table: Comparison, rows: pd.DataFrame) -> Figure:
    """Performance profiles with their intervals, and success against the time of training."""
    figure = Figure(figsize=(11.0, 4.2), layout="constrained")
    profiles, times = figure.subplots(1, 2)
    seconds = rows.groupby("method")["seconds"].median()
    for name in table.methods:
        profile = table.profile(name)
        profiles.plot(THRESHOLDS, profile.value, label=name, color=colour(name))
        profiles.fill_between(THRESHOLDS, profile.low, profile.high, color=colour(name), alpha=0.12, lw=0)
    for name, time, score in table.times(seconds):
        if score is None or np.isnan(time):
            continue
        value, low, high = map(float, score)
        errors = [[max(0.0, value - low)], [max(0.0, high - value)]]
        times.errorbar(time, value, yerr=errors, fmt="o", color=colour(name))
        times.annotate(name, (time, value), xytext=(5, 4), textcoords="offset points", fontsize=8)
    profiles.set(
        xlabel="success rate t",
        ylabel="share of runs above t",
        title="Performance profiles",
        ylim=(-0.02, 1.02),
    )
    profiles.legend(frameon=False, fontsize=8)
    times.set(
        xlabel="seconds of training, median", ylabel="success, interquartile mean",
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
        f"budget {records[0]['budget']:g}.",
        f"- Code: {distinct(lambda run: run['commit'])}.",
        f"- Machine: {distinct(lambda run: run['machine'])}; "
        f"cores of a cell: {distinct(lambda run: run['threads'])}.",
    ]
    complete = [record for record in records if not any(run["interrupted"] for run in record["runs"])]
    if complete:
        # A run's seconds are those of the log so far, so they contain those of the runs before it.
        seconds = [
            sum({node: time for run in record["runs"] for node, time in run["seconds"].items()}.values())
            for record in complete
        ]
        lines.append(f"- Seconds of all nodes of a cell, median: {np.median(seconds):.0f}.")
    if table.incomplete:
        several = len({preset for preset, _ in table.wanted}) > 1
        names = ", ".join(f"{task} ({preset})" if several else task for preset, task in table.incomplete)
        lines.append(f"- Left out, because the success of a method or a seed is missing or unknown: {names}.")
    return lines


def return_table(rows: pd.DataFrame, methods: Sequence[str]) -> pd.DataFrame:
    """Mean return over the seeds at hand by preset and task; missing methods are empty."""
    known = rows[rows["method"].isin(methods)]
    table = known.pivot_table(index=["preset", "task"], columns="method", values="return", sort=False)
    return table.reindex(columns=[name for name in methods if name in table.columns]).reset_index()


def write_report(records: Sequence[Mapping[str, Any]], plan: Plan, folder: Path) -> tuple[str, list[str]]:
    """Write the table of all episodes, ``results.parquet``, and the report.

    Args:
        records: of the cells at hand, at least one.
        plan: of the suite.
        folder: for the files.

    Returns:
        The tables as text, and the names of the files, the one to read last.
    """
    own = plan.suite.own_methods
    axes = {"seeds": plan.suite.seeds, "presets": plan.presets, "tasks": plan.tasks}
    folder.mkdir(parents=True, exist_ok=True)
    results = episodes(records, own)
    write_atomically(folder / RESULTS, lambda path: results.to_parquet(path, index=False))
    rows = frame(records, own)
    table = Comparison(rows, plan.methods, axes)
    notes = protocol_lines(records, table)
    parts = ["\n".join([_completeness(rows, plan), *notes])]
    files = [RESULTS]
    if table.places:
        parts += _of_success(table, rows, plan.suite.tuning_tasks)
        write_atomically(folder / "report.png", lambda path: picture(table, rows).savefig(path, dpi=120))
        files.append("report.png")
    elif results["success"].isna().all():
        parts += [
            "**Mean return by task** (success is unknown):",
            markdown(return_table(rows, plan.methods), digits=1),
        ]
    text = "\n\n".join([*parts, *(["![profiles](report.png)"] if "report.png" in files else [])]) + "\n"
    write_atomically(folder / "report.md", lambda path: path.write_text(text))
    files.append("report.md")
    shown = results[results["method"].isin(plan.methods)]  # records may have variants that nobody asks for
    videos, lost = read_videos(records, plan, folder)
    if lost:
        notes.append(f"- Missing beside the records: {', '.join(lost)}.")
    page = suite_page(
        pd.concat([shown, rows[rows["method"] == BEHAVIOUR]], ignore_index=True),
        title=f"Suite {plan.name}",
        axes={**axes, "methods": plan.methods},
        notes=[line.removeprefix("- ") for line in notes],
        videos=videos,
        tuning_tasks=plan.suite.tuning_tasks,
        by_success=bool(table.places),  # as in report.md
    )
    write_atomically(folder / SCRIPT, lambda path: path.write_bytes(plotly_script()))
    write_atomically(folder / "report.html", lambda path: path.write_text(page))
    files += [SCRIPT, "report.html"]
    return "\n\n".join(parts), files


def read_videos(
    records: Sequence[Mapping[str, Any]], plan: Plan, folder: Path
) -> tuple[dict[tuple[str, str], dict[str, tuple[str, bytes]]], list[str]]:
    """Read the videos of the first seed.

    Args:
        records: of the cells at hand.
        plan: of the suite.
        folder: of the records and their videos.

    Returns:
        By preset and task, in the plan's order, a caption and an MP4 file of each method; and the files that a record
        names, but that are not there.
    """
    videos: dict[tuple[str, str], dict[str, tuple[str, bytes]]] = {}
    lost = []
    at = {(record["seed"], record["preset"], record["task"]): record for record in records}
    for cell in plan.cells():
        record = at.get((cell.seed, cell.preset, cell.task))
        if record is None or (cell.preset, cell.task) in videos:
            continue
        chosen = videos_of(record)
        found = {}
        for name in plan.methods:
            if name not in chosen:
                continue
            path = folder / video_file(record, name)
            if path.exists():
                found[name] = (_caption(record["methods"][name], chosen[name]), path.read_bytes())
            else:
                lost.append(video_file(record, name))
        if found:
            videos[cell.preset, cell.task] = found
    return videos, lost


def _caption(values: Mapping[str, Any], episode: int) -> str:
    solved = {1: "solved, ", 0: "not solved, ", None: ""}[values["success"][episode]]
    earned = values["returns"][episode]
    return f"{solved}return {earned:.{return_digits([earned])}f}"


def _completeness(rows: pd.DataFrame, plan: Plan) -> str:
    """How many of the runs are there; a run is a method in a cell."""
    present = int(rows["method"].isin(plan.methods).sum())
    axes = {"tasks": plan.tasks, "presets": plan.presets, "seeds": plan.suite.seeds, "methods": plan.methods}
    counts = ", ".join(f"{name}: {len(values)}" for name, values in axes.items())
    return f"- {present} of {math.prod(map(len, axes.values()))} runs are there ({counts})."


def _of_success(table: Comparison, rows: pd.DataFrame, tuning_tasks: Sequence[str]) -> list[str]:
    parts = [
        f"**Success, interquartile mean over tasks and seeds** (95 % intervals). {table.resampling}",
        markdown(success_table(table)),
    ]
    if untuned := table.without(tuning_tasks):
        parts += [
            f"**The same without the tasks on which settings were chosen** ({', '.join(tuning_tasks)}; "
            f"{len(untuned.places)} of {len(table.places)} tasks and presets):",
            markdown(success_table(untuned)),
        ]
    if len(table.methods) > 1:
        parts += [
            f"**Probability that {OWN} improves on another method**:",
            markdown(improvement_table(table)),
        ]
    return [
        *parts,
        "**Success and seconds of training** (median):",
        markdown(time_table(table, rows)),
        "**Success by task, mean over seeds**:",
        markdown(task_table(table), digits=2),
    ]
