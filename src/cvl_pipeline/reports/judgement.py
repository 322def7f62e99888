"""The judgement from the log alone as a table, for the terminal, the page of a run and the card of a policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

BEHAVIOUR = "behaviour"
COLUMNS = {
    "agreement": "Agreement",
    "log_likelihood": "Log-likelihood",
    "action_error": "Action error",
    "advantage": "Advantage",
    "fqe_value": "Value (FQE)",
    "fqe_gain": "Gain (FQE)",
    "action_rank": "Rank of actions",
    "visited_rank": "Rank of states",
}
"""Short headings, in their order; a column that no policy has is left out."""
MEANINGS = {
    "agreement": "Held-out logged actions that the policy repeats, as a share",
    "log_likelihood": "Log-likelihood of held-out logged actions, in nats per action",
    "action_error": "Error against held-out logged actions, in their standard deviations",
    "advantage": "Advantage over logged actions, by critics of other episodes",
    "fqe_value": "Discounted return from held-out first states, by fitted Q evaluation",
    "fqe_gain": "The same minus what was logged from there",
    "fqe_clipped": "Share of the values of next steps outside of the range that rewards allow",
    "action_rank": "Actions' distance from the log: rank among logged ones (0.5: alike)",
    "action_outside": "Actions farther from the log than 95 % of logged ones, as a share (0.05: alike)",
    "visited_rank": "Next states' distance from the log: rank among logged ones (0.5: alike)",
    "visited_outside": "Next states farther than 95 % of those after logged actions, as a share (0.05: alike)",
}
"""Every number in words."""


class Number(NamedTuple):
    """A number as a text, and by which it is sorted."""

    text: str
    value: float | None


def number(judgement: Mapping[str, Any], name: str) -> Number:
    """Format a number and its interval, if it has one."""
    value, low, high = (judgement.get(f"{name}{end}") for end in ("", "_ci_low", "_ci_high"))
    if value is None:
        return Number("n/a", None)
    interval = "" if low is None or high is None else f" [{low:.3g}, {high:.3g}]"
    return Number(f"{value:.3g}{interval}", float(value))


def judgement_table(judgement: Mapping[str, Any]) -> tuple[list[str], list[tuple[str, list[Number]]]]:
    """Headings of the columns, and a row for every policy and the behaviour: its name and its numbers."""
    names = list(judgement["methods"])
    columns = [key for key in COLUMNS if any(judgement.get(f"{name}.{key}") is not None for name in names)]
    rows = [(name, [number(judgement, f"{name}.{key}") for key in columns]) for name in names]
    logged = [
        number(judgement, f"{BEHAVIOUR}.value") if key == "fqe_value" else Number("", None) for key in columns
    ]
    return [COLUMNS[key] for key in columns], [*rows, (BEHAVIOUR, logged)]


def numbers_of(judgement: Mapping[str, Any], name: str) -> list[tuple[str, str]]:
    """All numbers of one policy, and the value of the behaviour, in words."""
    level = f"{100 * judgement['confidence']:g} % interval"
    rows = [
        (text, number(judgement, f"{name}.{key}").text)
        for key, text in MEANINGS.items()
        if judgement.get(f"{name}.{key}") is not None
    ]
    logged = number(judgement, f"{BEHAVIOUR}.value").text
    return [*rows, ("Discounted return of held-out episodes, as logged", logged), ("Brackets", level)]


def sentences(judgement: Mapping[str, Any]) -> Sequence[str]:
    """What each measure says, and what it cannot say."""
    return list(judgement["measures"].values())
