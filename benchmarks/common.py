"""Code shared by the benchmarks: runs of the pipeline, logs, records and tables."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from cvl_pipeline.api import EpisodeData, load
from cvl_pipeline.io.storage import write_atomically

PROJECT = Path(__file__).parents[1]
RESULTS = PROJECT / "benchmarks/results"


def kedro_command(*arguments: str, params: str) -> list[str]:
    """Return the command of a run of the pipeline."""
    return [str(Path(sys.executable).with_name("kedro")), "run", *arguments, "--params", params]


def kedro_run(*arguments: str, params: str) -> float:
    """Run the pipeline and return the seconds; exit the benchmark if the run fails."""
    command = kedro_command(*arguments, params=params)
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


def machine() -> str:
    """Cores, architecture and torch version, for the record."""
    return f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}"


def write_record(path: Path, **values: Any) -> dict[str, Any]:
    """Write a benchmark's results as JSON, with the command and the machine, and return them."""
    command = shlex.join(["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]])
    record = {"command": command, "machine": machine(), **values}
    text = json.dumps(record, indent=2) + "\n"
    write_atomically(path, lambda partial: partial.write_text(text))
    return record


def markdown(table: pd.DataFrame, digits: int = 3) -> str:
    """Format a table as Markdown; if ``x_ci`` exists, column ``x`` is formatted as ``x +- ci``."""
    texts = pd.DataFrame()
    for column in table.columns:
        if str(column).endswith("_ci"):
            continue
        cells = table[column]
        if pd.api.types.is_numeric_dtype(cells):
            text = cells.map(f"{{:.{digits}f}}".format)
            if f"{column}_ci" in table:
                text += table[f"{column}_ci"].map(f" ± {{:.{digits}f}}".format)
            cells = text
        texts[str(column)] = cells
    lines = ["| " + " | ".join(map(str, texts.columns)) + " |", "|" + "---|" * len(texts.columns)]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in texts.itertuples(index=False)]
    return "\n".join(lines)
