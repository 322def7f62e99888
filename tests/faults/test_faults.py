"""The bench of faults, with a toy in place of the pipeline; one slow test has the real one."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cvl_pipeline.errors import InputError
from cvl_pipeline.io.storage import read_tensors, write_atomically, write_tensors
from cvl_pipeline.kedro import cli
from tests.faults import injections, runs, surroundings
from tests.faults.__main__ import tabulate
from tests.faults.judge import Verdict, judge
from tests.faults.plan import OF_BYTES, REMADE, Fault, make_plan
from tests.faults.references import STAGES, TRAININGS, References
from tests.faults.surroundings import MOVED, UNLOCKED, UNWRITTEN
from tests.project import PROJECT

STAGE = "value_readout"
NAMES = sorted({name for stage in STAGES.values() for name in stage.all_outputs()})
PATHS = {name: f"data/{name}.bin" for name in NAMES}
REFERENCES = References(
    older={path: f"old {name} ".encode() * 200 for name, path in PATHS.items()},
    newer={path: f"new {name} ".encode() * 200 for name, path in PATHS.items()},
    paths=PATHS,
    checkpoints={},
    seconds={STAGE: 0.1},
    calls={STAGE: Counter({call: len(STAGES[STAGE].all_outputs()) for call in ("flush", "rename")})},
)
Write = Callable[[Path, bytes], None]


def _atomically(path: Path, content: bytes) -> None:
    write_atomically(path, lambda partial: partial.write_bytes(content))


def _in_place(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


class Toy:
    """Takes the place of ``kedro run``: reads what the stage reads, and writes what it makes."""

    def __init__(self, write: Write = _atomically, checks: bool = True) -> None:
        self._write = write
        self._checks = checks

    def main(self, args: list[str], prog_name: str) -> None:
        if args[0] == "--only-missing-outputs" and "--pipelines" not in args:
            for path, content in REFERENCES.newer.items() if self._checks else ():
                self._write(Path(path), content)
            return
        stage = STAGES[args[args.index("--pipelines") + 1]]
        try:
            right = all(self._is_right(name) for name in sorted(stage.inputs() & PATHS.keys()))
            for name in sorted(stage.all_outputs()):
                self._write(Path(PATHS[name]), REFERENCES.newer[PATHS[name]] if right else b"nonsense")
        except InputError as error:
            sys.stdout.write(f"Error: {error}\n")
            raise SystemExit(1) from error

    def _is_right(self, name: str) -> bool:
        path = Path(PATHS[name])
        right = path.exists() and path.read_bytes() == REFERENCES.newer[PATHS[name]]
        if self._checks and not right:
            raise InputError(f"{path} is damaged; delete it and rerun its stage")
        return right


@pytest.fixture
def judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Counter[str]]:
    def judge_some(toy: Any, kind: str, target: str = "", times: int = 2) -> Counter[str]:
        monkeypatch.setattr(cli, "run", toy)
        return Counter(
            judge(Fault(STAGE, kind, target), REFERENCES, tmp_path / f"{number}", random.Random(number)).word
            for number in range(times)
        )

    return judge_some


Judged = Callable[..., "Counter[str]"]


@pytest.mark.parametrize(
    "kind",
    [
        "SIGKILL, by time", "SIGTERM, by time", "SIGKILL, at a flush or rename",
        "SIGKILL, halfway through a write", "ended by the system in a write",
    ],
)  # fmt: skip
def test_an_ended_run_that_leaves_whole_files_is_right(judged: Judged, kind: str) -> None:
    assert judged(Toy(), kind) == {"right": 2}


@pytest.mark.parametrize("kind", ["disk full, at a flush or rename", "file too large"])
def test_a_reported_full_disk_is_clear(judged: Judged, kind: str) -> None:
    assert judged(Toy(), kind)["clear"] >= 1  # a limit may lie above all that follows


def test_a_writer_that_leaves_half_a_file_is_wrong(judged: Judged) -> None:
    assert judged(Toy(_in_place), "SIGKILL, halfway through a write") == {"wrong": 2}


def test_a_traceback_is_wrong(judged: Judged) -> None:
    def fails(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    assert judged(Toy(fails), "disk full, at a flush or rename") == {"wrong": 2}


DAMAGES = pytest.mark.parametrize("kind", ["cut", "flipped byte", "empty", "deleted", "another's content"])


@DAMAGES
def test_reported_damage_is_clear(judged: Judged, kind: str) -> None:
    assert judged(Toy(), kind, "critic") == {"clear": 2}


@DAMAGES
def test_unnoticed_damage_is_wrong(judged: Judged, kind: str) -> None:
    assert judged(Toy(checks=False), kind, "rewards") == {"wrong": 2}


@pytest.mark.parametrize("kind", OF_BYTES)
@pytest.mark.parametrize("checks", [True, False])
def test_damage_must_be_recreated(judged: Judged, kind: str, checks: bool) -> None:
    assert judged(Toy(checks=checks), kind + REMADE, "critic") == {"right" if checks else "wrong": 2}


def test_data_that_is_moved_is_clear_if_one_line_says_so(judged: Judged) -> None:
    assert judged(Toy(), MOVED) == {"clear": 2}


def test_data_that_is_moved_is_wrong_if_a_traceback_follows(judged: Judged) -> None:
    def fails(path: Path, content: bytes) -> None:
        path.parent.mkdir(exist_ok=True)
        _in_place(path, content)
        path.read_bytes()  # a traceback if the folder is gone

    assert judged(Toy(fails), MOVED) == {"wrong": 2}


def test_two_runs_that_both_end_well_after_a_lost_lock_are_wrong(
    judged: Judged, monkeypatch: pytest.MonkeyPatch
) -> None:
    def second_run(arguments: list[str]) -> Callable[[Path], None]:
        def act(path: Path) -> None:
            Path(surroundings.SECOND).write_text("done\nstatus 0\n")

        return act

    monkeypatch.setattr(surroundings, "unlock_for_a_second_run", second_run)
    assert judged(Toy(), UNLOCKED) == {"wrong": 2}


def test_a_log_whose_missing_values_are_read_is_wrong(
    judged: Judged, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Reader:
        def main(self, args: list[str], prog_name: str) -> None:
            _atomically(Path("data/log.bin"), b"zeros")

    assert judged(Reader(), UNWRITTEN, surroundings.LOG) == {"wrong": 2}


def test_a_run_without_end_hangs(judged: Judged, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "LIMIT", 0.3)
    assert judged(Toy(lambda path, content: time.sleep(60)), "SIGKILL, at a flush or rename", times=1) == {
        "hung": 1
    }


def test_the_plan_has_many_faults_over_all_stages_and_formats() -> None:
    endings = {name: f"data/{name}.safetensors" for name in NAMES}
    plan = make_plan(References({}, {}, endings, {}, {}, {}))
    assert len(plan) >= 500
    for stage in STAGES:
        kinds = {fault.kind for fault in plan if fault.stage == stage}
        assert {"SIGKILL, by time", "SIGTERM, by time", "disk full", "cut", "deleted"} <= kinds
    targets = {fault.target for fault in plan}
    assert targets >= {*NAMES, *TRAININGS}


def test_a_file_of_another_version_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, "thing", {"a": torch.ones(3)}, {})
    injections.with_other_version(path)
    with pytest.raises(InputError, match="has format version 99"):
        read_tensors(path, "thing")


def test_results_are_counted_by_stage_and_kind() -> None:
    results = [
        (Fault(STAGE, "cut", "critic"), Verdict("clear")),
        (Fault(STAGE, "cut", "labels"), Verdict("wrong", "why")),
        (Fault("", "disk full"), Verdict("right")),
    ]
    table = tabulate(results)
    assert table.to_dict("records") == [
        {"stage": STAGE, "kind": "artifact: cut", "faults": 2, "right": 0, "clear": 1, "wrong": 1, "hung": 0},
        {"stage": "all", "kind": "disk full", "faults": 1, "right": 1, "clear": 0, "wrong": 0, "hung": 0},
    ]


BROKEN = """
import os
from tests.faults.__main__ import main
if {broken}:
    from cvl_pipeline.io import checked, storage
    from cvl_pipeline.kedro.datasets import atomic
    def in_place(path, write):
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path)
        with path.open("rb+") as file:
            os.fsync(file.fileno())
        path.replace(path)  # too late
    for module in (checked, storage, atomic):
        module.write_atomically = in_place
raise SystemExit(main(["--faults", "12", "--seed", "3", "--only", "halfway"]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("broken", [False, True])
def test_the_pipeline_passes_but_not_with_a_broken_writer(broken: bool) -> None:
    result = subprocess.run(
        [sys.executable, "-c", BROKEN.format(broken=broken)],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    last = result.stdout.splitlines()[-1]
    assert (last == "faults=12 wrong=0 hung=0") != broken, result.stdout + result.stderr
    assert last.startswith("faults=12 ")
    assert result.returncode == int(broken)
