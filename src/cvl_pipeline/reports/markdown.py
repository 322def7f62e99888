"""Tables as Markdown."""

from __future__ import annotations

import pandas as pd


def markdown(table: pd.DataFrame, digits: int = 3) -> str:
    """Format a table as Markdown; if ``x_ci`` exists, column ``x`` is formatted as ``x +- ci``."""
    texts = pd.DataFrame()
    for column in table.columns:
        if str(column).endswith("_ci") and str(column).removesuffix("_ci") in table:
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
