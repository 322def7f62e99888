"""Loggers of training metrics besides metrics.csv."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from cvl_pipeline.errors import InputError

PROJECT = "cvl-pipeline"

logger = logging.getLogger(__name__)


def make_loggers(names: tuple[str, ...], folder: Path) -> list[Logger]:
    """Create the loggers of the given names.

    Args:
        names: ``tensorboard`` writes event files to the folder, and is skipped if it is not installed;
            ``mlflow`` writes to MLFLOW_TRACKING_URI, or else to the folder; ``wandb`` uses its own login.
        folder: of this training, such as ``seed_0/logs/policy_logs``; the run is ``seed_0/policy_logs``.

    Raises:
        InputError: mlflow or wandb is requested but not installed.
    """
    for name in names:
        if name != "tensorboard" and find_spec(name) is None:
            raise InputError(f"training.loggers: {name} is not installed; run: pip install {name}")
    run = f"{folder.parent.parent.name}/{folder.name}"
    loggers: list[Logger] = []
    if "tensorboard" in names and find_spec("tensorboard") is not None:
        loggers.append(_TensorBoard(folder, name="", version="tensorboard"))
    if "mlflow" in names:
        loggers.append(MLFlowLogger(PROJECT, run, save_dir=str(folder / "mlruns")))
    if "wandb" in names:
        loggers.append(WandbLogger(run, folder, project=PROJECT))
    return loggers


class _TensorBoard(TensorBoardLogger):
    """Writes every row at once, so that a folder that was moved is an error of the training, not of a thread."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        super().log_metrics(metrics, step)
        self.experiment.flush()
