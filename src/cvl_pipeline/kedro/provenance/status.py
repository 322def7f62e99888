"""The table of ``kedro artifacts status``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cvl_pipeline.errors import InputError, printable
from cvl_pipeline.kedro.commands import kedro_run
from cvl_pipeline.kedro.provenance.states import Provenance

COLOURS = {"fresh": "green", "stale": "yellow", "missing": "cyan", "damaged": "red"}


def print_status(
    provenance: Provenance,
    names: Container[str],
    explain: bool,
    refusal: InputError | None = None,
    pipelines: Sequence[str] = (),
) -> None:
    """Print the states of artifacts, in the order of a run, and how to recreate those that are not fresh.

    Args:
        provenance: of all artifacts.
        names: of the artifacts to list.
        explain: print every reason, with old and new values; otherwise, the main reason in a few words.
        refusal: with which a run would stop; None: it would recreate the artifacts.
        pipelines: that were chosen, for the command that is advised.
    """
    table = Table("artifact", "state", "why")
    counts: Counter[str] = Counter()
    for name, state in provenance.states().items():
        if name not in names or provenance.path(name) is None:
            continue
        counts[state.name] += 1
        why = "\n".join(state.reasons) if explain else state.why
        # As text, because a parameter's value may look like markup.
        table.add_row(name, Text(state.name, COLOURS[state.name]), Text(why))
    console = Console()
    console.print(table)
    summary = ", ".join(f"{counts[name]} {name}" for name in COLOURS if counts[name])
    console.print(f"{counts.total()} artifacts: {summary}", highlight=False)
    if counts.total() > counts["fresh"]:
        chosen = ("--pipelines", ",".join(pipelines)) if pipelines else ()
        advice = f"To recreate the others: {kedro_run('--only-missing-outputs', *chosen)}"
        if refusal is not None:
            advice = f"A run would stop: {printable(str(refusal))}"
        console.print(advice, highlight=False, soft_wrap=True, markup=False)
