"""Baselines that run in a process beside the run, with the results of a run in one process."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from cvl_pipeline.training.devices import available_cores
from tests.integration.conftest import DATASET, REUSE, FinishedRun, Forks, Project
from tests.training.processes import children_of, linux, wait_for

pytestmark = pytest.mark.skipif(available_cores() < 2, reason="nothing runs beside on one core")

LONG = "training.steps={1},{0}.training.validation_interval=100,{0}.training.checkpoint_seconds=0.3"
# The critic trains on until the other process has started and saved its training too.
STEPS = {"contrastive_dynamics": 12000, "baselines.bc": 3000}
TRAININGS = ",".join(f"{name}.{LONG.format(name, steps)}" for name, steps in STEPS.items())
NODES = ("--nodes", "contrastive_dynamics.train,policy_extraction.train_bc", "--params", TRAININGS)


def _fingerprints(project: Project) -> dict[str, str]:
    """All files, records too, but no unfinished training."""
    return {name: value for name, value in project.fingerprints().items() if "/checkpoints/" not in name}


def _checkpoints(project: Project, name: str) -> list[Path]:
    return list(project.root.glob(f"data/06_models/{DATASET}/checkpoints/{name}/*/*/last.ckpt"))


def _start(project: Project, output: Path) -> subprocess.Popen[bytes]:
    """Start both trainings and return after the first checkpoints of both."""
    process = project.start(output, "run", *NODES)
    wait_for(
        lambda: all(_checkpoints(project, name) for name in ("critic", "bc")) or process.poll() is not None
    )
    assert process.poll() is None, f"training ended before it could be ended: {output.read_text()}"
    return process


def test_files_and_records_are_those_of_a_run_in_one_process(
    kedro: Forks, finished: FinishedRun, scratch: Project
) -> None:
    kedro.kedro(scratch, "run", "--runner", "SequentialRunner")
    assert scratch.fingerprints() == finished.project.fingerprints()


@pytest.fixture(scope="module")
def uninterrupted(kedro: Forks, copied: Project) -> dict[str, str]:
    """The files of uninterrupted trainings in one process."""
    output = kedro.kedro(copied, "run", "--runner", "SequentialRunner", *NODES)
    assert "beside" not in output
    return _fingerprints(copied)


@linux
@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGKILL]
)
def test_both_trainings_resume_after_the_run_has_been_ended(
    kedro: Forks, scratch: Project, tmp_path: Path, uninterrupted: dict[str, str], number: signal.Signals
) -> None:
    before = _fingerprints(scratch)
    process = _start(scratch, tmp_path / "output")
    children = children_of(process.pid)
    assert children
    process.send_signal(number)
    status = process.wait()
    wait_for(lambda: not any(Path(f"/proc/{child}").exists() for child in children))
    output = (tmp_path / "output").read_text()
    assert "policy_extraction.train_bc runs beside the others" in output
    assert status == {signal.SIGTERM: 143, signal.SIGINT: 1, signal.SIGKILL: -9}[number], output
    if number == signal.SIGTERM:
        assert output.count("Stopped by SIGTERM; run the same command again to resume") == 2
        assert "Traceback" not in output
    assert _fingerprints(scratch) == before  # nothing has been replaced

    output = kedro.kedro(scratch, *REUSE, *NODES)
    assert output.count("Resuming from step") == 2, output
    assert _fingerprints(scratch) == uninterrupted
