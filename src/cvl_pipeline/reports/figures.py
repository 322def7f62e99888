"""Interactive charts of pages, as plain plotly figures: nothing here imports plotly."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from cvl_pipeline.methods.base import METHODS
from cvl_pipeline.reports.series import BAD, BEHAVIOUR, CRITIC, PALETTE, edges, extremes, groups

Figure = dict[str, Any]
"""``data`` and ``layout`` of plotly. The page adds fonts and the colours of the background."""

SHOWN_VALUES = 2000
"""Points of a scatter plot; more would fill the page."""
CELLS = 40
"""Rows and columns of the map of coverage."""


def colour(method: str) -> str:
    """Return the colour of a method, the same on every page.

    Methods of this package have colours of their own. Any other name, such as one of your own, always gets the same.
    """
    known = list(METHODS.names)
    return PALETTE[known.index(method) if method in known else zlib.crc32(method.encode()) % len(PALETTE)]


def faded(hex_colour: str, opacity: float) -> str:
    """Return ``#rrggbb`` with an opacity."""
    parts = ", ".join(str(int(hex_colour[i : i + 2], 16)) for i in (1, 3, 5))
    return f"rgba({parts}, {opacity})"


def numbers(values: Iterable[Any]) -> list[float | None]:
    """Return numbers with five significant digits, and None for what is missing: JSON has no NaN."""
    return [
        float(f"{value:.5g}") if value is not None and value is not pd.NA and math.isfinite(value) else None
        for value in values
    ]


def figure(data: list[Any], x: str, y: str, **layout: Any) -> Figure:
    """Return a chart with titles of its axes."""
    axes = {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}}}
    for name in axes:
        axes[name] |= layout.pop(name, {})
    return {"data": data, "layout": {"showlegend": False, **axes, **layout}}


def line(x: Iterable[Any], y: Iterable[Any], name: str, shade: str, **options: Any) -> dict[str, Any]:
    """Return a line with its points."""
    style = {"color": shade, **options.pop("line", {})}
    return {
        "type": "scatter", "mode": "lines+markers", "x": numbers(x), "y": numbers(y), "name": name, "line": style,
        "marker": {"size": 5}, **options,
    }  # fmt: skip


def intervals(
    rows: Sequence[tuple[str, str, float | None, float | None, float | None]],
    title: str,
    limits: tuple[float, float] | None = None,
) -> Figure:
    """Compare means and intervals.

    Args:
        rows: name, colour, mean, and ends of its interval; rows without a mean are left out.
        title: of the quantity.
        limits: of its axis; None: those of the intervals.
    """
    data = [
        {
            "type": "scatter", "mode": "markers", "x": numbers([mean]), "y": [name], "name": name,
            "marker": {"size": 11, "color": shade},
            "error_x": {
                "type": "data", "symmetric": False, "color": shade, "thickness": 2.5, "width": 6,
                "array": numbers([max(0.0, high - mean)]), "arrayminus": numbers([max(0.0, mean - low)]),
            },
        }
        for name, shade, mean, low, high in rows
        if mean is not None and low is not None and high is not None
    ]  # fmt: skip
    axis = {"automargin": True, "categoryorder": "array", "categoryarray": [row[0] for row in reversed(rows)]}
    across = {"range": list(limits)} if limits else {}
    return figure(data, title, "", xaxis=across, yaxis=axis, height=110 + 34 * len(rows))


def histories(
    tables: Mapping[str, pd.DataFrame], titles: Mapping[str, str], column: str, title: str
) -> Figure:
    """Draw a metric over gradient steps.

    Args:
        tables: by method; those without the column are left out.
        titles: of the methods.
        column: of the metric.
        title: of the metric.
    """
    data = [
        line(table["step"], table[column], titles[name], colour(name))
        for name, table in tables.items()
        if column in table
    ]
    return figure(data, "gradient step", title, showlegend=len(data) > 1)


def critic(history: pd.DataFrame) -> list[tuple[str, Figure]]:
    """Loss, accuracy and bound of the contrastive critic."""
    step = history["step"]
    return [
        (
            title,
            figure(
                [
                    line(step, history[column], name, PALETTE[index])
                    for index, (column, name) in enumerate(lines.items())
                    if column in history
                ],
                "gradient step",
                unit,
                showlegend=len(lines) > 1,
            ),
        )
        for title, (lines, unit) in CRITIC.items()
    ]


def histogram(episodes: pd.DataFrame, column: str, title: str) -> Figure:
    """Count episodes, the solved ones apart if success is known."""
    ends = edges(episodes, column)
    data = [
        {
            "type": "bar", "name": name, "marker": {"color": shade, "opacity": 0.85},
            "x": numbers((ends[1:] + ends[:-1]) / 2), "width": float(ends[1] - ends[0]),
            "y": np.histogram(values, bins=ends)[0].tolist(),
        }
        for name, shade, values in groups(episodes, column)
    ]  # fmt: skip
    return figure(data, title, "episodes", barmode="stack", bargap=0, showlegend=True)


