"""Training by several real processes, on one machine and on two simulated ones."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from cvl_pipeline.dynamics.module import train_dynamics
from cvl_pipeline.dynamics.parameters import DynamicsParameters
from cvl_pipeline.errors import InputError
from cvl_pipeline.objectives.module import extract_policy
from cvl_pipeline.readout.build import build_readout
from cvl_pipeline.testing.builders import (
    dynamics_parameters,
    identity_normalisation,
    make_rewards,
    make_transitions,
    names_in,
    policy_parameters,
    readout_parameters,
    split_first,
    training_parameters,
)
from cvl_pipeline.training import launch
from cvl_pipeline.training.fit import run_fingerprint
from cvl_pipeline.training.launch import TrainingError, command
from cvl_pipeline.training.processes import TERMINATED
from tests.training.processes import checkpoints_in, linux, processes_of, wait_for, worker_of

STEPS = {"steps": 120, "validation_interval": 50, "batch_size": 16}
Result = tuple[Any, pd.DataFrame]


def _inputs() -> dict[str, Any]:
    data = make_transitions([20] * 6, [True, False] * 3)
    return {
        "transitions": data,
        "split": split_first(data, 4),
        "normalisation": identity_normalisation(data),
    }


def _parameters(**training: Any) -> DynamicsParameters:
    return dynamics_parameters(learned_temperature=True, training=STEPS | training)


def _train(folder: Path, **training: Any) -> Result:
    return launch.train(
        train_dynamics, "critic", _parameters(**training), 0, folder / "c", folder / "logs", _inputs()
    )


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return _train(tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """What two processes made, and where."""
    folder = tmp_path_factory.mktemp("two")
    return folder, _train(folder, devices=2)


def _assert_same(found: Result, expected: Result, tolerance: float) -> None:
    (module, history), (other, other_history) = found, expected
    for name, value in other.state_dict().items():
        torch.testing.assert_close(module.state_dict()[name], value, rtol=tolerance, atol=tolerance)
    pd.testing.assert_frame_equal(history, other_history, check_exact=not tolerance, rtol=10 * tolerance)


def test_two_processes_train_the_critic_of_one(one: Result, two: tuple[Path, Result]) -> None:
    folder, result = two
    _assert_same(result, one, 1e-5)
    assert not result[0].training
    assert names_in(folder / "c") == []
    metrics = pd.read_csv(folder / "logs" / "metrics.csv")
    assert metrics["step"].tolist() == result[1]["step"].tolist() == [50, 100, 120]


def test_two_processes_extract_the_policy_of_one(
    tmp_path: Path, one: Result, caplog: pytest.LogCaptureFixture
) -> None:
    inputs = _inputs()
    labels = make_rewards(inputs["transitions"])
    readout = build_readout(one[0], inputs["transitions"], labels, inputs["split"], readout_parameters(), 0)
    inputs |= {"labels": labels, "critic": one[0], "readout": readout}
    results = []
    with caplog.at_level(logging.INFO, "cvl_pipeline"):
        for devices in (1, 2):
            # The one whose metrics are not all means over the batch.
            parameters = policy_parameters(objective="awr", training=STEPS | {"devices": devices})
            folder = tmp_path / str(devices)
            results.append(
                launch.train(extract_policy, "policy", parameters, 0, folder / "c", folder / "logs", inputs)
            )
    _assert_same(results[1], results[0], 1e-5)
    assert "Trained by 2 processes (world_size 2)" in caplog.text


@pytest.mark.parametrize(
    "fault", ["not a number", pytest.param("damaged checkpoint", marks=pytest.mark.slow)]
)
def test_a_fault_of_the_processes_is_that_of_one(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], fault: str
) -> None:
    errors = []
    for devices in (1, 2):
        training: dict[str, Any] = {"devices": devices}
        if fault == "not a number":
            training |= {"learning_rate": 1e30}
        else:
            inputs = _inputs()
            # Of the same name for both: how many processes train is no part of it.
            print_ = run_fingerprint(
                _parameters(devices=devices),
                0,
                *(inputs[n] for n in ("transitions", "split", "normalisation")),
            )
            path = tmp_path / "c" / print_ / "last.ckpt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"damaged")
        with pytest.raises((InputError, FloatingPointError)) as caught:
            _train(tmp_path, **training)
        errors.append(caught.value)
    assert type(errors[0]) is type(errors[1])
    assert str(errors[0]) == str(errors[1])
    assert "\n" not in str(errors[1])
    written = capfd.readouterr()
    assert "Traceback" not in written.out + written.err


@contextlib.contextmanager
def _when_saved(folder: Path, act: Callable[[], None]) -> Iterator[None]:
    """Meanwhile, do something as soon as unfinished training has been saved."""

    def watch() -> None:
        wait_for(lambda: checkpoints_in(folder))
        act()

    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch)
        yield
        watching.result()


@linux
def test_training_that_loses_a_process_ends_in_one_line_and_is_resumed(
    tmp_path: Path,
    two: tuple[Path, Result],
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with (
        _when_saved(tmp_path, lambda: os.kill(worker_of(tmp_path, 1), signal.SIGKILL)),
        pytest.raises(TrainingError, match="run the same command again") as caught,
    ):
        _train(tmp_path, devices=2)
    assert "\n" not in str(caught.value)
    assert processes_of(tmp_path) == {}
    written = capfd.readouterr()
    assert "Traceback" not in written.out + written.err
    # What the processes said is kept where the message says.
    named = re.search(r"see (\S+)\)", str(caught.value))
    assert named is not None
    assert "SIGKILL" in Path(named[1]).read_text()

    result = _train(tmp_path, devices=2)
    assert "Resuming from step" in capfd.readouterr().out
    _assert_same(result, two[1], 0.0)
    assert names_in(tmp_path / "c") == []


# A command in the background of a script is born deaf to Ctrl+C.
SCRIPT = """
import signal, sys
from pathlib import Path
from tests.test_launch import _train
signal.signal(signal.SIGINT, signal.default_int_handler)
_train(Path(sys.argv[1]), devices=2)
"""


@linux
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_running_of_a_command_that_ends_early(tmp_path: Path, number: signal.Signals) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    script = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for(lambda: checkpoints_in(tmp_path) or script.poll() is not None)
    workers = {process for process in processes_of(tmp_path) if process != script.pid}
    assert len(workers) == 3  # torchrun and two that train
    script.send_signal(number)
    status = script.wait(timeout=60)
    wait_for(lambda: not processes_of(tmp_path))
    assert status == (TERMINATED if number == signal.SIGTERM else status)
    assert status != 0
    assert checkpoints_in(tmp_path)  # to go on from


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def test_two_machines_that_meet_train_the_critic_of_one(
    tmp_path: Path, one: Result, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")

    def other_machine() -> int:
        wait_for(lambda: "on each of the others run:" in caplog.text)
        line = re.search(r"on each of the others run: (.*)", caplog.text)
        assert line is not None
        return subprocess.run(shlex.split(line[1]), check=False, timeout=200).returncode

    with caplog.at_level(logging.INFO, "cvl_pipeline"), ThreadPoolExecutor(1) as pool:
        other = pool.submit(other_machine)
        result = _train(tmp_path, nodes=2, rendezvous=f"127.0.0.1:{_free_port()}")
        assert other.result() == 0
    assert "Trained by 2 processes (world_size 2)" in caplog.text
    _assert_same(result, one, 1e-5)


FOLDER = Path("/shared/checkpoints/launch")
PYTHON = sys.executable


def test_the_command_of_one_machine() -> None:
    assert command(FOLDER, training_parameters(devices=4)) == [
        PYTHON, "-m", "torch.distributed.run", "--nproc-per-node=4", "--standalone",
        "-m",
        "cvl_pipeline.training.launch", str(FOLDER),
    ]  # fmt: skip


def test_the_command_of_machines_that_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    found = command(FOLDER, training_parameters(devices=4, nodes=2, rendezvous="node0:29400"))
    assert found == [
        PYTHON, "-m", "torch.distributed.run", "--nproc-per-node=4", "--nnodes=2", "--rdzv-backend=c10d",
        "--rdzv-endpoint=node0:29400", "--rdzv-id=checkpoints-0", "-m",
        "cvl_pipeline.training.launch", str(FOLDER),
    ]  # fmt: skip


def _fake(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_the_command_under_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_NODELIST", "gpu[07-08]")
    monkeypatch.setenv("SLURM_JOB_ID", "123456")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    _fake(tmp_path, "scontrol", '[ "$*" = "show hostnames gpu[07-08]" ] && printf "gpu07\\ngpu08\\n"')
    assert command(FOLDER, training_parameters(devices=8, nodes=2)) == [
        "srun", "--nodes=2", "--ntasks-per-node=1",
        PYTHON, "-m", "torch.distributed.run", "--nproc-per-node=8", "--nnodes=2", "--rdzv-backend=c10d",
        "--rdzv-endpoint=gpu07:29956", "--rdzv-id=checkpoints-123456",
        "-m",
        "cvl_pipeline.training.launch", str(FOLDER),
    ]  # fmt: skip
    _fake(tmp_path, "scontrol", "exit 1")
    with pytest.raises(InputError, match=r"scontrol show hostnames.*training\.rendezvous=host:port"):
        command(FOLDER, training_parameters(devices=8, nodes=2))


def test_srun_starts_theprocesses_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for srun, which no test machine has: its arguments are what is looked at."""
    monkeypatch.setenv("SLURM_JOB_NODELIST", "gpu07")
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    _fake(tmp_path, "scontrol", "echo gpu07")
    _fake(tmp_path, "srun", f'echo "$@" > {tmp_path}/arguments; exit 3')
    with pytest.raises(TrainingError, match="exit status 3"):
        _train(tmp_path, nodes=2)
    assert (tmp_path / "arguments").read_text().startswith("--nodes=2 --ntasks-per-node=1 ")


def test_several_machines_that_cannot_find_each_other_are_told_how_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_JOB_NODELIST", raising=False)
    with pytest.raises(InputError, match=r"outside of SLURM.*training\.rendezvous=host:port"):
        _train(tmp_path, nodes=2)


def test_slurm_without_its_commands_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_NODELIST", "gpu07")
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"scontrol.*training\.rendezvous=host:port"):
        _train(tmp_path, nodes=2)
    _fake(tmp_path, "scontrol", "echo gpu07")
    with pytest.raises(InputError, match=r"srun is not there"):
        _train(tmp_path, nodes=2)
