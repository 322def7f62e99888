"""Training by several processes, on one machine or many.

A Lightning trainer inside ``kedro run`` cannot start other processes without running the whole pipeline in
each, so training by several processes goes through torchrun. The inputs are saved as artifacts. Every process
(``python -m cvl_pipeline.training.launch FOLDER SHA256``) reads them and trains its share. The first process
saves the results, and ``train`` reads them. Training with one process needs none of this.

The folder may be shared, and parameters may name classes to import. So the command line carries the SHA-256 of the
specification, which has those of the inputs: a process refuses files that the starting process did not write.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import pandas as pd

from cvl_pipeline.errors import TERMINATED, InputError, look_up, one_line
from cvl_pipeline.imports import fault_of_user_code, named
from cvl_pipeline.io.artifacts import load_artifact, save_artifact
from cvl_pipeline.io.checked import read_table, write_table
from cvl_pipeline.io.children import end_with_parent, sigterm_raised, start_child
from cvl_pipeline.io.storage import shown, write_atomically
from cvl_pipeline.paths import expanded
from cvl_pipeline.training.devices import available_cores
from cvl_pipeline.training.keeping import checkpoints_are_kept, kept_checkpoints
from cvl_pipeline.training.parameters import TrainingParameters
from cvl_pipeline.training.processes import rank, world_size

if TYPE_CHECKING:  # this module imports Lightning, which is slow
    from cvl_pipeline.training.callbacks import Watcher

logger = logging.getLogger(__name__)

SPECIFICATION = "specification.json"
"""The job, its parameters, and the checksums of its inputs."""
DONE = "done.json"
"""The outcome and the number of processes, written last, by the first process."""
ERRORS = "processes.log"
"""Standard error of this machine's processes: tracebacks and torchrun's reports."""
SIGNALLED = b"SignalException"
"""What torchrun writes there if it has been told to end itself."""
PATIENCE = 30.0
"""Seconds that a failed process waits for the first one's report: torchrun ends all processes if one ends."""


JOBS = {
    "critic": "cvl_pipeline.dynamics.job:CriticJob",
    "policy": "cvl_pipeline.methods.job:PolicyJob",
}
"""The trainings that other processes can run. A specification cannot name other code."""


class TrainingError(RuntimeError):
    """A training process ended early. The message is one line; the last checkpoint is kept."""


