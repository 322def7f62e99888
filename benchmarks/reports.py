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


def section(name: str, records: Path) -> str:
    """Write the report of a suite's records at hand, beside them, and return it as a section of its page."""
    command = [str(Path(sys.executable).with_name("kedro")), "suite", "report", name, *SUITES[name][1]]
    command += ["--records", str(records)]
    status = subprocess.run(command, cwd=PROJECT, check=False).returncode
    if status:
        sys.exit(status)
    picture = (RESULTS / name / "report.png").relative_to(PROJECT)
    return (records / "report.md").read_text().strip().replace("(report.png)", f"(../{picture})")


def main() -> None:
    """Write the page of each suite."""
    for name, (page, _) in SUITES.items():
        write_section(PROJECT / page, name, section(name, RESULTS / name))


if __name__ == "__main__":
    main()
