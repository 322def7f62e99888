"""Training by several processes, on one machine or many.

A Lightning trainer inside ``kedro run`` cannot start other processes without running the whole pipeline in
each, so training by several processes goes through torchrun: its inputs are saved as artifacts, every process
(``python -m cvl_pipeline.training.launch FOLDER``) reads them and trains its share, and the first process saves
the results, which are read back here. With one process, training stays in this one.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import pandas as pd

from cvl_pipeline.errors import InputError, look_up, one_line
from cvl_pipeline.imports import named
from cvl_pipeline.io.artifacts import load_artifact, save_artifact
from cvl_pipeline.io.checked import read_table, write_table
from cvl_pipeline.io.storage import shown, write_atomically
from cvl_pipeline.training.parameters import TrainingParameters
from cvl_pipeline.training.processes import TERMINATED, end_with_parent, rank, world_size

if TYPE_CHECKING:  # it brings Lightning, which only training is to wait for
    from cvl_pipeline.training.callbacks import Watcher

logger = logging.getLogger(__name__)

DONE = "done.json"
"""Written last, by the first process: what happened, and how many processes trained."""
ERRORS = "processes.log"
"""What the processes of this machine wrote to standard error: tracebacks, torchrun's reports."""
PATIENCE = 30.0
"""Seconds that a process which has to end waits for the first to say why: torchrun ends all with any."""


JOBS = {
    "critic": "cvl_pipeline.dynamics.job:CriticJob",
    "policy": "cvl_pipeline.methods.job:PolicyJob",
}
"""The trainings that other processes may be asked for. A specification can name no other code."""


class TrainingError(RuntimeError):
    """A training process ended early. The message is one line for the user; finished steps are saved."""


class Job(Protocol):
    """A training that one process can do, or several can share."""

    name: ClassVar[str]
    """Its key in JOBS."""
    makes: ClassVar[str]
    """The kind of artifact that it trains."""

    @property
    def training(self) -> TrainingParameters:
        """How many processes, among others."""

    def artifacts(self) -> dict[str, Any]:
        """Return the inputs by their kinds of artifact."""

    def settings(self) -> dict[str, Any]:
        """Return everything else as plain values."""

    @classmethod
    def from_parts(cls, artifacts: Mapping[str, Any], settings: Mapping[str, Any]) -> Job:
        """Make the job again from ``artifacts`` and ``settings``."""

    def run(
        self, checkpoints: Path | None, logs: Path | None, watch: Watcher | None
    ) -> tuple[Any, pd.DataFrame]:
        """Train in this process; return the module, on the CPU, and the history."""


def train(
    job: Job, checkpoints: Path | None = None, logs: Path | None = None, watch: Watcher | None = None
) -> tuple[Any, pd.DataFrame]:
    """Train in this process, or in as many processes as the job's parameters ask for.

    Args:
        job: the training.
        checkpoints: folder that keeps unfinished training, which the same call resumes. With several machines,
            on a disk that all of them see. None: not resumable.
        logs: folder of metrics.csv and other logs; None: no logs.
        watch: receives every row of the history, and may raise to end the training; with several processes it
            receives none.

    Returns:
        The trained module, on the CPU, and the history.

    Raises:
        InputError: a damaged checkpoint; a parameter or a logger that cannot be used.
        FloatingPointError: the loss is not a number.
        TrainingError: a process was killed.
        SystemExit: SIGTERM, to this process or to one that it started; finished steps are saved.
    """
    if job.training.devices * job.training.nodes == 1:
        return job.run(checkpoints, logs, watch)
    if checkpoints is None:
        with tempfile.TemporaryDirectory() as temporary:
            return train(job, Path(temporary), logs, watch)
    specification = {
        "job": job.name, "settings": job.settings(), "artifacts": sorted(job.artifacts()),
        "checkpoints": str(checkpoints.absolute()), "logs": str(logs.absolute()) if logs else None,
    }  # fmt: skip
    folder = (checkpoints / "launch").absolute()
    shutil.rmtree(folder, ignore_errors=True)
    for kind, value in job.artifacts().items():
        save_artifact(folder / f"{kind}.safetensors", kind, value)
    _write_json(folder / "specification.json", specification)
    result = _torchrun(folder, job.training)
    trained = load_artifact(folder / f"{job.makes}.trained.safetensors", job.makes)
    history = read_table(folder / "history.parquet")
    logger.info("Trained by %d processes (world_size %d)", result["world_size"], result["world_size"])
    shutil.rmtree(folder)
    return trained, history


def command(folder: Path, training: TrainingParameters) -> list[str]:
    """What starts the processes of one machine; with a rendezvous, the same on each machine.

    Args:
        folder: of the inputs.
        training: how many processes.
    """
    torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={training.devices}"]
    if training.nodes == 1:
        torchrun.append("--standalone")
    else:
        # Two jobs may share a machine: each meets at a port of its own.
        job = os.environ.get("SLURM_JOB_ID", "0")
        meeting = training.rendezvous or f"{_first_slurm_host()}:{29500 + int(job) % 1000}"
        torchrun += [
            f"--nnodes={training.nodes}", "--rdzv-backend=c10d", f"--rdzv-endpoint={meeting}",
            f"--rdzv-id={folder.parent.name}-{job}",
        ]  # fmt: skip
    whole = [*torchrun, "-m", "cvl_pipeline.training.launch", str(folder)]
    if training.nodes > 1 and training.rendezvous is None:
        return ["srun", f"--nodes={training.nodes}", "--ntasks-per-node=1", *whole]
    return whole


