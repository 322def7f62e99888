"""Training by several real processes, on one machine and on two simulated ones."""

from __future__ import annotations

import contextlib
import hashlib
import json
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
from unittest.mock import Mock

import pandas as pd
import pytest
import torch

from cvl_pipeline.dynamics.job import CriticJob
from cvl_pipeline.dynamics.parameters import DynamicsParameters
from cvl_pipeline.episodes.data import EpisodeData
from cvl_pipeline.errors import TERMINATED, InputError
from cvl_pipeline.imports import named
from cvl_pipeline.io.artifacts import save_artifact
from cvl_pipeline.methods.base import METHODS
from cvl_pipeline.methods.cvl import CVL
from cvl_pipeline.methods.job import PolicyJob
from cvl_pipeline.readout.build import build_readout
from cvl_pipeline.readout.q_function import QFunction
from cvl_pipeline.readout.regression import RegressedReadout
from cvl_pipeline.testing.builders import (
    dynamics_parameters,
    make_data,
    make_rewards,
    make_transitions,
    names_in,
    policy_parameters,
    readout_parameters,
    training_parameters,
)
from cvl_pipeline.training import launch
from cvl_pipeline.training.fit import run_fingerprint
from cvl_pipeline.training.keeping import kept_checkpoints
from cvl_pipeline.training.launch import DONE, JOBS, SPECIFICATION, TrainingError, command
from tests.training.processes import checkpoints_in, linux, processes_of, wait_for, worker_of

STEPS = {"steps": 120, "validation_interval": 50, "batch_size": 16}
Result = tuple[Any, pd.DataFrame]


def _data() -> EpisodeData:
    transitions = make_transitions([20] * 6, [True, False] * 3)
    return make_data(transitions, 4, make_rewards(transitions))


def _parameters(**training: Any) -> DynamicsParameters:
    return dynamics_parameters(learned_temperature=True, training=STEPS | training)


