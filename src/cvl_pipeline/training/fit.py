"""Training for every stage: launch, progress, checkpoints, resumption."""

from __future__ import annotations

import ctypes
import json
import logging
import math
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

import lightning
import pandas as pd
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy, Strategy
from pydantic import BaseModel
from torch import Tensor

from cvl_pipeline.errors import TERMINATED, InputError
from cvl_pipeline.io.checked import read_checkpoint, write_checkpoint
from cvl_pipeline.io.storage import fingerprint as fingerprint_of
from cvl_pipeline.io.storage import shown
from cvl_pipeline.schema import effective
from cvl_pipeline.training.callbacks import (
    BestWeights,
    Checkpoints,
    Progress,
    Threads,
    Throughput,
    Watch,
    Watcher,
)
from cvl_pipeline.training.devices import accelerator_of
from cvl_pipeline.training.keeping import checkpoints_are_kept
from cvl_pipeline.training.loggers import make_loggers, start
from cvl_pipeline.training.module import OfflineModule
from cvl_pipeline.training.parameters import TrainingParameters
from cvl_pipeline.training.processes import rank

logger = logging.getLogger(__name__)

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
"""Options of glibc's mallopt, from malloc.h."""
KEPT, PADDING = 2**30, 2**26
"""Bytes that the allocator keeps at most, and that it asks the system for at once."""

PRECISIONS: dict[str, Literal["32-true", "bf16-mixed"]] = {
    "float32": "32-true", "tf32": "32-true", "bfloat16": "bf16-mixed"
}  # fmt: skip
"""Lightning's names; weights and optimiser stay in float32 in all cases."""


