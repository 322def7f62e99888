"""The table of ``kedro artifacts status``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cvl_pipeline.kedro.provenance.states import Provenance

COLOURS = {"fresh": "green", "stale": "yellow", "missing": "cyan", "damaged": "red"}


def print_status(provenance: Provenance, names: Container[str], explain: bool) -> None:
    """Print how artifacts stand, in the order of a run, and what to do about it.

    Args:
        provenance: of everything.
        names: of the artifacts to tell of.
        explain: every reason, with what was and what is; else the nearest in a few words.
    """
    table = Table("artifact", "state", "why")
    counts: Counter[str] = Counter()
    for name, state in provenance.states().items():
        if name not in names or provenance.path(name) is None:
            continue
        counts[state.name] += 1
        why = "\n".join(state.reasons) if explain else state.why
        # As text: what a person wrote into a parameter may look like markup.
        table.add_row(name, Text(state.name, COLOURS[state.name]), Text(why))
    console = Console()
    console.print(table)
    told = ", ".join(f"{counts[name]} {name}" for name in COLOURS if counts[name])
    console.print(f"{counts.total()} artifacts: {told}", highlight=False)
    if counts.total() > counts["fresh"]:
        console.print(
            "kedro run --only-missing-outputs (with the same --env and --params) makes what is not fresh",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