def _train(folder: Path, **training: Any) -> Result:
    job = CriticJob(_data(), _parameters(**training), 0)
    return launch.train(job, folder / "c", folder / "logs")


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return _train(tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """The results of two processes, and their folder."""
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


def _policy_job(method: str, critic: Any, devices: int) -> PolicyJob:
    data = _data()
    training = STEPS | {"devices": devices}
    if method == "cvl":
        assert data.rewards is not None
        parameters = readout_parameters(
            discount=0.95, regression={"steps": 5, "value_steps": 5, "hidden": (8,)}
        )
        readout = build_readout(critic, data.transitions, data.rewards, data.split, parameters, 0)
        assert isinstance(readout, RegressedReadout)  # passed to the other processes in a file
        # The objective whose metrics are not all means over the batch.
        extraction = policy_parameters(objective="awr", training=training)
        return PolicyJob(data, CVL.Parameters(extraction=extraction), 0, QFunction(critic, readout))
    training = training_parameters(**training).model_dump()
    return PolicyJob(data, METHODS.validate({"method": method, "hidden": (8,), "training": training}), 0)


@pytest.mark.parametrize("method", ["cvl", pytest.param("iql", marks=pytest.mark.slow)])
def test_two_processes_train_the_policy_of_one(
    tmp_path: Path, one: Result, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    results = []
    with caplog.at_level(logging.INFO, "cvl_pipeline"):
        for devices in (1, 2):
            folder = tmp_path / str(devices)
            job = _policy_job(method, one[0], devices)
            with kept_checkpoints():
                results.append(launch.train(job, folder / "c", folder / "logs"))
            assert checkpoints_in(folder / "c")
    _assert_same(results[1], results[0], 1e-5)
    assert "Trained by 2 processes (world_size 2)" in caplog.text


def test_several_processes_without_a_folder_use_a_temporary_one(monkeypatch: pytest.MonkeyPatch) -> None:
    folders: list[Path] = []

    def record(_: list[str], folder: Path, __: object) -> None:
        folders.append(folder)
        # Rewards stay where they are: contrastive training never reads them.
        files = {f"{kind}.safetensors" for kind in ("transitions", "split", "normalisation")}
        assert set(names_in(folder)) == {"specification.json"} | files
        raise TrainingError("ended")

    monkeypatch.setattr(launch, "_torchrun", record)
    with pytest.raises(TrainingError, match="ended"):
        launch.train(CriticJob(_data(), _parameters(devices=2), 0))
    assert not folders[0].exists()


def test_processes_share_the_cores_that_the_run_may_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(launch, "available_cores", lambda: 6)
    run = Mock(return_value=1)
    monkeypatch.setattr(launch, "_run", run)
    with pytest.raises(TrainingError, match="ended early"):
        launch._torchrun(["torchrun"], tmp_path, training_parameters(devices=2))
    assert run.call_args.args[1]["OMP_NUM_THREADS"] == "3"


def test_files_that_cannot_be_deleted_yet_cost_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On NFS, a file that the returned policy maps stays as .nfs..., so its folder is not empty."""
    monkeypatch.setattr(launch, "_torchrun", lambda *_: {"world_size": 2})
    monkeypatch.setattr(launch, "load_artifact", lambda *_: "trained")
    monkeypatch.setattr(launch, "read_table", lambda *_: "history")
    monkeypatch.setattr(os, "rmdir", Mock(side_effect=OSError("Directory not empty")))
    result: tuple[Any, Any] = launch.train(CriticJob(_data(), _parameters(devices=2), 0), tmp_path)
    assert result == ("trained", "history")


@pytest.mark.parametrize(
    "name",
    [
        "cvl_pipeline.dynamics.job:CriticJob",  # a class that is allowed, but not by this name
        "tests.training.test_launch:Unsafe",
        "os:system",
        "Critic",
        "",
    ],
)
def test_processes_train_nothing_but_the_known_jobs(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=f"unknown training '{re.escape(name)}'"):
        launch.work(tmp_path, _write_specification(tmp_path, name))
    # The first process reports the error to the process that started it.
    report = json.loads((tmp_path / DONE).read_text())
    assert report["error"] == "InputError"
    assert report["message"].startswith("unknown training")
    assert names_in(tmp_path) == [DONE, "specification.json"]


def _write_specification(folder: Path, job: str, checkpoints: str = "c", **artifacts: str) -> str:
    """Write a specification and return its SHA-256."""
    specification: dict[str, Any] = {
        "job": job, "settings": {"command": "false"}, "artifacts": artifacts,
        "checkpoints": str(folder / checkpoints), "logs": None, "kept": False,
    }  # fmt: skip
    text = json.dumps(specification)
    (folder / SPECIFICATION).write_text(text)
    return hashlib.sha256(text.encode()).hexdigest()


def test_processes_use_no_specification_but_that_of_the_starting_process(tmp_path: Path) -> None:
    digest = _write_specification(tmp_path, "critic")
    _write_specification(tmp_path, "critic", transitions="")  # another user's, in the same shared folder
    with pytest.raises(InputError, match=r"specification\.json is not what the starting process wrote"):
        launch.work(tmp_path, digest)


def test_processes_use_no_inputs_but_those_of_the_starting_process(tmp_path: Path) -> None:
    path = tmp_path / "transitions.safetensors"
    save_artifact(path, "transitions", make_transitions([5, 6], [True, True]))
    digest = _write_specification(
        tmp_path, "critic", transitions=hashlib.sha256(path.read_bytes()).hexdigest()
    )
    save_artifact(path, "transitions", make_transitions([5, 7], [True, True]))
    with pytest.raises(InputError, match=r"transitions\.safetensors is not what the starting process wrote"):
        launch.work(tmp_path, digest)


class Unsafe:
    """A class that a specification could name if any name were accepted."""

    @classmethod
    def from_parts(cls, *_: Any) -> Any:
        raise AssertionError("code outside of JOBS has run")


class Faulty:
    """A job in which code of the user's own ends Python, or raises an error."""

    @classmethod
    def from_parts(cls, *_: Any) -> Faulty:
        return cls()

    def run(self, checkpoints: Path, *_: Any) -> Any:
        raise {"c": SystemExit(0), "t": SystemExit(TERMINATED), "v": ValueError("my mistake")}[
            checkpoints.name
        ]


@pytest.mark.parametrize(
    ("kind", "error", "words"),
    [
        (
            "c",
            InputError,
            r"Faulty\.run ended Python at .*test_launch\.py:\d+ \(SystemExit: 0\); raise an error",
        ),
        ("v", InputError, r"Faulty\.run failed at .*test_launch\.py:\d+ \(ValueError: my mistake\)"),
        ("t", SystemExit, f"^{TERMINATED}$"),
    ],
)
def test_faults_of_the_users_code_in_one_of_several_processes_are_reported_with_their_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, error: type[BaseException], words: str
) -> None:
    monkeypatch.setitem(JOBS, "critic", "tests.training.test_launch:Faulty")
    digest = _write_specification(tmp_path, "critic", checkpoints=kind)
    with pytest.raises((SystemExit, ValueError)):
        launch.work(tmp_path, digest)
    monkeypatch.setattr(launch, "_run", lambda *_: 1)
    (tmp_path / launch.ERRORS).write_bytes(b"SignalException: Process 3 got signal: 15\n")
    with pytest.raises(error, match=words):
        launch._torchrun(["torchrun"], tmp_path, _parameters(devices=2).training)
    if kind == "t":  # torchrun ended this process, because another one had died
        (tmp_path / launch.ERRORS).write_bytes(b"exitcode  : -9 (pid: 3)\n")
        with pytest.raises(TrainingError, match="a training process ended early"):
            launch._torchrun(["torchrun"], tmp_path, _parameters(devices=2).training)


def test_every_job_has_its_name() -> None:
    for name, source in JOBS.items():
        assert named(source).name == name


@pytest.mark.parametrize(
    "fault", ["not a number", pytest.param("damaged checkpoint", marks=pytest.mark.slow)]
)
def test_errors_of_several_processes_are_those_of_one(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], fault: str
) -> None:
    errors = []
    for devices in (1, 2):
        training: dict[str, Any] = {"devices": devices}
        if fault == "not a number":
            training |= {"learning_rate": 1e30}
        else:
            # The number of processes is no part of the fingerprint.
            parts = _data().without_rewards().parts().values()
            fingerprint = run_fingerprint(_parameters(devices=devices), 0, *parts)
            path = tmp_path / "c" / fingerprint / "last.ckpt"
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
    """Meanwhile, call a function as soon as unfinished training has been saved."""

    def watch() -> None:
        wait_for(lambda: checkpoints_in(folder))
        act()

    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch)
        yield
        watching.result()