def fit(
    module: OfflineModule,
    *,
    description: str,
    checkpoints: Path | None = None,
    fingerprint: str = "unfinished",
    logs: Path | None = None,
    best: BestWeights | None = None,
    watch: Watcher | None = None,
) -> pd.DataFrame:
    """Train the module in place.

    With several devices or nodes, torchrun starts the processes (see ``launch``), and each calls this. One process on
    the CPU uses as many threads as a step is worth (see ``threads``).

    Args:
        module: the module to train; it holds its data and its parameters.
        description: text of the progress bar.
        checkpoints: folder; its subfolder ``fingerprint`` holds the state of unfinished training, saved by
            time, by steps and on SIGTERM, and deleted when training is done (but see ``keeping``). None: not
            resumable.
        fingerprint: identifies parameters and data. Only training with the same fingerprint is resumed, so
            a changed parameter or dataset starts from the beginning.
        logs: folder of metrics.csv and of the other loggers' files; None: no logs.
        best: keeps the best weights or ends the training early.
        watch: receives every row of the history, and may raise to end the training.

    Returns:
        The history: one row per validation interval with ``step``, ``train/...`` (means over the
        interval) and ``validation/...``.

    Raises:
        InputError: there are too few GPUs, the checkpoint to resume from cannot be read, or a logger is not installed
            or cannot write.
        FloatingPointError: the loss is not finite.
        SystemExit: SIGTERM arrived; the training is saved, but not the steps since the last save if all are done.
    """
    _keep_freed_memory()
    parameters = module.training_parameters
    accelerator = accelerator_of(parameters)
    folder = checkpoints / fingerprint if checkpoints is not None else None
    saver = Checkpoints(folder, parameters.checkpoint_seconds, parameters.checkpoint_steps)
    callbacks: list[Callback] = [Progress(description, parameters.steps), *([best] if best else []), saver]
    if logs is not None:
        callbacks.insert(0, Throughput(logs))
    callbacks.insert(0, Threads())
    if watch is not None:
        callbacks.append(Watch(watch))
    resume, runs = _resumable(saver.path) if saver.path is not None else (None, {})
    for name in ("lightning.pytorch", "lightning.fabric"):
        # Lightning's reports (devices, loops) do not help the reader of a pipeline log.
        logging.getLogger(name).setLevel(logging.WARNING)
        logging.getLogger(name).handlers.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PossibleUserWarning)  # "no logger configured", "few batches"
        # Lightning uses a name that torch has deprecated.
        warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\)")
        loggers = make_loggers(parameters.loggers, logs, runs) if logs is not None else []
        start(loggers, {**effective(module.stage_parameters), "seed": module.seed})
        trainer = lightning.Trainer(
            accelerator=accelerator,
            devices=parameters.devices,
            num_nodes=parameters.nodes,
            strategy=_strategy(parameters),
            plugins=[_environment(parameters), _CheckedCheckpoints()],
            precision=PRECISIONS[parameters.precision],
            max_epochs=math.ceil(parameters.steps / module.interval) * module.chunks,
            check_val_every_n_epoch=module.chunks,
            callbacks=callbacks,
            logger=loggers,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        try:
            with rounded(parameters.precision == "tf32" and accelerator == "gpu"):
                trainer.fit(
                    module, train_dataloaders=[0], val_dataloaders=[0], ckpt_path=resume, weights_only=True
                )
        except SystemExit as error:
            if isinstance(error.__context__, KeyboardInterrupt):  # what Lightning makes of Ctrl+C
                raise KeyboardInterrupt from None
            raise
        finally:
            module.stop_prefetching()
            module.release()
            # Also if it arrived after the last chunk, or beside another error: the signal must not be lost.
            if saver.terminated:
                if saver.path is not None:
                    there = f" to resume from {shown(saver.path)}" if saver.path.exists() else ""
                    logger.warning("Stopped by SIGTERM; run the same command again%s", there)
                raise SystemExit(TERMINATED) from None
    if best is not None:
        best.restore(module)
    if folder is not None and rank() == 0 and not checkpoints_are_kept():
        shutil.rmtree(folder, ignore_errors=True)
    return pd.DataFrame(module.rows).astype({"step": int})


@contextmanager
def rounded(narrow: bool) -> Iterator[None]:
    """Let a GPU round the factors of matrix products to tf32 in this context."""
    before = torch.get_float32_matmul_precision()
    if narrow:
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _keep_freed_memory() -> None:
    """Let the allocator reuse freed memory instead of returning it to the system.

    Each step of a large batch would otherwise get a thousand fresh pages, which the system first fills with zeros.
    Only glibc has the function.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        for option, size in ((M_MMAP_THRESHOLD, KEPT), (M_TRIM_THRESHOLD, KEPT), (M_TOP_PAD, PADDING)):
            library.mallopt(option, size)


def run_fingerprint(parameters: BaseModel, seed: int, *inputs: Any) -> str:
    """Identify a training run by its parameters, seed and inputs, for ``fit``.

    Args:
        parameters: the stage's; fields that change no result (processes, checkpoints, loggers) are ignored.
        seed: of the run.
        inputs: dataclasses of tensors, numbers and other such dataclasses, modules, or None.
    """
    tensors = tensors_of({str(index): value for index, value in enumerate(inputs)})
    return fingerprint_of(tensors, {"parameters": effective(parameters), "seed": seed})[:16]


def tensors_of(inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """Collect all tensors and numbers of inputs, by input and own name, for a fingerprint.

    Args:
        inputs: dataclasses of tensors, numbers, layouts and other such dataclasses, modules, or None.
    """
    tensors: dict[str, Tensor] = {}
    for prefix, value in inputs.items():
        if value is None:
            continue
        # Not vars(value), which has what a cached property holds, too.
        parts = (
            value.state_dict()
            if isinstance(value, torch.nn.Module)
            else {field.name: getattr(value, field.name) for field in fields(value)}
        )
        for name, part in parts.items():
            if part is None:
                continue
            if hasattr(part, "plain"):  # the layout of observations
                tensors[f"{prefix}.{name}"] = torch.tensor(list(json.dumps(part.plain()).encode()))
            elif is_dataclass(part):
                tensors |= tensors_of({f"{prefix}.{name}": part})
            else:
                tensors[f"{prefix}.{name}"] = torch.as_tensor(part)
    return tensors


def _resumable(path: Path) -> tuple[Path | None, dict[str, str]]:
    """The checkpoint to resume from, if any, and the runs of its loggers; raises InputError if it is damaged."""
    if not path.exists():
        return None, {}
    state = read_checkpoint(path)
    if state["training"] != path.parent.name:
        raise InputError(f"{shown(path)} belongs to another training; delete it to start again")
    logger.info("Resuming from step %d (%s)", state["global_step"], shown(path))
    return path, state.get("runs", {})


class _Replicas(DDPStrategy):
    """Processes with equal weights, without DistributedDataParallel around the module.

    DistributedDataParallel synchronises once per forward pass, but one Lightning step here takes many
    gradient steps. The module averages its gradients itself (see ``processes``).
    """

    def configure_ddp(self) -> None:
        """Do nothing: every process creates the module from the same seed."""


def _strategy(parameters: TrainingParameters) -> Strategy | str:
    return _Replicas() if parameters.devices * parameters.nodes > 1 else "auto"


def _environment(parameters: TrainingParameters) -> LightningEnvironment | TorchElasticEnvironment:
    """Environment that counts the processes; not SLURM's, where Lightning takes devices for SLURM tasks."""
    if parameters.devices * parameters.nodes == 1:
        return LightningEnvironment()
    if not TorchElasticEnvironment.detect():
        raise RuntimeError(
            f"training.devices={parameters.devices}, nodes={parameters.nodes} need torchrun; start the "
            "processes with cvl_pipeline.training.launch, as the pipeline does"
        )
    return TorchElasticEnvironment()


class _CheckedCheckpoints(TorchCheckpointIO):
    """Write checkpoints atomically and verify their checksum on read.

    Lightning's own class moves a file from the temporary folder. If that is on another file system, the
    move is a copy and not atomic. It also misses a changed byte of a weight.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        write_checkpoint(Path(path), {**checkpoint, "training": Path(path).parent.name})

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        return read_checkpoint(Path(path), map_location)
