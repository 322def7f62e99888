"""Code shared by the benchmarks: the pipeline's defaults, the results folder and table formatting."""

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
    """Default parameters of a stage of the pipeline; ``environment`` names a folder of conf/ to add."""
    merged: dict[str, Any] = {}
    for folder in filter(None, ["base", environment]):
        for file in sorted((PROJECT / "conf" / folder).glob("parameters*.yml")):
            merged = _merged(merged, yaml.safe_load(file.read_text()))
    values: dict[str, Any] = merged[stage]
    return values


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Merge field by field, as the configuration loader does."""
    return base | {
        name: _merged(base[name], value) if isinstance(value, dict) and name in base else value
        for name, value in changes.items()
    }


def machine() -> str:
    """Cores, architecture and torch version, for the record."""
    return f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}"


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
