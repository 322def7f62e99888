"""Pictures of the results of each stage, as Matplotlib figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = ("#1b6ca8", "#d98e04", "#2f7d4f", "#8a4fbf", "#b3423a", "#3aa6a6", "#c26d8f", "#6b6b1f")
"""Colours of the policies, CVL first."""
BEHAVIOUR = "#7a7a7a"
"""Colour of the behaviour data."""


def _colour(position: int) -> str:
    return COLOURS[position % len(COLOURS)]


def _axes(count: int, height: float = 3.4) -> tuple[Figure, list[Axes]]:
    # A bare Figure, not pyplot: no global state, no display needed.
    figure = Figure(figsize=(4.4 * count, height), layout="constrained")
    axes = [figure.add_subplot(1, count, index + 1) for index in range(count)]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    return figure, axes


def behaviour_data(episodes: pd.DataFrame, coverage: pd.DataFrame) -> Figure:
    """Returns and lengths of solved and unsolved episodes, and the coverage of their observations."""
    figure, (returns, lengths, places) = _axes(3)
    parts = {"all episodes": (episodes, BEHAVIOUR)}
    if not episodes["success"].isna().any():
        solved = episodes["success"].astype(bool)
        parts = {"solved": (episodes[solved], "#2f7d4f"), "not solved": (episodes[~solved], "#b3423a")}
    for axis, column in ((returns, "return"), (lengths, "length")):
        bins = np.histogram_bin_edges(episodes[column].dropna(), bins=20).tolist()
        for label, (part, colour) in parts.items():
            known = part[column].dropna()
            axis.hist(known, bins=bins, alpha=0.7, color=colour, label=f"{label} ({len(known)})")
        axis.set(ylabel="episodes")
        if episodes[column].isna().all():
            axis.text(0.5, 0.5, "the log has no rewards", ha="center", transform=axis.transAxes)
    returns.set(xlabel="return of the episode (undiscounted)", title="Returns in the data")
    lengths.set(xlabel="steps", title="Lengths of episodes")
    lengths.legend(frameon=False)
    image = places.hexbin(
        coverage["first"], coverage["second"], gridsize=40, bins="log", mincnt=1, cmap="viridis"
    )
    figure.colorbar(image, ax=places, label="observations")
    places.set(
        xlabel="first principal component", ylabel="second", title="Coverage by standardised observations"
    )
    return figure


def dynamics_history(history: pd.DataFrame) -> Figure:
    """Loss, held-out accuracy in both directions and held-out mutual-information bound."""
    figure, (loss, accuracy, bound) = _axes(3)
    loss.plot(history["step"], history["train/loss"], "o-", ms=3, label="training")
    loss.plot(history["step"], history["validation/loss"], "o-", ms=3, label="held out")
    loss.set(title="Contrastive loss", ylabel="nats")
    loss.legend(frameon=False)
    for direction in ("future", "anchor"):
        values = history[f"validation/categorical_accuracy_{direction}"]
        accuracy.plot(history["step"], values, "o-", ms=3, label=f"which {direction}?")
    accuracy.set(title="Held-out categorical accuracy", ylabel="share of the batch", ylim=(0, None))
    accuracy.legend(frameon=False)
    bound.plot(history["step"], history["validation/mutual_information_bound"], "o-", ms=3)
    bound.set(title="Held-out mutual-information bound", ylabel="nats")
    for axis in (loss, accuracy, bound):
        axis.set_xlabel("gradient step")
    return figure


def values_against_returns(values: pd.DataFrame, report: Mapping[str, float | None]) -> Figure:
    """Q against held-out returns, with the calibration line, and both along three episodes."""
    figure, (scatter, course) = _axes(2, height=3.8)
    scatter.scatter(values["q"], values["return"], s=4, alpha=0.25, color=_colour(0), edgecolors="none")
    span = np.array([values["q"].min(), values["q"].max()])
    scatter.plot(span, span, ":", color="black", lw=1, label="calibrated")
    title = "Held-out transitions: values or returns are all equal"
    slope, intercept = report["slope"], report["intercept"]
    if slope is not None and intercept is not None:
        scatter.plot(
            span, slope * span + intercept, color="#b3423a", lw=1.5, label=f"fitted, slope {slope:.2f}"
        )
        title = f"Held-out transitions: Spearman {report['spearman']:.2f}, Pearson {report['pearson']:.2f}"
    scatter.set(xlabel="Q(s, a)", ylabel="discounted return", title=title)
    scatter.legend(frameon=False)
    ranked = values.groupby("episode")["return"].mean().sort_values().index
    # As a dict, so that one or two held-out episodes are drawn once.
    colours = {0: "#b3423a", len(ranked) // 2: "#d98e04", len(ranked) - 1: "#2f7d4f"}
    for position, colour in colours.items():
        part = values[values["episode"] == ranked[position]]
        course.plot(part["step"], part["return"], color=colour, lw=1, ls=":")
        course.plot(part["step"], part["q"], color=colour, lw=1.5, label=f"episode {ranked[position]}")
    course.set(
        xlabel="step", ylabel="Q (solid), return (dotted)", title="Worst, middle and best held-out episode"
    )
    course.legend(frameon=False)
    return figure


def policy_histories(histories: Mapping[str, pd.DataFrame]) -> Figure:
    """Training loss of each policy, each on its own scale, and held-out distance to the logged actions."""
    figure, (*losses, error) = _axes(len(histories) + 1)
    for position, (loss, (name, history)) in enumerate(zip(losses, histories.items(), strict=True)):
        style: dict[str, Any] = {
            "color": _colour(position), "label": name, "marker": "o", "markersize": 3
        }  # fmt: skip
        loss.plot(history["step"], history["train/loss"], **style)
        loss.set(title=f"{name}: training loss", xlabel="gradient step")
        if "validation/action_error" in history:  # a method of the user's own may not measure it
            error.plot(history["step"], history["validation/action_error"], **style)
    error.set(title="Held-out squared distance to logged actions", xlabel="gradient step", ylim=(0, None))
    error.legend(frameon=False)
    return figure


def comparison(metrics: Mapping[str, Any]) -> Figure:
    """Success rate and mean return of all policies and the behaviour data, with their intervals."""
    rows = {**metrics["methods"], "behaviour": "behaviour"}
    figure, axes = _axes(2, height=3.6)
    figure.set_figwidth(max(8.8, 2.0 * len(rows)))
    panels = (("success_rate", "success rate"), ("return_mean", "mean return (undiscounted)"))
    for axis, (metric, label) in zip(axes, panels, strict=True):
        for position, key in enumerate(rows):
            mean, low, high = (metrics[f"{key}.{metric}{end}"] for end in ("", "_ci_low", "_ci_high"))
            if mean is None:
                axis.text(position, 0.0, "n/a", ha="center", va="bottom")
                continue
            colour = BEHAVIOUR if key == "behaviour" else _colour(position)
            axis.bar(position, mean, color=colour, width=0.65)
            axis.errorbar(position, mean, [[mean - low], [high - mean]], color="black", capsize=4, lw=1.2)
        axis.set_xticks(range(len(rows)), list(rows.values()))
        axis.set(ylabel=label)
        axis.grid(axis="x", visible=False)
    axes[0].set_ylim(0, 1.05)
    figure.suptitle(
        f"{metrics['dataset']}, seed {metrics['seed']}: {metrics['episodes']} evaluation episodes, "
        f"{100 * metrics['confidence']:g} % intervals",
        fontsize=10,
        parse_math=False,  # a name is no formula
    )
    return figure
