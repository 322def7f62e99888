"""One way to train, for every stage: launch, progress, checkpoints, resumption."""

from __future__ import annotations

import logging
import math
import shutil
import warnings
from pathlib import Path
from typing import Any, Literal

import lightning
import pandas as pd
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from pydantic import BaseModel
from torch import Tensor

from cvl_pipeline.errors import InputError
from cvl_pipeline.storage import fingerprint as fingerprint_of
from cvl_pipeline.storage import shown, write_atomically
from cvl_pipeline.training.module import OfflineModule
from cvl_pipeline.training.progress import progress_bar

logger = logging.getLogger(__name__)

PRECISIONS: dict[str, Literal["32-true", "bf16-mixed"]] = {"float32": "32-true", "bfloat16": "bf16-mixed"}
"""Lightning's names: weights and optimiser stay in float32 either way."""


def fit(
    module: OfflineModule,
    *,
    description: str,
    checkpoints: Path | None = None,
    fingerprint: str = "unfinished",
) -> pd.DataFrame:
    """Train the module in place.

    Args:
        module: what to train; it holds its data and its parameters.
        description: what the progress bar says.
        checkpoints: folder whose subfolder ``fingerprint`` keeps the state of unfinished training; it is
            written after every validation interval and removed when training is done. None: not
            resumable.
        fingerprint: identifies parameters and data. Unfinished training is resumed only under the same
            fingerprint, so a changed parameter or dataset starts anew.

    Returns:
        The history: one row a validation interval with ``step``, ``train/...`` (means over the
        interval) and ``validation/...``.

    Raises:
        InputError: the checkpoint to resume from cannot be read.
        FloatingPointError: the loss is not a number.
    """
    parameters = module.training_parameters
    callbacks: list[Callback] = [_Progress(description, parameters.steps)]
    folder = checkpoints / fingerprint if checkpoints is not None else None
    resume: Path | None = None
    if folder is not None:
        callbacks.append(
            ModelCheckpoint(
                dirpath=folder, filename="last", save_top_k=1, save_on_train_epoch_end=True,
                enable_version_counter=False,
            )
        )  # fmt: skip
        resume = _resumable(folder / "last.ckpt")
    # Not Lightning's auto: it would take Apple's GPU, which has no double precision to draw offsets in.
    accelerator: str = parameters.accelerator
    if accelerator == "auto":
        accelerator = "gpu" if torch.cuda.is_available() else "cpu"
    for name in ("lightning.pytorch", "lightning.fabric"):
        # What it reports (which devices exist, which loops it runs) is not for the reader of a pipeline log.
        logging.getLogger(name).setLevel(logging.WARNING)
        logging.getLogger(name).handlers.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PossibleUserWarning)  # "no logger configured", "few batches"
        warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
        # Lightning's own use of a name that torch has deprecated.
        warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\)")
        trainer = lightning.Trainer(
            accelerator=accelerator,
            devices=1,
            precision=PRECISIONS[parameters.precision],
            max_epochs=math.ceil(parameters.steps / parameters.validation_interval),
            callbacks=callbacks,
            plugins=[_AtomicCheckpoints()],
            logger=False,
            enable_checkpointing=folder is not None,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        trainer.fit(
            module, train_dataloaders=module.chunks(), val_dataloaders=[0],
            ckpt_path=resume, weights_only=True,
        )  # fmt: skip
    if folder is not None:
        shutil.rmtree(folder)
    return pd.DataFrame(module.rows).astype({"step": int})


def run_fingerprint(parameters: BaseModel, seed: int, *inputs: Any) -> str:
    """Identifies a training run by its parameters, seed and inputs, for ``fit``.

    Args:
        parameters: the stage's.
        seed: the run's.
        inputs: dataclasses of tensors and numbers, modules, or None.
    """
    tensors: dict[str, Tensor] = {}
    for index, value in enumerate(inputs):
        if value is None:
            continue
        parts = value.state_dict() if isinstance(value, torch.nn.Module) else vars(value)
        tensors |= {f"{index}.{name}": torch.as_tensor(part) for name, part in parts.items()}
    return fingerprint_of(tensors, {"parameters": parameters.model_dump(), "seed": seed})[:16]


def _resumable(path: Path) -> Path | None:
    """The checkpoint, if there is one; raises InputError if it is damaged."""
    if not path.exists():
        return None
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
        step = state["global_step"]
    except Exception as error:
        raise InputError(
            f"checkpoint {shown(path)} cannot be read ({type(error).__name__}); delete it to train anew"
        ) from error
    logger.info("Resuming from step %d (%s)", step, shown(path))
    return path


class _Progress(Callback):
    """Gradient steps done, of all."""

    def __init__(self, description: str, steps: int) -> None:
        self._description = description
        self._steps = steps
        self._bar = progress_bar()

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._task = self._bar.add_task(self._description, total=self._steps, completed=trainer.global_step)
        self._bar.start()

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        self._bar.update(self._task, completed=trainer.global_step)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._bar.stop()

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        self._bar.stop()


class _AtomicCheckpoints(TorchCheckpointIO):
    """Writes beside the old checkpoint and renames.

    Lightning's own moves a file from the temporary folder, which is a copy, and so not atomic, where
    that folder lies on another file system.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        write_atomically(Path(path), lambda partial: torch.save(checkpoint, partial))