class Job(Protocol):
    """A training for one process, or for several that share it."""

    name: ClassVar[str]
    """Its key in JOBS."""
    makes: ClassVar[str]
    """The kind of artifact that it produces."""

    @property
    def training(self) -> TrainingParameters:
        """The training parameters, such as the number of processes."""

    def artifacts(self) -> dict[str, Any]:
        """Return the inputs, by kind of artifact."""

    def settings(self) -> dict[str, Any]:
        """Return everything else as plain values."""

    @classmethod
    def from_parts(cls, artifacts: Mapping[str, Any], settings: Mapping[str, Any]) -> Job:
        """Recreate the job from ``artifacts`` and ``settings``."""

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
        checkpoints: folder for checkpoints, from which the same call resumes. Several machines need a shared disk.
            None: not resumable.
        logs: folder for metrics.csv and other logs; None: no logs.
        watch: receives every row of the history, and may raise to end the training. With several processes, it
            receives nothing.

    Returns:
        The trained module, on the CPU, and the history.

    Raises:
        InputError: a damaged checkpoint; a parameter or a logger that cannot be used.
        FloatingPointError: the loss is not a number.
        TrainingError: a process was killed.
        SystemExit: SIGTERM to this process or to one that it started; a checkpoint is saved.
    """
    checkpoints, logs = (path and expanded(path) for path in (checkpoints, logs))
    if job.training.devices * job.training.nodes == 1:
        return job.run(checkpoints, logs, watch)
    if checkpoints is None:
        with tempfile.TemporaryDirectory() as temporary:
            return train(job, Path(temporary), logs, watch)
    folder = (checkpoints / "launch").absolute()
    shutil.rmtree(folder, ignore_errors=True)
    digests = {}
    for kind, value in job.artifacts().items():
        path = folder / f"{kind}.safetensors"
        save_artifact(path, kind, value)
        digests[kind] = _digest(path)
    specification = {
        "job": job.name, "settings": job.settings(), "artifacts": digests,
        "checkpoints": str(checkpoints.absolute()), "logs": str(logs.absolute()) if logs else None,
        "kept": checkpoints_are_kept(),
    }  # fmt: skip
    _write_json(folder / SPECIFICATION, specification)
    result = _torchrun(command(folder, _digest(folder / SPECIFICATION), job.training), folder, job.training)
    trained = load_artifact(folder / f"{job.makes}.trained.safetensors", job.makes)
    history = read_table(folder / "history.parquet")
    logger.info("Trained by %d processes (world_size %d)", result["world_size"], result["world_size"])
    shutil.rmtree(folder, ignore_errors=True)  # on NFS, a file that the policy maps stays
    return trained, history


def command(folder: Path, digest: str, training: TrainingParameters) -> list[str]:
    """Return the command that starts the processes of one machine; the same on all machines.

    Args:
        folder: folder of the inputs.
        digest: SHA-256 of the specification in it.
        training: number of processes.
    """
    torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={training.devices}"]
    if training.nodes == 1:
        torchrun.append("--standalone")
    else:
        # Jobs that share a machine need different ports.
        job = os.environ.get("SLURM_JOB_ID", "0")
        meeting = training.rendezvous or f"{_first_slurm_host()}:{29500 + int(job) % 1000}"
        torchrun += [
            f"--nnodes={training.nodes}", "--rdzv-backend=c10d", f"--rdzv-endpoint={meeting}",
            f"--rdzv-id={folder.parent.name}-{job}",
        ]  # fmt: skip
    whole = [*torchrun, "-m", "cvl_pipeline.training.launch", str(folder), digest]
    if training.nodes > 1 and training.rendezvous is None:
        return ["srun", f"--nodes={training.nodes}", "--ntasks-per-node=1", *whole]
    return whole


def _torchrun(line: list[str], folder: Path, training: TrainingParameters) -> dict[str, Any]:
    """Run all processes and return the first one's report."""
    if training.rendezvous is not None and training.nodes > 1:
        logger.info(
            "Waiting at %s for %d machines; on each of the others run: %s",
            training.rendezvous, training.nodes, shlex.join(["python", *line[1:]]),
        )  # fmt: skip
    # By default, torchrun gives each process one thread. Share the cores instead.
    threads = max(1, available_cores() // training.devices)
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
    try:
        status = _run(line, environment, folder / ERRORS)
    except FileNotFoundError as error:
        raise InputError(
            f"training.nodes is {training.nodes}, but the command {line[0]} does not exist: run in a SLURM "
            "allocation, or set training.rendezvous=host:port"
        ) from error
    report = folder / DONE
    result: dict[str, Any] = json.loads(report.read_text()) if report.exists() else {}
    # If a process dies, torchrun ends the others by SIGTERM, too.
    if "terminated" in result and SIGNALLED in (folder / ERRORS).read_bytes():
        raise SystemExit(TERMINATED)
    if "message" in result:
        raise {"InputError": InputError, "FloatingPointError": FloatingPointError}[result["error"]](
            result["message"]
        )
    if status != 0 or "world_size" not in result:
        raise TrainingError(
            f"a training process ended early (exit status {status}; see {shown(folder / ERRORS)}); run the "
            "same command again to resume from the last checkpoint"
        )
    return result


def _run(line: list[str], environment: Mapping[str, str], errors: Path) -> int:
    """Run a command and return its exit status.

    If this process has to end, it first ends the command, which saves a checkpoint. Standard error goes to a file,
    because torchrun prints a traceback for every failure.
    """
    with sigterm_raised():
        with errors.open("wb") as file:
            process = start_child(line, environment, stderr=file)
        try:
            return process.wait()
        except BaseException:  # SIGTERM, or Ctrl+C
            process.terminate()
            process.wait()
            raise


def _first_slurm_host() -> str:
    nodes = os.environ.get("SLURM_JOB_NODELIST")
    if nodes is None:
        raise InputError(
            "training.nodes is more than 1 outside of SLURM: set the address at which the machines meet, "
            "training.rendezvous=host:port"
        )
    line = ["scontrol", "show", "hostnames", nodes]
    try:
        result = subprocess.run(line, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise InputError(
            f"'{shlex.join(line)}' failed ({one_line(error)}): set the address at which the machines meet, "
            "training.rendezvous=host:port"
        ) from error
    return result.stdout.split()[0]


def work(folder: Path, digest: str) -> None:
    """Run one process of a training: read the inputs and train a share; the first process saves the results.

    Args:
        folder: of the inputs.
        digest: SHA-256 of the specification, from the process that wrote it.

    Raises:
        InputError: the folder holds other files than that process wrote, or the training raises it.
    """
    try:
        specification = json.loads(_unchanged(folder / SPECIFICATION, digest).read_text())
        artifacts = {
            kind: load_artifact(_unchanged(folder / f"{kind}.safetensors", expected), kind)
            for kind, expected in specification["artifacts"].items()
        }
        logs = specification["logs"]
        job = named(look_up("training", specification["job"], JOBS)).from_parts(
            artifacts, specification["settings"]
        )
        with kept_checkpoints(specification["kept"]):
            trained, history = job.run(Path(specification["checkpoints"]), Path(logs) if logs else None, None)
    except (InputError, FloatingPointError) as error:
        _report(folder, {"error": type(error).__name__, "message": str(error)})
        raise
    except (Exception, SystemExit) as error:
        if (fault := fault_of_user_code(error)) is not None:
            _report(folder, {"error": "InputError", "message": fault})
        elif isinstance(error, SystemExit):  # SIGTERM
            _report(folder, {"terminated": True})
        raise
    if rank() == 0:
        save_artifact(folder / f"{job.makes}.trained.safetensors", job.makes, trained)
        write_table(folder / "history.parquet", history)
        _write_json(folder / DONE, {"world_size": world_size()})


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unchanged(path: Path, digest: str) -> Path:
    if _digest(path) != digest:
        raise InputError(f"{shown(path)} is not what the starting process wrote; run the same command again")
    return path


def _report(folder: Path, result: dict[str, Any]) -> None:
    """Write the reason of an early end if this is the first process; otherwise wait for its report."""
    if rank() == 0:
        _write_json(folder / DONE, result)
    end = time.monotonic() + PATIENCE
    while not (folder / DONE).exists() and time.monotonic() < end:
        time.sleep(0.05)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    write_atomically(path, lambda partial: partial.write_text(json.dumps(values, indent=2)))


if __name__ == "__main__":
    end_with_parent()
    first = os.environ["RANK"] == "0"  # all processes log the same
    logging.basicConfig(
        level=logging.INFO if first else logging.ERROR, format="%(message)s", stream=sys.stdout
    )
    work(Path(sys.argv[1]), sys.argv[2])
