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
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pandas as pd

from cvl_pipeline.errors import InputError, one_line
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


class TrainingError(RuntimeError):
    """A process of a training ended early. The message is one line for a person; what was done is kept."""


class StageParameters(Protocol):
    """The parameters of a stage that trains: a Pydantic model with a field ``training``."""

    @property
    def training(self) -> TrainingParameters:
        """How many processes, among others."""

    def model_dump(self, *, mode: str) -> dict[str, Any]:
        """Plain values."""


def train(
    function: Callable[..., tuple[Any, pd.DataFrame]],
    makes: str,
    parameters: StageParameters,
    seed: int,
    checkpoints: Path,
    logs: Path | None,
    inputs: Mapping[str, Any],
    watch: Watcher | None = None,
) -> tuple[Any, pd.DataFrame]:
    """Train in this process, or in as many as the parameters ask for.

    Args:
        function: trains; takes parameters, seed, checkpoints, logs and the inputs by these names, and returns
            the module and its history. Other processes import it by its name.
        makes: the kind of artifact that the module is.
        parameters: of its stage; ``training.devices`` and ``nodes`` say how many processes.
        seed: of the run.
        checkpoints: folder that unfinished training is kept in and resumed from. With several machines, on a
            disk that all of them see.
        logs: folder of metrics.csv and other logs; None: no logs.
        inputs: artifacts by their kind; ``labels`` are of the kind rewards.
        watch: is shown every row of the dynamics' history as it is measured, and may raise to end the
            training; by several processes it is shown none.

    Returns:
        The trained module, on the CPU, and the history.

    Raises:
        InputError: a damaged checkpoint; a parameter or a logger that cannot be used.
        FloatingPointError: the loss is not a number.
        TrainingError: a process was killed.
        SystemExit: SIGTERM, to this process or to one of those it started; what was done is saved.
    """
    if parameters.training.devices * parameters.training.nodes == 1:
        watched = {} if watch is None else {"watch": watch}
        return function(
            parameters=parameters, seed=seed, checkpoints=checkpoints, logs=logs, **watched, **inputs
        )
    specification = {
        "function": _name(function), "makes": makes,
        "model": _name(type(parameters)), "parameters": parameters.model_dump(mode="json"), "seed": seed,
        "checkpoints": str(checkpoints.absolute()), "logs": str(logs.absolute()) if logs else None,
        "inputs": sorted(inputs),
    }  # fmt: skip
    folder = (checkpoints / "launch").absolute()
    shutil.rmtree(folder, ignore_errors=True)
    for name, value in inputs.items():
        save_artifact(folder / f"{name}.safetensors", _kind(name), value)
    _write_json(folder / "specification.json", specification)
    result = _torchrun(folder, parameters.training)
    trained = load_artifact(folder / f"{makes}.safetensors", makes)
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
    """One process of a training: read the inputs, train a share, and as the first save the results."""
    specification = json.loads((folder / "specification.json").read_text())
    makes = specification["makes"]
    inputs = {
        name: load_artifact(folder / f"{name}.safetensors", _kind(name)) for name in specification["inputs"]
    }
    try:
        trained, history = named(specification["function"])(
            parameters=named(specification["model"])(**specification["parameters"]),
            seed=specification["seed"],
            checkpoints=Path(specification["checkpoints"]),
            logs=Path(specification["logs"]) if specification["logs"] else None,
            **inputs,
        )
    except SystemExit:
        _tell(folder, {"terminated": True})
        raise
    except (InputError, FloatingPointError) as error:
        _tell(folder, {"error": type(error).__name__, "message": str(error)})
        raise
    if rank() == 0:
        save_artifact(folder / f"{makes}.safetensors", makes, trained)
        write_table(folder / "history.parquet", history)
        _write_json(folder / DONE, {"world_size": world_size()})


def _tell(folder: Path, result: dict[str, Any]) -> None:
    """Write the end of a training that ends early, if this is the first process; else wait for it to."""
    if rank() == 0:
        _write_json(folder / DONE, result)
    end = time.monotonic() + PATIENCE
    while not (folder / DONE).exists() and time.monotonic() < end:
        time.sleep(0.05)


def _name(thing: Callable[..., Any]) -> str:
    return f"{thing.__module__}:{thing.__qualname__}"


def _kind(name: str) -> str:
    return "rewards" if name == "labels" else name


def _write_json(path: Path, values: dict[str, Any]) -> None:
    write_atomically(path, lambda partial: partial.write_text(json.dumps(values, indent=2)))


if __name__ == "__main__":
    end_with_parent()
    first = os.environ["RANK"] == "0"  # the others have the same to say
    logging.basicConfig(
        level=logging.INFO if first else logging.ERROR, format="%(message)s", stream=sys.stdout
    )
    work(Path(sys.argv[1]))
