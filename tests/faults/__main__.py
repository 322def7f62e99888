"""Inject faults into runs of the pipeline and count what follows that is neither right nor clearly refused.

python -m tests.faults [--workers 2] [--faults 40] [--only SIGKILL] [--seed 0]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import shutil
import tempfile
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
from benchmarks.common import RESULTS, machine, markdown

from tests.faults.judge import Verdict, judge
from tests.faults.plan import Fault, make_plan
from tests.faults.references import TRAININGS, References, make_references
from tests.faults.runs import PARAMETERS, preload
from tests.faults.surroundings import LOG, make_edited, make_logs

WORDS = ("right", "clear", "wrong", "hung")


def main(arguments: list[str] | None = None) -> int:
    """Run the bench; 0 if nothing was wrong and nothing hung."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of moments, places and kinds")
    parser.add_argument("--faults", type=int, help="draw so many of all, and keep no record")
    parser.add_argument("--only", default="", help="faults whose kind has these words, and keep no record")
    parser.add_argument("--workers", type=int, default=1, help="faults at a time")
    options = parser.parse_args(arguments)
    preload()
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        references = make_references(Path(folder))
        references = replace(
            references, edited=make_edited(Path(folder), references.newer), logs=make_logs(Path(folder))
        )
        plan = [fault for fault in make_plan(references) if options.only in fault.kind]
        if options.faults is not None:
            plan = random.Random(options.seed).sample(plan, options.faults)
        verdicts = inject(plan, references, Path(folder), options.seed, options.workers)
    results = list(zip(plan, verdicts, strict=True))
    table = tabulate(results)
    counts = Counter(verdict.word for verdict in verdicts)
    for fault, verdict in results:
        if verdict.word in ("wrong", "hung"):
            print(f"{verdict.word}: {fault}: {verdict.reason}")  # noqa: T201
    print(markdown(table, digits=0))  # noqa: T201
    if options.faults is None and not options.only:
        record = {
            "command": f"python -m tests.faults --seed {options.seed} --workers {options.workers}",
            "machine": machine(), "parameters": PARAMETERS, "minutes": (time.monotonic() - start) / 60,
            "faults": len(plan), **{word: counts[word] for word in WORDS}, "table": table.to_dict("records"),
        }  # fmt: skip
        (RESULTS / "faults.json").write_text(json.dumps(record, indent=2) + "\n")
    print(f"faults={len(plan)} wrong={counts['wrong']} hung={counts['hung']}")  # noqa: T201
    return int(counts["wrong"] + counts["hung"] > 0)


def inject(
    plan: list[Fault], references: References, folder: Path, seed: int, workers: int = 1
) -> list[Verdict]:
    """What became of each fault."""
    work = partial(_judge_one, references=references, folder=folder, seed=seed)
    verdicts = []
    # Forked, so that each has the imports, and forks its runs in turn.
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        for number, verdict in enumerate(pool.imap(work, enumerate(plan)), start=1):
            verdicts.append(verdict)
            if verdict.word in ("wrong", "hung") or number % 20 == 0:
                print(f"{number}/{len(plan)} {plan[number - 1]}: {verdict.word}", flush=True)  # noqa: T201
    return verdicts


def _judge_one(numbered: tuple[int, Fault], references: References, folder: Path, seed: int) -> Verdict:
    number, fault = numbered
    # Each draws for itself: the same whichever process it is judged in.
    verdict = judge(fault, references, folder / f"fault-{number}", random.Random(f"{seed} {number} {fault}"))
    shutil.rmtree(folder / f"fault-{number}")
    return verdict


def tabulate(results: list[tuple[Fault, Verdict]]) -> pd.DataFrame:
    """How often each fault came to pass in each stage, and what followed."""
    rows: dict[tuple[str, str], Counter[str]] = {}
    for fault, verdict in results:
        of = "checkpoint" if fault.target in TRAININGS else "artifact" if fault.target else ""
        of = "log" if fault.target == LOG else of
        kind = f"{of}: {fault.kind}" if of else fault.kind
        rows.setdefault((fault.stage or "all", kind), Counter())[verdict.word] += 1
    return pd.DataFrame(
        [
            {"stage": stage, "kind": kind, "faults": counts.total(), **{word: counts[word] for word in WORDS}}
            for (stage, kind), counts in rows.items()
        ]
    )


if __name__ == "__main__":
    raise SystemExit(main())
