"""Suites whose units are fakes. ``python -m tests.suites.fakes NAME [OPTION=VALUE ...]`` runs one."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cvl_pipeline.kedro import suites
from cvl_pipeline.suites.engine import Outcome
from cvl_pipeline.suites.plan import Plan, Unit
from tests.suites import fake_kedro

FAKE = (sys.executable, str(fake_kedro.__file__))
real_work = suites.work


def work(plan: Plan, unit: Unit, session: str, variables: Mapping[str, str]) -> Outcome:
    """The work of a worker, with the fake instead of Kedro."""
    suites.KEDRO = FAKE
    return real_work(plan, unit, session, variables)


@dataclass(frozen=True)
class Call:
    """A line of the calls that fakes note."""

    event: str
    cell: str
    process: int
    parent: int
    parameters: dict[str, str]


def calls(folder: Path) -> list[Call]:
    """All calls so far."""
    path = folder / "calls.txt"
    found = []
    for line in path.read_text().splitlines() if path.exists() else []:
        event, cell, process, parent, text = line.split(" ", 4)
        given = dict(part.split("=") for part in text.split(","))
        found.append(Call(event, cell, int(process), int(parent), given))
    return found


def run(name: str, **options: Any) -> bool:
    """Run a suite of the project in the current folder with fakes."""
    suites.work = work
    every: dict[str, Any] = dict.fromkeys(
        ("axes", "tasks", "presets", "seeds", "methods", "budget", "env", "data_root", "records", "jobs", "threads",
         "scheduler")
    )  # fmt: skip
    return not suites.run_command(name, **{**every, "params": {}, "delete_data": False, **options})


if __name__ == "__main__":
    given: dict[str, Any] = dict(part.split("=", 1) for part in sys.argv[2:])
    credentials = given.pop("credentials", None)
    parameters: dict[str, Any] = (
        {"data": {"root": given.pop("root"), "credentials": credentials}} if credentials else {}
    )
    given["jobs"] = int(given.get("jobs", 2))
    os._exit(0 if run(sys.argv[1], params=parameters, **given) else 1)