def coverage(places: pd.DataFrame) -> Figure:
    """Map where observations are, in their first two principal components."""
    counts, first, second = np.histogram2d(places["first"], places["second"], bins=CELLS)
    data = [
        {
            "type": "heatmap", "colorscale": "Viridis", "x": numbers((first[1:] + first[:-1]) / 2),
            "y": numbers((second[1:] + second[:-1]) / 2),
            "z": [numbers(math.log10(count) if count else None for count in row) for row in counts.T],
            "colorbar": {"thickness": 8},
        }
    ]  # fmt: skip
    return figure(data, "first principal component", "second")


def values_against_returns(values: pd.DataFrame, report: Mapping[str, float | None]) -> Figure:
    """Draw Q against held-out returns, with the line of perfect calibration and the fitted one."""
    shown = values.iloc[:: max(1, math.ceil(len(values) / SHOWN_VALUES))]
    marker = {"color": colour("cvl"), "size": 4, "opacity": 0.5}
    data: list[dict[str, Any]] = [
        {"type": "scatter", "mode": "markers", "x": numbers(shown["q"]), "y": numbers(shown["return"]),
         "name": "held-out transition", "marker": marker}
    ]  # fmt: skip
    ends = np.array([values["q"].min(), values["q"].max()], np.float64)
    data.append(line(ends, ends, "calibrated", BEHAVIOUR, mode="lines", line={"dash": "dot"}))
    slope, intercept = report["slope"], report["intercept"]
    if slope is not None and intercept is not None:
        data.append(line(ends, slope * ends + intercept, f"fitted, slope {slope:.2f}", BAD, mode="lines"))
    return figure(data, "Q(s, a)", "discounted return", showlegend=True)


def values_in_episodes(values: pd.DataFrame) -> Figure:
    """Draw Q and return along the worst, the middle and the best held-out episode."""
    data = []
    for name, shade, part in extremes(values):
        data += [
            line(part["step"], part["q"], f"{name}, Q", shade, mode="lines"),
            line(part["step"], part["return"], f"{name}, return", shade, mode="lines", line={"dash": "dot"}),
        ]
    return figure(data, "step", "Q (solid), return (dotted)", showlegend=True)


def profiles(thresholds: Sequence[float], lines: Mapping[str, tuple[Any, Any, Any]], title: str) -> Figure:
    """Draw performance profiles with their bands.

    Args:
        thresholds: of the score.
        lines: shares of runs above each threshold, and the ends of their intervals, by method.
        title: of the score.
    """
    data: list[dict[str, Any]] = []
    x = numbers(thresholds)
    for name, (value, low, high) in lines.items():
        shade = colour(name)
        band = {"type": "scatter", "mode": "lines", "x": x, "line": {"width": 0}, "hoverinfo": "skip"}
        group = {"legendgroup": name}
        data += [
            {**band, **group, "y": numbers(low), "showlegend": False},
            {**band, **group, "y": numbers(high), "showlegend": False, "fill": "tonexty",
             "fillcolor": faded(shade, 0.14)},
            {**group, **line(thresholds, value, name, shade, mode="lines")},
        ]  # fmt: skip
    return figure(
        data,
        f"{title} t",
        "share of runs above t",
        showlegend=True,
        yaxis={"range": [-0.02, 1.02]},
        height=420,
    )


def against_time(points: Sequence[tuple[str, float, float, float, float]], title: str) -> Figure:
    """Draw scores against seconds of training.

    Args:
        points: method, seconds, score, and the ends of its interval.
        title: of the score.
    """
    data = [
        {
            "type": "scatter", "mode": "markers+text", "x": numbers([seconds]), "y": numbers([value]), "name": name,
            "text": [name], "textposition": "middle right", "cliponaxis": False,
            "marker": {"size": 11, "color": colour(name)},
            "error_y": {
                "type": "data", "symmetric": False, "color": colour(name), "thickness": 1.5,
                "array": numbers([max(0.0, high - value)]), "arrayminus": numbers([max(0.0, value - low)]),
            },
        }
        for name, seconds, value, low, high in points
    ]  # fmt: skip
    # Plotly's own ticks of a logarithmic axis say "2" for 20.
    ticks = [digit * 10**power for power in range(-1, 7) for digit in (1, 2, 5)]
    axis = {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}
    margin = {"l": 50, "r": 80, "t": 14, "b": 44}  # for names beside the last points
    return figure(data, "seconds of training, median", title, xaxis=axis, height=420, margin=margin)