@linux
def test_killed_process_ends_the_training_with_one_line_and_the_next_run_resumes(
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
    # The message names the file with the output of the processes.
    named = re.search(r"see (\S+)\)", str(caught.value))
    assert named is not None
    assert "SIGKILL" in Path(named[1]).read_text()

    result = _train(tmp_path, devices=2)
    assert "Resuming from step" in capfd.readouterr().out
    _assert_same(result, two[1], 0.0)
    assert names_in(tmp_path / "c") == []


# A background command of a script starts with Ctrl+C ignored.
SCRIPT = """
import signal, sys
from pathlib import Path
from tests.training.test_launch import _train
signal.signal(signal.SIGINT, signal.default_int_handler)
_train(Path(sys.argv[1]), devices=2)
"""


@linux
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_command_that_ends_early_leaves_no_process(tmp_path: Path, number: signal.Signals) -> None:
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
    status = script.wait(timeout=500)
    wait_for(lambda: not processes_of(tmp_path))
    assert status == (TERMINATED if number == signal.SIGTERM else status)
    assert status != 0
    assert checkpoints_in(tmp_path)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def test_two_machines_train_the_critic_of_one(
    tmp_path: Path, one: Result, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")

    def other_machine() -> int:
        wait_for(lambda: "on each of the others run:" in caplog.text)
        line = re.search(r"on each of the others run: (.*)", caplog.text)
        assert line is not None
        return subprocess.run(shlex.split(line[1]), check=False, timeout=500).returncode

    with caplog.at_level(logging.INFO, "cvl_pipeline"), ThreadPoolExecutor(1) as pool:
        other = pool.submit(other_machine)
        result = _train(tmp_path, nodes=2, rendezvous=f"127.0.0.1:{_free_port()}")
        assert other.result() == 0
    assert "Trained by 2 processes (world_size 2)" in caplog.text
    _assert_same(result, one, 1e-5)


FOLDER = Path("/shared/checkpoints/launch")
PYTHON = sys.executable


def test_command_of_one_machine() -> None:
    assert command(FOLDER, "ab12", training_parameters(devices=4)) == [
        PYTHON, "-m", "torch.distributed.run", "--nproc-per-node=4", "--standalone",
        "-m",
        "cvl_pipeline.training.launch", str(FOLDER), "ab12",
    ]  # fmt: skip


def test_command_of_two_machines_with_a_rendezvous(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    found = command(FOLDER, "ab12", training_parameters(devices=4, nodes=2, rendezvous="node0:29400"))
    assert found == [
        PYTHON, "-m", "torch.distributed.run", "--nproc-per-node=4", "--nnodes=2", "--rdzv-backend=c10d",
        "--rdzv-endpoint=node0:29400", "--rdzv-id=checkpoints-0", "-m",
        "cvl_pipeline.training.launch", str(FOLDER), "ab12",
    ]  # fmt: skip


def _fake(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_command_under_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_NODELIST", "gpu[07-08]")
    monkeypatch.setenv("SLURM_JOB_ID", "123456")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    _fake(tmp_path, "scontrol", '[ "$*" = "show hostnames gpu[07-08]" ] && printf "gpu07\\ngpu08\\n"')
    assert command(FOLDER, "ab12", training_parameters(devices=8, nodes=2)) == [
        "srun", "--nodes=2", "--ntasks-per-node=1",
        PYTHON, "-m", "torch.distributed.run", "--nproc-per-node=8", "--nnodes=2", "--rdzv-backend=c10d",
        "--rdzv-endpoint=gpu07:29956", "--rdzv-id=checkpoints-123456",
        "-m",
        "cvl_pipeline.training.launch", str(FOLDER), "ab12",
    ]  # fmt: skip
    _fake(tmp_path, "scontrol", "exit 1")
    with pytest.raises(InputError, match=r"scontrol show hostnames.*training\.rendezvous=host:port"):
        command(FOLDER, "ab12", training_parameters(devices=8, nodes=2))


def test_srun_starts_the_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script stands in for srun, which no test machine has, and records its arguments."""
    monkeypatch.setenv("SLURM_JOB_NODELIST", "gpu07")
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    _fake(tmp_path, "scontrol", "echo gpu07")
    _fake(tmp_path, "srun", f'echo "$@" > {tmp_path}/arguments; exit 3')
    with pytest.raises(TrainingError, match="exit status 3"):
        _train(tmp_path, nodes=2)
    assert (tmp_path / "arguments").read_text().startswith("--nodes=2 --ntasks-per-node=1 ")


def test_several_machines_without_a_rendezvous_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_JOB_NODELIST", raising=False)
    with pytest.raises(InputError, match=r"outside of SLURM.*training\.rendezvous=host:port"):
        _train(tmp_path, nodes=2)


def test_missing_slurm_commands_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_NODELIST", "gpu07")
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"scontrol.*training\.rendezvous=host:port"):
        _train(tmp_path, nodes=2)
    _fake(tmp_path, "scontrol", "echo gpu07")
    with pytest.raises(InputError, match="the command srun does not exist"):
        _train(tmp_path, nodes=2)
