"""Training by several processes, on one machine or many.

A Lightning trainer inside ``kedro run`` cannot start other processes without running the whole pipeline in
each, so training by several processes goes through torchrun: its inputs are saved as artifacts, every process
(``python -m cvl_pipeline.launch FOLDER``) reads them and trains its share, and the first saves the results,
which are read back here. With one process, training stays in this one.
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
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from cvl_pipeline.artifacts import load_artifact, save_artifact
from cvl_pipeline.checked import read_table, write_table
from cvl_pipeline.dynamics.module import train_dynamics
from cvl_pipeline.dynamics.parameters import DynamicsParameters
from cvl_pipeline.errors import InputError, one_line
from cvl_pipeline.policies.module import train_policy
from cvl_pipeline.policies.parameters import PolicyParameters
from cvl_pipeline.readout.q_function import QFunction
from cvl_pipeline.storage import shown, write_atomically
from cvl_pipeline.training.fit import TERMINATED
from cvl_pipeline.training.parameters import TrainingParameters
from cvl_pipeline.training.processes import end_with_parent, rank, world_size

logger = logging.getLogger(__name__)

DONE = "done.json"
"""Written last, by the first process: what happened, and how many processes trained."""
ERRORS = "processes.log"
"""What the processes of this machine wrote to standard error: tracebacks, torchrun's reports."""
PATIENCE = 30.0
"""Seconds that a process which has to end waits for the first to say why: torchrun ends all with any."""


class TrainingError(RuntimeError):
    """A process of a training ended early. The message is one line for a person; what was done is kept."""


def _dynamics(parameters: dict[str, Any], **inputs: Any) -> tuple[nn.Module, pd.DataFrame]:
    return train_dynamics(parameters=DynamicsParameters(**parameters), **inputs)


def _policy(
    parameters: dict[str, Any], critic: Any = None, readout: Any = None, **inputs: Any
) -> tuple[nn.Module, pd.DataFrame]:
    q = QFunction(critic, readout) if critic is not None else None
    return train_policy(parameters=PolicyParameters(**parameters), q=q, **inputs)


TRAININGS: dict[str, tuple[str, Callable[..., tuple[nn.Module, pd.DataFrame]]]] = {
    "dynamics": ("critic", _dynamics),
    "policy": ("policy", _policy),
}
"""What each training makes, and how."""


def train(
    training: str,
    parameters: DynamicsParameters | PolicyParameters,
    seed: int,
    checkpoints: Path,
    logs: Path,
    inputs: Mapping[str, Any],
) -> tuple[Any, pd.DataFrame]:
    """Train in this process, or in as many as the parameters ask for.

    Args:
        training: one of TRAININGS.
        parameters: of its stage; ``training.devices`` and ``nodes`` say how many processes.
        seed: of the run.
        checkpoints: folder that unfinished training is kept in and resumed from. With several machines, on a
            disk that all of them see.
        logs: folder of metrics.csv and other logs.
        inputs: artifacts by their kind; ``labels`` are of the kind rewards.

    Returns:
        The trained module, on the CPU, and the history.

    Raises:
        InputError: a damaged checkpoint; a parameter or a logger that cannot be used.
        FloatingPointError: the loss is not a number.
        TrainingError: a process was killed.
        SystemExit: SIGTERM, to this process or to one of those it started; what was done is saved.
    """
    makes, function = TRAININGS[training]
    given = {name: value for name, value in inputs.items() if value is not None}
    specification = {
        "training": training, "parameters": parameters.model_dump(mode="json"), "seed": seed,
        "checkpoints": str(checkpoints.absolute()), "logs": str(logs.absolute()), "inputs": sorted(given),
    }  # fmt: skip
    if parameters.training.devices * parameters.training.nodes == 1:
        return function(parameters.model_dump(), seed=seed, checkpoints=checkpoints, logs=logs, **given)
    folder = (checkpoints / "launch").absolute()
    shutil.rmtree(folder, ignore_errors=True)
    for name, value in given.items():
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
    whole = [*torchrun, "-m", "cvl_pipeline.launch", str(folder)]
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
    main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGTERM, _terminate) if main else None
    try:
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
    finally:
        if main:
            signal.signal(signal.SIGTERM, handler)


def _terminate(*_: object) -> None:
    raise SystemExit(TERMINATED)


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
    makes, function = TRAININGS[specification["training"]]
    inputs = {
        name: load_artifact(folder / f"{name}.safetensors", _kind(name)) for name in specification["inputs"]
    }
    try:
        trained, history = function(
            specification["parameters"],
            seed=specification["seed"],
            checkpoints=Path(specification["checkpoints"]),
            logs=Path(specification["logs"]),
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
