"""Put the tables of suites into the docs, from the records in benchmarks/results: metaworld-50 and rivals.

Run ``python -m benchmarks.reports``. It takes seconds: nothing is trained.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.common import PROJECT, RESULTS, write_section

TEST = ["--set", "test"]
SECTIONS = {
    "metaworld-50": (
        "metaworld-50",
        "docs/metaworld.md",
        ["--presets", "mixed", "--methods", "cvl,bc,filtered_bc,iql,mc_awr"],
    ),
    "rivals-seeds": (
        "rivals",
        "docs/benchmarks.md",
        [
            *TEST, "--presets", "mixed,noisy", "--methods", "cvl,filtered_bc,mc_awr,sarsa",
        ],
    ),
    "rivals": (
        "rivals",
        "docs/benchmarks.md",
        [
            *TEST, "--seeds", "10", "--presets", "mixed,noisy,fragments,play,expert_few,sparse",
            "--methods", "cvl,filtered_bc,mc_awr,sarsa,iql,iql__beta10",
        ],
    ),
}  # fmt: skip
"""By the name of a section: the suite, its page, and the part of the suite that the section has. The last section of a
suite is the report beside its records."""


def section(name: str, records: Path) -> str:
    """Write the report of a suite's records at hand, beside them, and return it as a section of its page."""
    suite, _, part = SECTIONS[name]
    command = [str(Path(sys.executable).with_name("kedro")), "suite", "report", suite, *part]
    command += ["--records", str(records)]
    status = subprocess.run(command, cwd=PROJECT, check=False).returncode
    if status:
        sys.exit(status)
    text = (records / "report.md").read_text().strip()
    last = [other for other, (its, *_) in SECTIONS.items() if its == suite][-1]
    picture = (RESULTS / suite / "report.png").relative_to(PROJECT)
    shown = f"![profiles](../{picture})" if name == last else ""
    return text.replace("![profiles](report.png)", shown).strip()


def main() -> None:
    """Write every section."""
    for name, (suite, page, _) in SECTIONS.items():
        write_section(PROJECT / page, name, section(name, RESULTS / suite))


if __name__ == "__main__":
    main()
