"""Put the tables of the suite metaworld-50 into docs/metaworld.md, from the records in benchmarks/results/metaworld-50.

Run ``python -m benchmarks.metaworld``. It takes seconds: nothing is trained.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.common import PROJECT, RESULTS, write_section

PAGE = PROJECT / "docs/metaworld.md"
RECORDS = RESULTS / "metaworld-50"
PART = ("--presets", "mixed", "--methods", "cvl,bc,filtered_bc,iql,mc_awr")
"""The part of the suite that the page has."""


def main() -> None:
    """Write the report of the records at hand, then the page."""
    kedro = str(Path(sys.executable).with_name("kedro"))
    status = subprocess.run(
        [kedro, "suite", "report", "metaworld-50", *PART], cwd=PROJECT, check=False
    ).returncode
    if status:
        sys.exit(status)
    picture = (RECORDS / "report.png").relative_to(PROJECT)
    text = (RECORDS / "report.md").read_text().strip().replace("(report.png)", f"(../{picture})")
    write_section(PAGE, "metaworld", text)


if __name__ == "__main__":
    main()
