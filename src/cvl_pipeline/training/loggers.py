"""Where else training tells its metrics, beside metrics.csv."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path

from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from cvl_pipeline.errors import InputError

PROJECT = "cvl-pipeline"

logger = logging.getLogger(__name__)


def make_loggers(names: tuple[str, ...], folder: Path) -> list[Logger]:
    """The loggers of the given names.

    Args:
        names: ``tensorboard`` writes event files to the folder, and is left out where it is not installed;
            ``mlflow`` writes to MLFLOW_TRACKING_URI, or to the folder; ``wandb`` as its own login says.
        folder: of this training; its name and that of the folder around it name the run.

    Raises:
        InputError: mlflow or wandb was asked for and is not installed.
    """
    for name in names:
        if name != "tensorboard" and find_spec(name) is None:
            raise InputError(f"training.loggers: {name} is not installed; run: pip install {name}")
    run = f"{folder.parent.parent.name}/{folder.name}"
    loggers: list[Logger] = []
    if "tensorboard" in names and find_spec("tensorboard") is not None:
        loggers.append(TensorBoardLogger(folder, name="", version="tensorboard"))
    if "mlflow" in names:
        loggers.append(MLFlowLogger(PROJECT, run, save_dir=str(folder / "mlruns")))
    if "wandb" in names:
        loggers.append(WandbLogger(run, folder, project=PROJECT))
    return loggers
