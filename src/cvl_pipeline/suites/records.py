"""Records of finished runs: one line of JSON for each cell."""

from __future__ import annotations

import json
import platform
import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from cvl_pipeline.errors import InputError
from cvl_pipeline.io.location import Location
from cvl_pipeline.io.storage import write_atomically
from cvl_pipeline.suites.plan import Cell, Plan
from cvl_pipeline.training.devices import available_cores

CODE = ("src", "conf", "requirements.lock")
"""What results follow from."""
NODE = re.compile(r"\d+/\d+ (\S+) -> .*\((\d+\.\d) s(?:, beside)?\)")
"""The line that a run prints after each node."""
START, END = "# start", "# finished"
"""Lines in a cell's log, around each run."""

VIDEO_RANK = "median"
"""The episode of each method whose video is kept with the records."""

Record = dict[str, Any]


def read_record(plan: Plan, cell: Cell, location: Location) -> Record | None:
    """Read a cell's record; None if there is none yet.

    Raises:
        InputError: it was made with other settings, or is damaged.
    """
    location.fetch()
    if not location.path.exists():
        return None
    try:
        record: Record = json.loads(location.path.read_text())
        before, methods, runs = record["settings"], record["methods"], record["runs"]
        record["behaviour"]
        for values in methods.values():
            runs[values["run"]]
            if len(values["success"]) != len(values["returns"]):
                raise ValueError
        known = {
            name: values["settings"]
            for name, values in methods.items()
            if name in plan.methods and "settings" in values  # earlier versions did not write them
        }
    except (ValueError, LookupError, TypeError, AttributeError):
        raise InputError(f"{location} is damaged; delete it, and run the same command again") from None
    changed = _differences(before, {"env": plan.suite.env, **plan.settings(cell)})
    for name, values in known.items():
        changed += [f"{name}: {field}" for field in _differences(values, plan.method_settings(name))]
    if changed:
        raise InputError(
            f"{location} was made with other settings ({', '.join(changed)}); delete it, or name another --records"
        )
    return record


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Names of the values that differ; null differs from a value that is not there."""
    absent = object()
    return [name for name in {**now, **before} if now.get(name, absent) != before.get(name, absent)]


def missing_methods(record: Record | None, methods: Sequence[str]) -> list[str]:
    """Methods whose results a record lacks."""
    return [name for name in methods if record is None or name not in record["methods"]]


def read_log(text: str) -> tuple[dict[str, float], bool]:
    """Read a cell's log: the seconds of every node, of its last run, and whether any run was interrupted."""
    seconds, running, interrupted = {}, False, False
    for line in text.splitlines():
        if line.startswith(START):
            interrupted |= running
            running = True
        elif line.startswith(END):
            running = False
        elif match := NODE.search(line):
            seconds[match[1]] = float(match[2])
    return seconds, interrupted


def episodes_of(path: Path) -> dict[str, Any]:
    """Success and return of every evaluation episode, from a table of rollouts; success is null if unknown."""
    table = pd.read_parquet(path)
    return {
        "success": [None if pd.isna(value) else int(value) for value in table["success"]],
        "returns": [float(f"{value:.6g}") for value in table["return"]],
    }


def video_file(record: Mapping[str, Any], method: str) -> str:
    """Name of a method's video, in the folder of the records."""
    cell = Cell(record["seed"], record["preset"], record["task"], record["budget"])
    return f"videos/{cell.name}_{method}.mp4"


def videos_of(record: Mapping[str, Any]) -> dict[str, int]:
    """Methods of a record that have a video, and the number of its episode."""
    return {name: values["video"] for name, values in record["methods"].items() if "video" in values}


def behaviour_of(path: Path) -> float | None:
    """Success rate of the behaviour data, from a file of metrics; None if unknown."""
    rate = json.loads(path.read_text())["behaviour.success_rate"]
    return None if rate is None else float(rate)


def machine() -> str:
    """Cores that this process may use, architecture and torch version, for the record."""
    return f"{available_cores()} cores, {platform.machine()}, torch {version('torch')}"


def commit(project: Path) -> str | None:
    """The git commit of the code; None if the code has changes that are not committed, or is not in git."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *arguments], cwd=project, capture_output=True, text=True, check=False
            )
        except OSError:
            return None
        return None if done.returncode else done.stdout.strip()

    return git("rev-parse", "HEAD") if git("status", "--porcelain", "--", *CODE) == "" else None


def write_record(
    plan: Plan,
    cell: Cell,
    location: Location,
    results: Mapping[str, Mapping[str, Any]],
    behaviour: float | None,
    run: Mapping[str, Any],
) -> Record:
    """Add a finished run to the cell's record; results that it has already stay as they are.

    Args:
        plan: of the suite.
        cell: the cell.
        location: of the record.
        results: of ``episodes_of``, by method; if ``video_file`` is there, with the number of its episode, ``video``.
        behaviour: success rate of the behaviour data.
        run: command, commit, machine, threads, whether it was interrupted, and seconds by node.
    """
    before = read_record(plan, cell, location) or {"behaviour": behaviour, "runs": [], "methods": {}}
    number = len(before["runs"])
    new = {
        name: {"run": number, "settings": plan.method_settings(name), **values}
        for name, values in results.items()
        if name not in before["methods"]
    }
    record = {
        **vars(cell),
        "settings": {"env": plan.suite.env, **plan.settings(cell)},
        "behaviour": before["behaviour"],
        "runs": [*before["runs"], dict(run)],
        "methods": before["methods"] | new,
    }
    text = json.dumps(record, separators=(",", ":")) + "\n"
    write_atomically(location.path, lambda path: path.write_text(text))
    location.publish()
    return record


def shown_command(command: Sequence[str], root: str, cell: Cell) -> str:
    """The command for the record, without the path of this machine."""
    return shlex.join(command).replace(root, f"data/{cell.name}")


def summary(record: Record) -> str:
    """Success rates, or mean returns, of a record, for a line."""
    parts = []
    for name, values in record["methods"].items():
        known = any(value is not None for value in values["success"])
        numbers = [value or 0 for value in values["success"]] if known else values["returns"]
        parts.append(f"{name} {sum(numbers) / len(numbers):.{2 if known else 1}f}")
    return ", ".join(parts)
