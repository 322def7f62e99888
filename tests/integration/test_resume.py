"""The same command resumes a run that stopped during training, and gives the same weights."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.integration.conftest import DATASET, Forks, Project
from tests.training.processes import checkpoints_in, linux, processes_of, wait_for, worker_of

# Long enough to interrupt, short enough to finish soon; saved after every few chunks.
LONG = (
    "contrastive_dynamics.training.steps=4000,contrastive_dynamics.training.validation_interval=100,"
    "contrastive_dynamics.training.checkpoint_seconds=0.05"
)
SHARED = (
    "contrastive_dynamics.training.devices=2,contrastive_dynamics.training.steps=1000,"
    "contrastive_dynamics.training.checkpoint_seconds=0.05"
)
STAGE = ("run", "--pipelines", "contrastive_dynamics")


def start(project: Project, output: Path, parameters: str = LONG) -> subprocess.Popen[bytes]:
    """Start the stage and return after the first checkpoint."""
    process = project.start(output, *STAGE, "--params", parameters)
    wait_for(lambda: checkpoints(project) or process.poll() is not None)
    assert process.poll() is None, f"training ended before it could be ended: {output.read_text()}"
    return process


def checkpoints(project: Project) -> list[Path]:
    return checkpoints_in(project.root / f"data/06_models/{DATASET}/checkpoints/critic")


def critic(project: Project) -> Path:
    return project.artifact("critic.safetensors")


@pytest.fixture(scope="module")
def uninterrupted(kedro: Forks, copied: Project) -> bytes:
    """The critic of an uninterrupted run."""
    assert "Resuming" not in kedro.kedro(copied, *STAGE, "--params", LONG)
    return critic(copied).read_bytes()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_interrupted_training_resumes_and_ends_with_the_weights_of_an_uninterrupted_run(
    kedro: Forks, scratch: Project, tmp_path: Path, uninterrupted: bytes, number: signal.Signals
) -> None:
    old = critic(scratch).read_bytes()
    process = start(scratch, tmp_path / "output")
    process.send_signal(number)
    status = process.wait()
    output = (tmp_path / "output").read_text()
    if number == signal.SIGTERM:
        assert status == 143, output
        assert "Stopped by SIGTERM; run the same command again to resume from data/06_models" in output
        assert "Traceback" not in output
    assert critic(scratch).read_bytes() == old  # the unfinished run has replaced nothing
    if number == signal.SIGKILL:  # other parameters neither resume the unfinished training nor delete it
        assert "Resuming" not in kedro.kedro(scratch, *STAGE)

    assert "Resuming from step" in kedro.kedro(scratch, *STAGE, "--params", LONG)
    assert not checkpoints(scratch)
    assert critic(scratch).read_bytes() == uninterrupted


@pytest.mark.slow
def test_training_killed_at_any_moment_resumes_and_gives_the_same_weights(
    kedro: Forks, scratch: Project, tmp_path: Path, uninterrupted: bytes
) -> None:
    moments = random.Random(0)
    resumed = 0
    for _ in range(10):
        process = start(scratch, tmp_path / "output")
        # Some kills happen during the write of a checkpoint; there are twenty checkpoints per second.
        time.sleep(moments.uniform(0.0, 4.0))
        process.kill()
        process.wait()
        resumed += "Resuming from step" in kedro.kedro(scratch, *STAGE, "--params", LONG)
        assert critic(scratch).read_bytes() == uninterrupted
    assert resumed >= 5  # the other runs ended before they were killed


@linux
def test_a_run_that_loses_one_of_two_processes_reports_it_in_one_line_and_is_resumed(
    kedro: Forks, scratch: Project, tmp_path: Path
) -> None:
    process = start(scratch, tmp_path / "output", SHARED)
    os.kill(worker_of(scratch.root, 1), signal.SIGKILL)
    assert process.wait() == 1
    output = (tmp_path / "output").read_text()
    errors = [line for line in output.splitlines() if "Error" in line]
    assert len(errors) == 1, output
    assert errors[0].startswith("Error: a training process ended early")
    assert "Traceback" not in output
    assert not processes_of(scratch.root)

    output = kedro.kedro(scratch, *STAGE, "--params", SHARED)
    assert "Resuming from step" in output
    assert "world_size 2" in output
    for node in ("train", "report", "plot"):
        assert output.count(f"contrastive_dynamics.{node} ->") == 1, output
    assert not checkpoints(scratch)
