"""What follows a fault, and whether it is right."""

from __future__ import annotations

import random
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from cvl_pipeline.kedro.provenance.records import record_path
from tests.faults import injections, surroundings
from tests.faults.plan import OF_RECORD, REMADE, Fault
from tests.faults.references import RECORD, STAGES, TRAININGS, Contents, References, artifacts, lay
from tests.faults.runs import Outcome, command, make_project, run

ENDED = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM}
SAVED = 143
"""Exit status of training that SIGTERM ended."""
BLOCK = 4096
"""Bytes that a file system in memory gives at a time."""


@dataclass(frozen=True)
class Verdict:
    """``right``: the result is the undisturbed one. ``clear``: one line said what to do, and it helped."""

    word: str
    reason: str = ""


class _WrongError(Exception):
    pass


class _HungError(Exception):
    pass


def judge(fault: Fault, references: References, folder: Path, draw: random.Random) -> Verdict:
    """Inject a fault into a project of its own, run what a person would, and compare."""
    root = make_project(folder)
    try:
        if fault.kind in AROUND:
            return AROUND[fault.kind](fault, references, root, draw)
        if not fault.target:
            return _interrupted(fault, references, root, draw)
        if fault.target == surroundings.LOG:
            return _read_from_elsewhere(fault, references, root)
        if fault.kind.endswith(REMADE):
            return _remade(fault, references, root, draw)
        if fault.target in TRAININGS:
            return _unfinished(fault, references, root, draw)
        return _damaged(fault, references, root, draw)
    except _WrongError as error:
        return Verdict("wrong", str(error))
    except _HungError:
        return Verdict("hung")


def _interrupted(fault: Fault, references: References, root: Path, draw: random.Random) -> Verdict:
    stages = [fault.stage] if fault.stage else list(STAGES)
    made = references.made_by(stages)
    before = references.at_start_of(fault.stage)
    if fault.kind == "disk full" or draw.random() < 0.3:  # the first run of all
        before = {path: content for path, content in before.items() if path not in made}
    arguments = command([fault.stage] if fault.stage else [], reuse=draw.random() < 0.5)
    after = before | {path: references.newer[path] for path in made}
    with _disk(fault, root, before, after, draw) as free:
        lay(root, before)
        outcome = _run_faulty(fault, references, root, arguments, draw)
        _check_ended(fault, outcome)
        _check_whole(root, before, after)
        if outcome.status == 0:
            _check_finished(root, after)
        free()
        _check_succeeds(root, arguments, after)
    return Verdict("clear" if outcome.status == 1 else "right")


