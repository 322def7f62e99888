"""What the charts of pages and the pictures of stages share: their colours, and the parts of the tables they draw."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from numpy.typing import NDArray

BEHAVIOUR = "#8b939c"
"""Colour of the behaviour data; readable on white and on black, like the others."""
PALETTE = (
    "#2f7fd0", "#e08214", "#2f9e5b", "#9a67d8", "#d9534f", "#1fa3a3", "#cf6a9c", "#9c9a2a", "#a9744f", "#6b7fe3",
    "#6fae2f", "#c44fc4", "#4aa9dc", "#c98b5a", "#5fae8e", "#b06a6a",
)  # fmt: skip
"""Colours of lines; CVL has the first. See ``figures.colour`` for those of methods."""
GOOD, MIDDLE, BAD = "#2f9e5b", "#e08214", "#d9534f"
BINS = 20
"""Bars of a histogram."""

CRITIC = {
    "Contrastive loss": ({"train/loss": "training", "validation/loss": "held out"}, "nats"),
    "Held-out accuracy": (
        {f"validation/categorical_accuracy_{part}": f"which {part}?" for part in ("future", "anchor")},
        "share of the batch",
    ),
    "Held-out mutual-information bound": ({"validation/mutual_information_bound": "bound"}, "nats"),
}
"""Charts of the contrastive critic by title: names of the columns of its history, and their unit."""


def groups(episodes: pd.DataFrame, column: str) -> list[tuple[str, str, pd.Series[float]]]:
    """Split a column of episodes by success, if it is known; returns names with counts, colours and known values."""
    parts = [("all episodes", BEHAVIOUR, episodes)]
    if not episodes["success"].isna().any():
        solved = episodes["success"].astype(bool)
        parts = [("solved", GOOD, episodes[solved]), ("not solved", BAD, episodes[~solved])]
    known = [(name, colour, part[column].dropna()) for name, colour, part in parts]
    return [(f"{name} ({len(values)})", colour, values) for name, colour, values in known]


def edges(episodes: pd.DataFrame, column: str) -> NDArray[np.float64]:
    """Edges of the bins of a histogram of episodes; those from 0 to 1 if no value is known."""
    known = episodes[column].dropna().to_numpy(np.float64)
    if not len(known):
        return np.array([0.0, 1.0])
    low, high = known.min(), known.max()
    if high - low < 2 * BINS * np.spacing(
        max(abs(low), abs(high))
    ):  # the same number but for rounding: one bar
        high = low
    return np.histogram_bin_edges(known, bins=BINS, range=(low, high))


def extremes(values: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Yield the worst, the middle and the best held-out episode by mean return: name, colour and rows."""
    ranked = values.groupby("episode")["return"].mean().sort_values().index
    # As a dict, so that none of one or two episodes is yielded twice.
    colours = {0: BAD, len(ranked) // 2: MIDDLE, len(ranked) - 1: GOOD}
    for position, colour in colours.items():
        yield f"episode {ranked[position]}", colour, values[values["episode"] == ranked[position]]
