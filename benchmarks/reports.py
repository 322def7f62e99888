"""Put the tables of suites into the docs, from the records in benchmarks/results: metaworld-50, ogbench and rivals.

Run ``python -m benchmarks.reports``. It takes seconds: nothing is trained.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import PROJECT, RESULTS, write_section


@dataclass(frozen=True)
class Section:
    """A part of a suite, and the page that has its report.

    Attributes:
        suite: name of the suite.
        page: page of the docs.
        part: options of ``kedro suite report`` that choose the part.
        picture: whether the section shows the picture beside the records, as one section of a suite does. Its report is
            the one that stays there.
        records: folder of the records in ``benchmarks/results``; empty: the suite's name.
    """

    suite: str
    page: str
    part: tuple[str, ...]
    picture: bool = False
    records: str = ""

    @property
    def folder(self) -> Path:
        """Where the records are."""
        return RESULTS / (self.records or self.suite)


FOUR = "cvl,filtered_bc,mc_awr,sarsa"
"""The methods with three seeds in rivals."""
IQL = "iql,iql__beta10"
PRESETS = "mixed,noisy,fragments,play,expert_few,sparse"
SECTIONS = {
    "metaworld-50": Section(
        "metaworld-50", "docs/metaworld.md",
        ("--presets", "mixed", "--methods", "cvl,bc,filtered_bc,iql,mc_awr"), picture=True,
    ),
    "ogbench-single": Section(
        "ogbench", "docs/ogbench.md", ("--datasets", "pointmaze-medium", "--seeds", "0,1,2"),
    ),
    "ogbench-goals": Section(
        "ogbench", "docs/ogbench.md",
        (
            "--set", "goals", "--datasets", "pointmaze-medium-goals", "--seeds", "0,1,2", "--methods", "crl,cvl,bc",
        ),
        records="ogbench_goals",
    ),
    "rivals-tuning": Section(
        "rivals", "docs/benchmarks.md", ("--set", "tuning", "--seeds", "0", "--presets", "noisy", "--methods", FOUR),
    ),
    "rivals-seeds": Section(
        "rivals", "docs/benchmarks.md",
        ("--set", "test", "--presets", PRESETS, "--methods", FOUR),
    ),
    "rivals": Section(
        "rivals", "docs/benchmarks.md",
        ("--set", "test", "--seeds", "10", "--presets", PRESETS, "--methods", f"{FOUR},{IQL}"), picture=True,
    ),
    "rivals-all": Section(
        "rivals", "docs/benchmarks.md",
        (
            "--set", "test", "--seeds", "10", "--presets", "mixed", "--methods",
            f"{FOUR},{IQL},bc,td3_bc,rebrac,one_step_model,mopo,crl",
        ),
    ),
}  # fmt: skip


def text(section: Section, records: Path) -> str:
    """Write the report of a suite's records at hand, beside them, and return it as a section of its page."""
    command = [str(Path(sys.executable).with_name("kedro")), "suite", "report", section.suite, *section.part]
    command += ["--records", str(records)]
    status = subprocess.run(command, cwd=PROJECT, check=False).returncode
    if status:
        sys.exit(status)
    report = (records / "report.md").read_text().strip()
    picture = (RESULTS / section.suite / "report.png").relative_to(PROJECT)
    shown = f"![profiles](../{picture})" if section.picture else ""
    return report.replace("![profiles](report.png)", shown).strip()


def main() -> None:
    """Write every section; those with pictures last, because the last report of a suite stays beside its records."""
    for name, section in sorted(SECTIONS.items(), key=lambda item: item[1].picture):
        write_section(PROJECT / section.page, name, text(section, section.folder))


if __name__ == "__main__":
    main()