@contextmanager
def _disk(
    fault: Fault, root: Path, before: Contents, after: Contents, draw: random.Random
) -> Iterator[Callable[[], object]]:
    """A small disk for a project's data, if the fault is that it is full, and what makes it larger."""
    if fault.kind != "disk full":
        yield lambda: None
        return
    blocks = {path: -(-len(content) // BLOCK) for path, content in after.items()}
    used = sum(blocks[path] for path in before)
    size = BLOCK * (used + draw.randint(1, sum(blocks.values()) - used))
    data = str(root / "data")
    # Only the system's administrator may; anyone else gets files that cannot grow, in `_run_faulty`.
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", data], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        yield lambda: None
        return
    try:
        yield lambda: subprocess.run(["mount", "-o", "remount,size=256m", data], check=True)
    finally:
        subprocess.run(["umount", data], check=True)


def _run_faulty(
    fault: Fault, references: References, root: Path, arguments: list[str], draw: random.Random
) -> Outcome:
    kind, _, moment = fault.kind.partition(", ")
    if moment == "by time":
        seconds = draw.random() * references.seconds[fault.stage]
        return run(root, arguments, ended=(ENDED[kind], seconds))
    if fault.kind in ("file too large", "ended by the system in a write") or (
        fault.kind == "disk full" and not (root / "data").is_mount()
    ):
        made = references.made_by([fault.stage] if fault.stage else STAGES)
        size = draw.randrange(256, max(len(references.newer[path]) for path in made))
        return run(root, arguments, injections.limit_files(size, kill="ended" in fault.kind))
    if fault.kind == "disk full":
        return run(root, arguments)
    call = "flush" if moment == "halfway through a write" else draw.choice(["flush", "rename"])
    number = draw.randint(1, references.calls[fault.stage][call])
    if moment == "halfway through a write":
        act = injections.end_halfway(ENDED[kind], draw.random())
    else:
        act = injections.end(ENDED[kind]) if kind in ENDED else injections.fill_disk
    after = kind in ENDED and moment != "halfway through a write" and draw.random() < 0.5
    return run(root, arguments, injections.at_call(call, number, act, after))


def _damaged(fault: Fault, references: References, root: Path, draw: random.Random) -> Verdict:
    lay(root, references.newer)
    path = root / references.paths[fault.target]
    _damage(fault, root, path, references, draw)
    damaged = artifacts(root)
    outcome = run(root, command([] if fault.node else [fault.stage], [fault.node] if fault.node else []))
    if outcome.status == 0:
        _check_finished(root, references.newer)
        return Verdict("right")
    _check_told(outcome, fault.target, path.name)
    _check(artifacts(root) == damaged, "a refused run changed artifacts")
    if "--only-missing-outputs" in outcome.output:  # as the message says
        _check_succeeds(root, command(reuse=True), references.newer)
    else:
        path.unlink(missing_ok=True)
        maker = next(stage for stage, pipeline in STAGES.items() if fault.target in pipeline.all_outputs())
        _check_succeeds(root, command([maker]), references.newer)
    return Verdict("clear")


def _remade(fault: Fault, references: References, root: Path, draw: random.Random) -> Verdict:
    """Damage an artifact, or its record, and have what is stale made again."""
    lay(root, references.newer)
    path = root / references.paths[fault.target]
    kind = fault.kind.removesuffix(REMADE)
    if kind == OF_RECORD:
        path = record_path(path)
        kind = draw.choice(("cut", "flipped byte", "empty", "deleted", "another's content"))
    _damage(replace(fault, kind=kind), root, path, references, draw)
    _check_succeeds(root, command(reuse=True), references.newer)
    return Verdict("right")


def _unfinished(fault: Fault, references: References, root: Path, draw: random.Random) -> Verdict:
    before = references.at_start_of(fault.stage)
    after = before | {path: references.newer[path] for path in references.made_by([fault.stage])}
    name, content = references.checkpoints[fault.target]
    lay(root, before | {name: content})
    if fault.kind != "none":
        _damage(fault, root, root / name, references, draw)
    outcome = run(root, command([fault.stage]))
    if outcome.status == 0:
        _check("Resuming" in outcome.output or fault.kind == "deleted", "training began anew")
        _check_finished(root, after)
        return Verdict("right")
    _check_told(outcome, "last.ckpt")
    _check_whole(root, before, after)
    (root / name).unlink()
    _check_succeeds(root, command([fault.stage]), after)
    return Verdict("clear")


def _moved(fault: Fault, references: References, root: Path, draw: random.Random) -> Verdict:
    """Move the data away during a run: it ends with one line, and goes on when the data is back."""
    arguments, before, after = _stage(fault, references, draw)
    lay(root, before)
    calls = references.calls[fault.stage]["flush"]
    outcome = run(root, arguments, surroundings.at_some_call(draw, calls, surroundings.move_data))
    if outcome.status != 0:
        _check_told(outcome, "data")
    surroundings.move_back(root)
    _check_succeeds(root, arguments, after)
    return Verdict("clear" if outcome.status else "right")


def _unlocked(fault: Fault, references: References, root: Path, draw: random.Random) -> Verdict:
    """Delete the lock during a run and start another: one of the two is refused, and no artifact is mixed."""
    arguments, before, after = _stage(fault, references, draw)
    lay(root, before)
    act = surroundings.unlock_for_a_second_run(arguments)
    calls = references.calls[fault.stage]["flush"]
    outcome = run(root, arguments, surroundings.at_some_call(draw, calls, act))
    second = surroundings.second_of(root)
    if outcome.status != 0:
        _check_told(outcome, "lock")
    if second is not None and second.status != 0:
        _check_told(second, "in use", "lock")
    _check(second is None or {outcome.status, second.status} != {0}, "two runs wrote the same data")
    _check_whole(root, before, after)
    _check_succeeds(root, arguments, after)
    return Verdict("right" if outcome.status == 0 else "clear")


def _edited(fault: Fault, references: References, root: Path, draw: random.Random) -> Verdict:
    """Edit the reward during a run: what was made of the old one is stale, however late the edit came."""
    lay(root, references.newer)
    surroundings.write_reward(root, surroundings.BEFORE)
    arguments = command(parameters=surroundings.REWARDED, reuse=True)
    made = len(references.edited) - len(references.newer)
    outcome = run(root, arguments, surroundings.at_some_call(draw, made, surroundings.edit_reward))
    if outcome.status != 0:
        _check_told(outcome, surroundings.REWARD)
    surroundings.write_reward(root, surroundings.AFTER)
    _check_succeeds(root, arguments, references.edited)
    return Verdict("clear" if outcome.status else "right")


AROUND: dict[str, Callable[[Fault, References, Path, random.Random], Verdict]] = {
    surroundings.MOVED: _moved,
    surroundings.UNLOCKED: _unlocked,
    surroundings.EDITED: _edited,
}


def _stage(fault: Fault, references: References, draw: random.Random) -> tuple[list[str], Contents, Contents]:
    """Return the arguments that run a stage, what is there before, and what an undisturbed run leaves."""
    before = references.at_start_of(fault.stage)
    after = before | {path: references.newer[path] for path in references.made_by([fault.stage])}
    return command([fault.stage], reuse=draw.random() < 0.5), before, after


def _read_from_elsewhere(fault: Fault, references: References, root: Path) -> Verdict:
    """Read a log whose values are elsewhere: as if they were in it, or refused with the name of the file."""
    kind, _, then = fault.kind.partition(", then ")
    missing = kind.endswith(surroundings.MISSING)
    surroundings.write_log(root, kind.removesuffix(surroundings.MISSING), surroundings.BEFORE)
    if missing:
        surroundings.remove_values(root)
    outcome = run(root, surroundings.of_log())
    if outcome.status != 0:
        _check_told(outcome, surroundings.LOG, surroundings.OTHER)
        _check(not artifacts(root), "a refused log left artifacts")
        return Verdict("clear")
    _check(not missing, "values that are missing were read")
    _check(kind != surroundings.UNWRITTEN, "values that were never written were read")
    _check_made(root, references.logs[surroundings.BEFORE])
    if then:
        surroundings.write_log(root, kind, surroundings.AFTER)
        outcome = run(root, surroundings.of_log(reuse=True))
        _check(
            outcome.status == 0, f"the changed log: exit status {outcome.status}: {outcome.output[-1500:]}"
        )
        _check_made(root, references.logs[surroundings.AFTER])
    return Verdict("right")


def _check_made(root: Path, expected: Contents) -> None:
    _check(surroundings.without_records(artifacts(root)) == expected, "other than the plain log's artifacts")


def _damage(fault: Fault, root: Path, path: Path, references: References, draw: random.Random) -> None:
    if fault.kind in injections.DAMAGES:
        path.write_bytes(injections.DAMAGES[fault.kind](path.read_bytes(), draw))
    elif fault.kind == "deleted":
        path.unlink()
    elif fault.kind == "other version":
        injections.with_other_version(path)
    elif fault.target in TRAININGS:
        others = [content for name, (_, content) in references.checkpoints.items() if name != fault.target]
        path.write_bytes(draw.choice(others))
    else:
        path.write_bytes(_another(str(path.relative_to(root)), references, draw))


def _another(path: str, references: References, draw: random.Random) -> bytes:
    """The content of another artifact of the same format, or of another record."""
    is_record = path.endswith(RECORD)
    others = [
        content
        for other, content in sorted(references.newer.items())
        if other.endswith(Path(path).suffix)
        and other.endswith(RECORD) == is_record
        and content != references.newer[path]
    ]
    return draw.choice(others)


def _check(holds: bool, reason: str) -> None:
    if not holds:
        raise _WrongError(reason)


def _check_ended(fault: Fault, outcome: Outcome) -> None:
    if outcome.status is None:
        raise _HungError
    _check("Traceback" not in outcome.output, f"a traceback: {outcome.output[-1500:]}")
    if outcome.status == 0:
        return
    if "SIG" in fault.kind or "ended" in fault.kind:
        expected = {-signal.SIGKILL} if "SIGKILL" in fault.kind else {-signal.SIGTERM, SAVED}
        expected = {-signal.SIGXFSZ} if "ended" in fault.kind else expected
        _check(outcome.status in expected, f"exit status {outcome.status}: {outcome.output[-500:]}")
    else:
        _check_told(outcome, "cannot write ")


def _check_told(outcome: Outcome, *names: str) -> None:
    """Check that one line reports the fault and names the artifact or the file."""
    if outcome.status is None:
        raise _HungError
    lines = [line for line in outcome.output.splitlines() if line.startswith("Error: ")]
    told = len(lines) == 1 and "Traceback" not in outcome.output
    told = told and any(name in lines[0] for name in names)
    _check(told and outcome.status == 1, f"exit status {outcome.status}: {outcome.output[-1500:]}")


def _check_whole(root: Path, before: Contents, after: Contents) -> None:
    """Every artifact is the old one or the new one, and none is lost."""
    found = artifacts(root)
    for path, content in found.items():
        _check(content in (before.get(path), after.get(path)), f"{path} is neither the old nor the new one")
    _check(found.keys() >= before.keys(), f"lost: {sorted(before.keys() - found.keys())}")
    for log in (root / "data").rglob("metrics.csv"):
        if not any(part.startswith(".partial-") for part in log.parts):
            _check(len({line.count(",") for line in log.read_text().splitlines()}) == 1, f"{log} is torn")


def _check_finished(root: Path, after: Contents) -> None:
    """The artifacts are those of an undisturbed run, and nothing else is left."""
    found = artifacts(root)
    other = sorted(path for path in found.keys() | after.keys() if found.get(path) != after.get(path))
    _check(not other, f"other than undisturbed: {', '.join(other)}")
    left = [*(root / "data").rglob(".partial-*"), *(root / "data").rglob("last.ckpt")]
    _check(not left, f"left behind: {', '.join(str(path.relative_to(root)) for path in left)}")


def _check_succeeds(root: Path, arguments: list[str], after: Contents) -> None:
    """The command, given again, ends as if nothing had been."""
    outcome = run(root, arguments)
    if outcome.status is None:
        raise _HungError
    _check(outcome.status == 0, f"afterwards, exit status {outcome.status}: {outcome.output[-1500:]}")
    _check_finished(root, after)
