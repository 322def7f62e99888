"""A run killed in training is taken up where it was, and ends with the same weights."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from tests.integration.conftest import Project

# Long enough to be killed on the way, short enough to finish soon.
PARAMETERS = "contrastive_dynamics.training.steps=4000,contrastive_dynamics.training.validation_interval=100"


def start(project: Project) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        project.command("run", "--pipelines", "contrastive_dynamics", "--params", PARAMETERS),
        cwd=project.root,
        env=project.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def checkpoints(project: Project) -> list[Path]:
    folder = project.artifact("06_models", "checkpoints") / "dynamics_checkpoints"
    return list(folder.rglob("last.ckpt"))


def test_killed_training_resumes_and_ends_with_the_weights_of_an_uninterrupted_run(
    scratch: Project,
) -> None:
    critic = scratch.artifact("06_models", "critic.safetensors")
    old = critic.read_bytes()
    process = start(scratch)
    deadline = time.monotonic() + 120
    while not checkpoints(scratch):
        assert process.poll() is None, "training ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert critic.read_bytes() == old  # the unfinished run replaced nothing

    resumed = scratch.kedro("run", "--pipelines", "contrastive_dynamics", "--params", PARAMETERS)
    assert resumed.returncode == 0, resumed.stdout
    assert "Resuming from step" in resumed.stdout
    assert not checkpoints(scratch)
    weights = critic.read_bytes()

    uninterrupted = scratch.kedro("run", "--pipelines", "contrastive_dynamics", "--params", PARAMETERS)
    assert "Resuming" not in uninterrupted.stdout
    assert critic.read_bytes() == weights


def test_other_parameters_do_not_take_up_the_unfinished_training(scratch: Project) -> None:
    process = start(scratch)
    while not checkpoints(scratch):
        assert process.poll() is None, "training ended before it could be killed"
        time.sleep(0.02)
    process.kill()
    process.wait()
    result = scratch.kedro("run", "--pipelines", "contrastive_dynamics")
    assert result.returncode == 0, result.stdout
    assert "Resuming" not in result.stdout
