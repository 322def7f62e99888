"""docs/metrics.md explains every number that a run writes."""

from __future__ import annotations

import csv
import json
import re

from tests.integration.conftest import DATASET, FinishedRun
from tests.project import PROJECT

PAGE = (PROJECT / "docs/metrics.md").read_text()
NAMES = set(re.findall(r"`([^`]+)`", PAGE))


def _explained(name: str) -> bool:
    for policy in ("cvl", "bc", "behaviour"):
        name = re.sub(rf"^{policy}\.", "<policy>.", name)
    stem = re.sub(r"_ci_(low|high)$", "", name)
    return name in NAMES or stem in NAMES


def test_every_key_of_the_reports_is_explained(finished: FinishedRun) -> None:
    for report in ("metrics", "value_report", "dynamics_report", "data_report"):
        content = json.loads(finished.project.artifact(f"{report}.json").read_text())
        for name in content:
            assert _explained(name), (report, name)


def test_every_column_of_metrics_csv_is_explained(finished: FinishedRun) -> None:
    folder = finished.project.root / "data/08_reporting" / DATASET / "logs"
    tables = sorted(folder.glob("*/metrics.csv"))
    assert [path.parent.name for path in tables] == ["bc", "critic", "cvl"]
    for path in tables:
        with path.open() as file:
            for name in next(csv.reader(file)):
                assert _explained(name), (path.parent.name, name)


def test_metrics_of_other_objectives_and_baselines_are_explained() -> None:
    """Each recorded metric of src/cvl_pipeline/objectives and methods, by its name in the code."""
    recorded = set()
    for path in [
        *(PROJECT / "src/cvl_pipeline/objectives").glob("*.py"),
        *(PROJECT / "src/cvl_pipeline/methods").glob("*.py"),
    ]:
        for line in re.findall(r"(?:return .*, |metrics = )\{(\".*)\}$", path.read_text(), re.MULTILINE):
            recorded |= set(re.findall(r"\"(\w+)\":", line))
    assert {
        "q",
        "gain",
        "weight_mean",
        "weight_max",
        "advantage_std",
        "gap",
        "closeness",
        "cloning_error",
    } <= recorded
    for name in recorded:
        assert f"train/{name}" in NAMES, name
