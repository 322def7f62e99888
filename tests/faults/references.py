"""What undisturbed runs make: the contents that every faulty one is compared with."""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kedro.io import DataCatalog

from cvl_pipeline.kedro.pipeline_registry import register_stages
from cvl_pipeline.kedro.provenance.records import record_path
from tests.faults.injections import end, note_calls, watched
from tests.faults.runs import ENVIRONMENT, OLDER, Outcome, command, make_project, run
from tests.kedro.sessions import make_loader, path_of

Contents = dict[str, bytes]
"""Files by their paths from the project's folder on."""
RECORD = ".made.json"
STAGES = {name: stage for name, stage in register_stages().items() if stage.nodes}  # judging: a log alone
CHECKPOINT = "checkpoint of "
TRAININGS = {
    f"{CHECKPOINT}critic": "contrastive_dynamics",
    f"{CHECKPOINT}cvl": "policy_extraction",
    f"{CHECKPOINT}bc": "policy_extraction",
}
"""The stage of each training that can be resumed."""


@dataclass(frozen=True)
class References:
    """What undisturbed runs made, and how.

    Attributes:
        older: artifacts of an earlier run with other parameters.
        newer: artifacts of the run.
        paths: of each artifact.
        checkpoints: path and content of the state of each unfinished training.
        seconds: duration of each stage; of all, under no name.
        calls: flushes and renames of each stage, by the call.
        edited: artifacts of the run, and of another with a reward of the user's own, after its edit.
        logs: artifacts of plain logs, by the factor of their values.
    """

    older: Contents
    newer: Contents
    paths: dict[str, str]
    checkpoints: dict[str, tuple[str, bytes]]
    seconds: dict[str, float]
    calls: dict[str, Counter[str]]
    edited: Contents = field(default_factory=dict)
    logs: dict[float, Contents] = field(default_factory=dict)

    def made_by(self, stages: Iterable[str]) -> set[str]:
        """Paths of the artifacts that the stages make, and of their records."""
        names = {name for stage in stages for name in STAGES[stage].all_outputs()}
        made = {self.paths[name] for name in names}
        return made | {record for path in made if (record := record_of(path)) in self.newer}

    def at_start_of(self, stage: str) -> Contents:
        """What lies there before a stage is run: its inputs, and an earlier run's of all that follows."""
        before = list(STAGES)[: list(STAGES).index(stage)] if stage else []
        return self.older | {path: self.newer[path] for path in self.made_by(before)}


def artifacts(root: Path) -> Contents:
    """Every artifact of a project and its record, damaged or not.

    No log, no checkpoint, no lock, nothing in a temporary place. Of a record, what it says: a blank that is
    another is no damage.
    """
    found = {path.relative_to(root): path for path in (root / "data").rglob("*") if path.is_file()}
    return {
        str(relative): _said(path) if path.name.endswith(RECORD) else path.read_bytes()
        for relative, path in found.items()
        if not {"logs", "checkpoints", ".locks"} & set(relative.parts)
        and not any(part.startswith(".partial-") for part in relative.parts)
    }


def _said(record: Path) -> bytes:
    content = record.read_bytes()
    try:
        return json.dumps(json.loads(content), sort_keys=True).encode()
    except ValueError:
        return content


def record_of(path: str) -> str:
    """Path of the record of an artifact."""
    return str(record_path(Path(path)))


def lay(root: Path, contents: Mapping[str, bytes]) -> None:
    """Give a project these files."""
    for name, content in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def make_references(folder: Path) -> References:
    """Run everything undisturbed, and every training until it is saved for the first time.

    Raises:
        RuntimeError: a run failed, or two made different bytes.
    """
    older, newer, again = (make_project(folder / name) for name in ("older", "newer", "again"))
    _succeed(run(older, command(parameters=OLDER)))
    seconds = {"": _succeed(run(newer, command())).seconds}
    content = artifacts(newer)
    calls = {}
    _succeed(run(again, command()))
    if artifacts(again) != content:
        raise RuntimeError("two undisturbed runs made different bytes")
    for stage in STAGES:
        record = folder / f"{stage}.calls"
        record.write_text("")
        seconds[stage] = _succeed(run(again, command([stage]), note_calls(record))).seconds
        calls[stage] = Counter(line.split()[0] for line in record.read_text().splitlines())
    if artifacts(again) != content:
        raise RuntimeError("stages run apart made different bytes")
    return References(artifacts(older), content, _paths(), _interrupted(newer), seconds, calls)


def _succeed(outcome: Outcome) -> Outcome:
    if outcome.status != 0:
        raise RuntimeError(f"an undisturbed run ended with {outcome.status}:\n{outcome.output}")
    return outcome


def _paths() -> dict[str, str]:
    catalog = DataCatalog.from_config(make_loader(env=ENVIRONMENT)["catalog"])
    made = sorted(name for stage in STAGES.values() for name in stage.all_outputs())
    return {name: str(path_of(catalog, name)) for name in made}


def _interrupted(root: Path) -> dict[str, tuple[str, bytes]]:
    """The first checkpoint of each training; ends in a project without any."""
    found = {}
    for training, stage in TRAININGS.items():
        name = training.removeprefix(CHECKPOINT)

        def end_after_saving(call: str, path: Path, done: bool, name: str = name) -> None:
            if (call, path.name, done) == ("rename", "last.ckpt", True) and name in path.parts:
                end(signal.SIGKILL)(path)

        run(root, command([stage]), watched(end_after_saving))
        (saved,) = (root / "data").rglob(f"checkpoints/{name}/*/*/last.ckpt")
        found[training] = (str(saved.relative_to(root)), saved.read_bytes())
        _succeed(run(root, command([stage])))
    return found
