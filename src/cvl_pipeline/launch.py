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
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from cvl_pipeline.artifacts import load_artifact, save_artifact
from cvl_pipeline.dynamics.module import train_dynamics
from cvl_pipeline.dynamics.parameters import DynamicsParameters
from cvl_pipeline.errors import InputError
from cvl_pipeline.policies.module import train_policy
from cvl_pipeline.policies.parameters import PolicyParameters
from cvl_pipeline.readout.q_function import QFunction
from cvl_pipeline.storage import write_atomically
from cvl_pipeline.training.parameters import TrainingParameters
from cvl_pipeline.training.processes import rank, world_size

logger = logging.getLogger(__name__)

DONE = "done.json"
"""Written last, by the first process: what happened, and how many processes trained."""


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
    history = pd.read_parquet(folder / "history.parquet")
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
        meeting = training.rendezvous or f"{_first_slurm_host()}:29500"
        torchrun += [
            f"--nnodes={training.nodes}", "--rdzv-backend=c10d", f"--rdzv-endpoint={meeting}",
            f"--rdzv-id={folder.parent.name}",
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
        status = subprocess.run(line, env=environment, check=False).returncode
    except FileNotFoundError as error:
        raise InputError(
            f"training.nodes is {training.nodes} and {line[0]} is not there: run within a SLURM allocation, "
            "or name a rendezvous, host:port"
        ) from error
    report = folder / DONE
    result: dict[str, Any] = json.loads(report.read_text()) if report.exists() else {}
    if "message" in result:
        raise {"InputError": InputError, "FloatingPointError": FloatingPointError}[result["error"]](
            result["message"]
        )
    if status != 0 or not result:
        raise TrainingError(
            f"a training process ended early (torchrun's exit status {status}; its output is above); run the "
            "same command again to go on from the last checkpoint"
        )
    return result


def _first_slurm_host() -> str:
    nodes = os.environ.get("SLURM_JOB_NODELIST")
    if nodes is None:
        raise InputError(
            "training.nodes is more than 1 outside of SLURM: say where the machines meet, "
            "training.rendezvous=host:port"
        )
    found = subprocess.run(
        ["scontrol", "show", "hostnames", nodes], check=True, capture_output=True, text=True
    )
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
    except (InputError, FloatingPointError) as error:
        if rank() == 0:
            _write_json(folder / DONE, {"error": type(error).__name__, "message": str(error)})
        raise
    if rank() == 0:
        save_artifact(folder / f"{makes}.safetensors", makes, trained)
        write_atomically(folder / "history.parquet", history.to_parquet)
        _write_json(folder / DONE, {"world_size": world_size()})


def _kind(name: str) -> str:
    return "rewards" if name == "labels" else name


def _write_json(path: Path, values: dict[str, Any]) -> None:
    write_atomically(path, lambda partial: partial.write_text(json.dumps(values, indent=2)))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    work(Path(sys.argv[1]))
