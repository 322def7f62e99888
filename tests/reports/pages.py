"""Reads pages as a strict browser would."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """A parsed page; raises AssertionError unless every element is closed in order.

    Attributes:
        rows: of all tables, as texts and ``data-value`` of the cells.
        figures: of the charts, by title.
        addresses: of everything that the page loads or links to.
        text: all that a reader sees, and the scripts.
        ids: of elements.
    """

    def __init__(self, source: str) -> None:
        super().__init__()
        self.rows: list[list[tuple[str, str | None]]] = []
        self.figures: dict[str, Any] = {}
        self.addresses: list[str] = []
        self.text = ""
        self.ids: list[str] = []
        self._open: list[str] = []
        assert source.startswith("<!DOCTYPE html>")
        # Nothing from a network, not even from a style or a script of the page's own.
        assert not re.search(r"https?:|url\(|@import|//cdn", source)
        self.feed(source)
        self.close()
        assert self._open == []
        assert len(set(self.ids)) == len(self.ids)
        assert {address[1:] for address in self.addresses if address.startswith("#")} <= set(self.ids)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self._open.append(tag)
        given = dict(attrs)
        assert len(given) == len(attrs), f"an attribute twice: {attrs}"
        self.addresses += [str(given[name]) for name in ("src", "href") if name in given]
        if given.get("id"):
            self.ids.append(str(given["id"]))
        if "data-figure" in given:
            self.figures[str(given["aria-label"])] = json.loads(
                str(given["data-figure"]), parse_constant=_refuse
            )
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append(("", given.get("data-value")))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        self.text += data
        if {"td", "th"} & set(self._open):
            text, value = self.rows[-1][-1]
            self.rows[-1][-1] = (text + data, value)

    def table(self, heading: str) -> dict[str, list[tuple[str, str | None]]]:
        """Return the rows of the table whose first heading this is, by the text of their first cell."""
        start = next(index for index, row in enumerate(self.rows) if row[0][0] == heading)
        width, rows = len(self.rows[start]), {}
        headings = [row for row in self.rows[start + 1 :] if row[0][1] is None and len(row) != width]
        stop = self.rows.index(headings[0]) if headings else len(self.rows)
        for row in self.rows[start + 1 : stop]:
            rows[row[0][0]] = row[1:]
        return rows


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def check_numbers(page: Page, metrics: dict[str, Any]) -> None:
    """Compare the table of results with ``metrics.json``."""
    table = page.table("Policy")
    largest = max(abs(metrics[f"{key}.return_mean"] or 0.0) for key in (*metrics["methods"], "behaviour"))
    decimals = 0 if largest >= 100.0 else 1 if largest >= 10.0 else 2
    for key, title in {**metrics["methods"], "behaviour": "behaviour data"}.items():
        episodes, success, returns = table[title][:3]
        wanted = metrics["behaviour_episodes" if key == "behaviour" else "episodes"]
        assert episodes == (str(wanted), str(wanted))
        for (text, value), name, digits in ((success, "success_rate", 2), (returns, "return_mean", decimals)):
            mean, low, high = (metrics[f"{key}.{name}{end}"] for end in ("", "_ci_low", "_ci_high"))
            assert value == (None if mean is None else str(mean)), "what the column is sorted by"
            shown = [f"{number:.{digits}f}" for number in (mean, low, high)] if mean is not None else []
            assert text == (f"{shown[0]} [{shown[1]}, {shown[2]}]" if shown else "n/a")
