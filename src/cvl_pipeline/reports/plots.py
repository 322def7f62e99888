"""Pictures of the results of each stage, as Matplotlib figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cvl_pipeline.reports.series import BAD, BEHAVIOUR, CRITIC, PALETTE, edges, extremes, groups


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
    for axis, column in ((returns, "return"), (lengths, "length")):
        bins = edges(episodes, column).tolist()
        for label, colour, values in groups(episodes, column):
            axis.hist(values, bins=bins, alpha=0.7, color=colour, label=label)
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
    figure, axes = _axes(len(CRITIC))
    for axis, (title, (lines, unit)) in zip(axes, CRITIC.items(), strict=True):
        for colour, (column, label) in zip(PALETTE, lines.items(), strict=False):
            if column in history:
                axis.plot(history["step"], history[column], "o-", ms=3, color=colour, label=label)
        axis.set(title=title, xlabel="gradient step", ylabel=unit)
        if len(lines) > 1:
            axis.legend(frameon=False)
    return figure


def values_against_returns(values: pd.DataFrame, report: Mapping[str, float | None]) -> Figure:
    """Q against held-out returns, with the calibration line, and both along three episodes."""
    figure, (scatter, course) = _axes(2, height=3.8)
    scatter.scatter(values["q"], values["return"], s=4, alpha=0.25, color=PALETTE[0], edgecolors="none")
    span = np.array([values["q"].min(), values["q"].max()])
    scatter.plot(span, span, ":", color="black", lw=1, label="calibrated")
    title = "Held-out transitions: values or returns are all equal"
    slope, intercept = report["slope"], report["intercept"]
    if slope is not None and intercept is not None:
        scatter.plot(span, slope * span + intercept, color=BAD, lw=1.5, label=f"fitted, slope {slope:.2f}")
        title = f"Held-out transitions: Spearman {report['spearman']:.2f}, Pearson {report['pearson']:.2f}"
    scatter.set(xlabel="Q(s, a)", ylabel="discounted return", title=title)
    scatter.legend(frameon=False)
    for name, colour, part in extremes(values):
        course.plot(part["step"], part["return"], color=colour, lw=1, ls=":")
        course.plot(part["step"], part["q"], color=colour, lw=1.5, label=name)
    course.set(
        xlabel="step", ylabel="Q (solid), return (dotted)", title="Worst, middle and best held-out episode"
    )
    course.legend(frameon=False)
    return figure


def policy_histories(
    histories: Mapping[str, pd.DataFrame], titles: Mapping[str, str], colours: Mapping[str, str]
) -> Figure:
    """Training loss of each policy, each on its own scale, and held-out distance to the logged actions.

    Args:
        histories: of the policies, by method.
        titles: of the methods.
        colours: of the methods.
    """
    figure, (*losses, error) = _axes(len(histories) + 1)
    for loss, (name, history) in zip(losses, histories.items(), strict=True):
        style: dict[str, Any] = {
            "color": colours[name], "label": titles[name], "marker": "o", "markersize": 3
        }  # fmt: skip
        loss.plot(history["step"], history["train/loss"], **style)
        loss.set(xlabel="gradient step")
        loss.set_title(f"{titles[name]}: training loss", parse_math=False)  # a name is no formula
        if "validation/action_error" in history:  # a method of the user's own may not measure it
            error.plot(history["step"], history["validation/action_error"], **style)
    error.set(title="Held-out squared distance to logged actions", xlabel="gradient step", ylim=(0, None))
    for text in error.legend(frameon=False).get_texts():
        text.set_parse_math(False)
    return figure


def comparison(metrics: Mapping[str, Any], colours: Mapping[str, str]) -> Figure:
    """Success rate and mean return of all policies and the behaviour data, with their intervals.

    Args:
        metrics: of the evaluation.
        colours: of its methods.
    """
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
            axis.bar(position, mean, color=colours.get(key, BEHAVIOUR), width=0.65)
            axis.errorbar(position, mean, [[mean - low], [high - mean]], color="black", capsize=4, lw=1.2)
        axis.set_xticks(range(len(rows)), list(rows.values()), parse_math=False)
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
