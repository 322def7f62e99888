"""Success against the time that a user waits: budgets up to 1 of the suite `rivals`' records (docs/benchmarks.md).

The records come from the suite, once for every budget::

    kedro suite run rivals --budget 0.1 --presets mixed,noisy --jobs 1 --threads 1
    python -m benchmarks.times            # the tables, into docs/benchmarks.md
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.common import PROJECT, RESULTS, markdown, write_section
from cvl_pipeline.reports.comparison import BEHAVIOUR
from cvl_pipeline.suites.report import frame

GOAL = 0.9
"""The success rate whose price is asked for."""


def measured(records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return success and seconds by preset, method and budget.

    A mean counts only if a method has the tasks and seeds that every method has at every budget of the preset, so
    that all numbers of a preset are of the same runs. Presets with one budget are left out.

    Returns:
        Columns: preset, method, budget, runs, success (mean) and seconds (median, of training on one core).
    """
    tables = []
    for budget in sorted({record["budget"] for record in records}):
        rows = frame([record for record in records if record["budget"] == budget])
        tables.append(rows[rows["method"] != BEHAVIOUR].assign(budget=budget))
    table = pd.concat(tables, ignore_index=True)
    parts = []
    for preset, rows in table.groupby("preset", sort=False):
        if rows["budget"].nunique() < 2:
            continue
        cells = rows.pivot_table(
            index=["task", "seed"], columns=["method", "budget"], values="success"
        ).dropna()
        placed = rows.set_index(["task", "seed"])
        kept = placed[placed.index.isin(cells.index)]
        means = kept.groupby(["method", "budget"], sort=False).agg(
            runs=("success", "size"), success=("success", "mean"), seconds=("seconds", "median")
        )
        parts.append(means.reset_index().assign(preset=preset))
    return pd.concat(parts, ignore_index=True)


def prices(table: pd.DataFrame, goal: float = GOAL) -> pd.DataFrame:
    """Return one row per method: success after the seconds of every budget, and the fewest seconds to the goal."""
    rows = []
    for (preset, method), part in table.groupby(["preset", "method"], sort=False):
        part = part.sort_values("budget")
        reached = part[part["success"] >= goal]["seconds"]
        row = {"preset": preset, "method": method}
        row |= {
            f"budget {budget:g}": f"{success:.2f} in {seconds:.0f} s"
            for budget, success, seconds in zip(part["budget"], part["success"], part["seconds"], strict=True)
        }
        rows.append(row | {f"seconds to {goal:g}": f"{reached.min():.0f}" if len(reached) else "not reached"})
    return pd.DataFrame(rows).fillna("not run")


def versions(records: Sequence[Mapping[str, Any]]) -> str:
    """Return a line with the commits of each budget; empty if all numbers have the same one.

    A record counts if there is one of its preset, task and seed at every budget of the preset, as for ``measured``.
    """
    budgets: dict[str, set[float]] = {}
    places: dict[tuple[str, str, int], set[float]] = {}
    for record in records:
        budgets.setdefault(record["preset"], set()).add(record["budget"])
        places.setdefault(_place(record), set()).add(record["budget"])
    commits: dict[float, set[str]] = {}
    for record in records:
        needed = budgets[record["preset"]]
        if len(needed) > 1 and places[_place(record)] == needed:
            used = (record["runs"][values["run"]] for values in record["methods"].values())
            names = {run["commit"][:7] if run["commit"] else "changes not committed" for run in used}
            commits.setdefault(record["budget"], set()).update(names)
    if len(set.union(*commits.values())) < 2:
        return ""
    parts = (f"budget {budget:g}: {', '.join(sorted(commits[budget]))}" for budget in sorted(commits))
    return f"The code differs: {'; '.join(parts)}."


def _place(record: Mapping[str, Any]) -> tuple[str, str, int]:
    return record["preset"], record["task"], record["seed"]


def main() -> None:
    """Print the table, and write it into docs/benchmarks.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=Path, default=RESULTS / "rivals", help="folder of records")
    found = [json.loads(path.read_text()) for path in sorted(parser.parse_args().records.glob("*_x*.json"))]
    records = [record for record in found if record["budget"] <= 1.0]
    if not records:
        raise SystemExit("no records yet: kedro suite run rivals")
    table = measured(records)
    counts = table.groupby("preset", sort=False)["runs"].first()
    runs = ", ".join(f"{count} ({preset})" for preset, count in counts.items())
    notes = " ".join(filter(None, [f"Runs of each mean: {runs}.", versions(records)]))
    text = f"{markdown(prices(table))}\n\n{notes}"
    print(text)  # noqa: T201
    write_section(PROJECT / "docs/benchmarks.md", "times", text)


if __name__ == "__main__":
    main()
