"""Put the tables of suites into the docs, from the records in benchmarks/results: metaworld-50 and rivals.

Run ``python -m benchmarks.reports``. It takes seconds: nothing is trained.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.common import PROJECT, RESULTS, write_section

RIVALS = "cvl,filtered_bc,mc_awr,sarsa,iql,iql__beta10"
SUITES = {
    "metaworld-50": (
        "docs/metaworld.md",
        ["--presets", "mixed", "--methods", "cvl,bc,filtered_bc,iql,mc_awr"],
    ),
    "rivals": (
        "docs/benchmarks.md",
        [
            "--set", "test", "--seeds", "10", "--presets", "mixed,noisy,fragments,play,expert_few,sparse",
            "--methods", RIVALS,
        ],
    ),
}  # fmt: skip
"""The page of each suite, and the part of the suite that the page has."""


def main() -> None:
    """Write the report of the records at hand of each suite, then its page."""
    kedro = str(Path(sys.executable).with_name("kedro"))
    for name, (page, part) in SUITES.items():
        status = subprocess.run([kedro, "suite", "report", name, *part], cwd=PROJECT, check=False).returncode
        if status:
            sys.exit(status)
        picture = (RESULTS / name / "report.png").relative_to(PROJECT)
        text = (RESULTS / name / "report.md").read_text().strip().replace("(report.png)", f"(../{picture})")
        write_section(PROJECT / page, name, text)


if __name__ == "__main__":
    main()
