"""Code shared by the benchmarks: runs of the pipeline, logs, records and tables."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from cvl_pipeline.api import EpisodeData, load
from cvl_pipeline.io.storage import write_atomically
from cvl_pipeline.reports.markdown import markdown as markdown
from cvl_pipeline.suites.records import commit
from cvl_pipeline.suites.records import machine as machine

PROJECT = Path(__file__).parents[1]
RESULTS = PROJECT / "benchmarks/results"


def kedro_run(*arguments: str, params: str) -> float:
    """Run the pipeline and return the seconds; exit the benchmark if the run fails."""
    command = [str(Path(sys.executable).with_name("kedro")), "run", *arguments, "--params", params]
    print(shlex.join(["kedro", *command[1:]]), flush=True)  # noqa: T201
    start = time.perf_counter()
    status = subprocess.run(command, cwd=PROJECT, check=False).returncode
    if status:
        sys.exit(status)
    return time.perf_counter() - start


def read_data(folder: Path) -> EpisodeData:
    """Read the artifacts that ``benchmarks.speed.write_log`` wrote."""
    return EpisodeData(
        *(load(folder / f"{kind}.safetensors") for kind in ("transitions", "split", "normalisation"))
    )


def half_width(error: Any, freedom: Any) -> Any:
    """Half of the 95 % interval of a mean by Student's t; NaN without degrees of freedom.

    Args:
        error: standard error of the mean, or several.
        freedom: degrees of freedom, one less than the values of a simple mean.
    """
    return stats.t.ppf(0.975, np.where(np.asarray(freedom) > 0, freedom, np.nan)) * error


def write_section(page: Path, name: str, text: str) -> None:
    """Replace what a page has between the mark ``<!-- name: ... -->`` and the mark ``<!-- end of name -->``."""
    pattern = re.compile(rf"(<!-- {name}: [^\n]* -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
    content, count = pattern.subn(lambda marks: f"{marks[1]}\n{text}\n\n{marks[2]}", page.read_text())
    if count != 1:
        raise SystemExit(f"{page} must have the marks of '{name}' once, and has them {count} times")
    write_atomically(page, lambda partial: partial.write_text(content))


SAME_RESULTS = {"workers", "jobs", "folder", "keep", "report"}
"""Options that do not change what a record is about."""


def record_path(path: Path, parser: ArgumentParser, arguments: Namespace, *others: str) -> Path:
    """Return the path of a record, or one beside it if an option makes it another one.

    So a short or partial run never replaces the record that the pages quote.

    Args:
        path: of the record with all defaults.
        parser: of the command line.
        arguments: of the command line.
        others: more names of options that change nothing.
    """
    free = SAME_RESULTS.union(others)
    changed = [
        f"--{name.replace('_', '-')}"
        for name, value in vars(arguments).items()
        if name not in free and value != parser.get_default(name)
    ]
    if not changed:
        return path
    beside = path.with_stem(f"{path.stem}_part")
    print(f"with {', '.join(changed)}, the record is {beside.name}; {path.name} stays as it is")  # noqa: T201
    return beside


def write_record(path: Path, *, measured: bool = True, **values: Any) -> dict[str, Any]:
    """Write a benchmark's results as JSON, with their origin, and return them.

    Args:
        path: of the record.
        measured: whether this command measured the results. If not, the record keeps its command, machine, commit and
            date; those that it lacks are null.
        values: the results.
    """
    # A path of this machine says nothing elsewhere.
    arguments = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    command = shlex.join(["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *arguments])
    origin = {
        "command": command,
        "machine": machine(),
        "commit": commit(PROJECT),
        "date": datetime.now(UTC).date().isoformat(),
    }
    if not measured and path.exists():
        before = json.loads(path.read_text())
        origin = {name: before.get(name) for name in origin}
    record = origin | values
    text = json.dumps(record, indent=2) + "\n"
    write_atomically(path, lambda partial: partial.write_text(text))
    return record
