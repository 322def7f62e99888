"""What the benchmarks share: the pipeline's defaults, where results are kept, how tables look."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml

PROJECT = Path(__file__).parents[1]
RESULTS = PROJECT / "benchmarks/results"


def defaults(stage: str, environment: str | None = None) -> dict[str, Any]:
    """The pipeline's default parameters of a stage, or those of an environment, a folder of conf/."""
    merged: dict[str, Any] = {}
    for folder in filter(None, ["base", environment]):
        for file in sorted((PROJECT / "conf" / folder).glob("parameters*.yml")):
            merged = _merged(merged, yaml.safe_load(file.read_text()))
    values: dict[str, Any] = merged[stage]
    return values


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Field by field, as the configuration loader does it."""
    return base | {
        name: _merged(base[name], value) if isinstance(value, dict) and name in base else value
        for name, value in changes.items()
    }


def machine() -> str:
    """Cores, architecture and torch version, for the record."""
    return f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}"


def markdown(table: pd.DataFrame, digits: int = 3) -> str:
    """A table whose column ``x`` is joined with ``x_ci``, where there is one, as ``x +- ci``."""
    shown = pd.DataFrame()
    for column in table.columns:
        if str(column).endswith("_ci"):
            continue
        cells = table[column]
        if pd.api.types.is_numeric_dtype(cells):
            text = cells.map(f"{{:.{digits}f}}".format)
            if f"{column}_ci" in table:
                text += table[f"{column}_ci"].map(f" ± {{:.{digits}f}}".format)
            cells = text
        shown[str(column)] = cells
    lines = ["| " + " | ".join(map(str, shown.columns)) + " |", "|" + "---|" * len(shown.columns)]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in shown.itertuples(index=False)]
    return "\n".join(lines)