def _torchrun(folder: Path, training: TrainingParameters) -> dict[str, Any]:
    """Run all processes to their end; what the first one reports."""
    line = command(folder, training)
    if training.rendezvous is not None and training.nodes > 1:
        logger.info(
            "Waiting at %s for %d machines; on each of the others run: %s",
            training.rendezvous, training.nodes, shlex.join(["python", *line[1:]]),
        )  # fmt: skip
    # Unless told otherwise, torchrun gives each process one thread; the cores are there to be shared out.
    threads = max(1, (os.cpu_count() or 1) // training.devices)
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
    try:
        status = _run(line, environment, folder / ERRORS)
    except FileNotFoundError as error:
        raise InputError(
            f"training.nodes is {training.nodes} and {line[0]} is not there: run within a SLURM allocation, "
            "or name a rendezvous, host:port"
        ) from error
    report = folder / DONE
    result: dict[str, Any] = json.loads(report.read_text()) if report.exists() else {}
    if "terminated" in result:
        raise SystemExit(TERMINATED)
    if "message" in result:
        raise {"InputError": InputError, "FloatingPointError": FloatingPointError}[result["error"]](
            result["message"]
        )
    if status != 0 or not result:
        raise TrainingError(
            f"a training process ended early (exit status {status}; see {shown(folder / ERRORS)}); run the "
            "same command again to go on from the last checkpoint"
        )
    return result


def _run(line: list[str], environment: Mapping[str, str], errors: Path) -> int:
    """Exit status of a command. What ends this process, ends it first: it saves, and leaves nothing running.

    Its standard error goes to a file: torchrun tells every failure in a traceback of its own.
    """
    with sigterm_raised():
        with errors.open("wb") as file:
            process = subprocess.Popen(
                line, env=environment, stderr=file, start_new_session=True, preexec_fn=end_with_parent
            )
        try:
            return process.wait()
        except BaseException:  # SIGTERM, or Ctrl+C
            process.terminate()
            process.wait()
            raise


@contextmanager
def sigterm_raised() -> Iterator[None]:
    """While it lasts, SIGTERM raises SystemExit, so that processes started from here can be ended first."""

    def end(*_: object) -> None:
        raise SystemExit(TERMINATED)

    main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGTERM, end) if main else None
    try:
        yield
    finally:
        if main:
            signal.signal(signal.SIGTERM, handler)


def _first_slurm_host() -> str:
    nodes = os.environ.get("SLURM_JOB_NODELIST")
    if nodes is None:
        raise InputError(
            "training.nodes is more than 1 outside of SLURM: say where the machines meet, "
            "training.rendezvous=host:port"
        )
    line = ["scontrol", "show", "hostnames", nodes]
    try:
        found = subprocess.run(line, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise InputError(
            f"'{shlex.join(line)}' failed ({one_line(error)}): say where the machines meet, "
            "training.rendezvous=host:port"
        ) from error
    return found.stdout.split()[0]


def work(folder: Path) -> None:
    """Be one process of a training: read the inputs, train a share, and as the first process save the results."""
    specification = json.loads((folder / "specification.json").read_text())
    artifacts = {
        kind: load_artifact(folder / f"{kind}.safetensors", kind) for kind in specification["artifacts"]
    }
    logs = specification["logs"]
    try:
        job = named(look_up("training", specification["job"], JOBS)).from_parts(
            artifacts, specification["settings"]
        )
        trained, history = job.run(Path(specification["checkpoints"]), Path(logs) if logs else None, None)
    except SystemExit:
        _tell(folder, {"terminated": True})
        raise
    except (InputError, FloatingPointError) as error:
        _tell(folder, {"error": type(error).__name__, "message": str(error)})
        raise
    if rank() == 0:
        save_artifact(folder / f"{job.makes}.trained.safetensors", job.makes, trained)
        write_table(folder / "history.parquet", history)
        _write_json(folder / DONE, {"world_size": world_size()})


def _tell(folder: Path, result: dict[str, Any]) -> None:
    """Write the end of a training that ends early, if this is the first process; else wait for it to."""
    if rank() == 0:
        _write_json(folder / DONE, result)
    end = time.monotonic() + PATIENCE
    while not (folder / DONE).exists() and time.monotonic() < end:
        time.sleep(0.05)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    write_atomically(path, lambda partial: partial.write_text(json.dumps(values, indent=2)))


if __name__ == "__main__":
    end_with_parent()
    first = os.environ["RANK"] == "0"  # the others have the same to say
    logging.basicConfig(
        level=logging.INFO if first else logging.ERROR, format="%(message)s", stream=sys.stdout
    )
    work(Path(sys.argv[1]))
