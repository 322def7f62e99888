"""Loggers of trainings and results besides metrics.csv: TensorBoard, MLflow, Weights & Biases."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from filelock import FileLock
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from cvl_pipeline.errors import InputError, one_line

PROJECT = "cvl-pipeline"
"""Name of the project at W&B and of the experiment in MLflow, unless their own variables name another."""
REPORTING, LOGS = "08_reporting", "logs"
"""Names of folders of a project of Kedro, which are no part of a run's name."""


def make_loggers(names: Sequence[str], folder: Path, runs: Mapping[str, str] | None = None) -> list[Logger]:
    """Create the loggers of the given names.

    Args:
        names: ``tensorboard`` writes event files to the folder, and is skipped if it is not installed; ``mlflow``
            writes to MLFLOW_TRACKING_URI, or else to a database (see ``database``); ``wandb`` uses its own login, and
            stores its files in the folder.
        folder: of this training, such as ``08_reporting/door/seed_0/logs/cvl``; the run is ``door/seed_0/cvl``.
        runs: ids of the runs to continue, by the logger's name (see ``run_ids``).

    Raises:
        InputError: mlflow or wandb is requested but not installed.
    """
    for name in names:
        if name != "tensorboard" and find_spec(name) is None:
            raise InputError(
                f"training.loggers: {name} is not installed; run: pip install 'cvl-pipeline[{name}]'"
            )
    run, runs = run_name(folder), runs or {}
    # W&B and MLflow show the trainings of one data set and seed together.
    group = run.rpartition("/")[0]
    loggers: list[Logger] = []
    if "tensorboard" in names and find_spec("tensorboard") is not None:
        loggers.append(_TensorBoard(folder, name="", version="tensorboard"))
    if "mlflow" in names:
        with naming("MLflow"):
            loggers.append(_MLflow(folder, run, {"group": group}, runs.get("mlflow")))
    if "wandb" in names:
        with naming("WeightsAndBiases"):
            loggers.append(_WeightsAndBiases(run, folder, group, runs.get("wandb")))
    return loggers


def run_name(folder: Path) -> str:
    """Name the run of a training after the folder of its logs.

    ``data/08_reporting/door/seed_0/logs/sarsa/q`` is ``door/seed_0/sarsa/q``. Outside of such a folder, the last two
    parts count.
    """
    parts = folder.absolute().parts
    if REPORTING in parts:
        return "/".join(part for part in parts[parts.index(REPORTING) + 1 :] if part != LOGS)
    return "/".join(parts[-2:])


def database(folder: Path) -> Path:
    """File of MLflow's database without a server: one for all trainings of a project.

    Args:
        folder: of the logs; the file is in ``08_reporting``, or in the folder itself if that is elsewhere.
    """
    place = folder.absolute()
    shared = next((parent for parent in place.parents if parent.name == REPORTING), place)
    return shared / "mlflow.db"


@rank_zero_only
def start(loggers: Sequence[Logger], parameters: Mapping[str, Any]) -> None:
    """Log the parameters of a run, which begins or goes on.

    Raises:
        InputError: a logger cannot write, such as to a server that does not answer.
    """
    for logger in loggers:
        with naming(logger):
            logger.log_hyperparams(dict(parameters))


def log_results(
    names: Sequence[str], folder: Path, parameters: Mapping[str, Any], metrics: Mapping[str, float]
) -> None:
    """Log a run of its own, without steps.

    Args:
        names: of the loggers.
        folder: for the files of loggers; it names the run.
        parameters: plain values, by name.
        metrics: numbers, by name.

    Raises:
        InputError: a logger is missing or cannot write.
    """
    loggers = make_loggers(names, folder)
    start(loggers, parameters)
    for logger in loggers:
        with naming(logger):
            logger.log_metrics(dict(metrics))
            logger.finalize("success")


def run_ids(loggers: Sequence[Logger]) -> dict[str, str]:
    """Ids of the runs of MLflow and W&B, by the logger's name."""
    return {
        logger.key: str(logger.version)
        for logger in loggers
        if isinstance(logger, _MLflow | _WeightsAndBiases)
    }


@contextmanager
def naming(logger: Logger | str) -> Iterator[None]:
    """Report errors, of which each logger has kinds of its own, as one line that names the logger."""
    name = logger if isinstance(logger, str) else type(logger).__name__.lstrip("_")
    try:
        yield
    except Exception as error:
        raise InputError(
            f"training.loggers: {name} cannot write ({one_line(error)[:300]}); repair it, "
            "or leave it out, and run the same command to resume"
        ) from error


class _TensorBoard(TensorBoardLogger):
    """Writes every row at once, so that a folder that was moved is an error of the training, not of a thread."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        super().log_metrics(metrics, step)
        self.experiment.flush()

    def log_hyperparams(
        self,
        params: dict[str, Any] | Namespace,
        metrics: dict[str, Any] | None = None,
        step: int | None = None,
    ) -> None:
        """Write the parameters for the page HPARAMS; Lightning would log a metric that means nothing with them."""
        from torch.utils.tensorboard.summary import hparams

        self.hparams.update(params)
        values = self._sanitize_params(vars(params) if isinstance(params, Namespace) else params)
        columns = dict.fromkeys(("train/loss", "validation/loss", "validation/action_error"))
        for summary in hparams(values, columns):  # type: ignore[no-untyped-call]
            self.experiment._get_file_writer().add_summary(summary)
        self.experiment.flush()


class _MLflow(MLFlowLogger):
    """Creates database and experiment, which another process may do at the same time."""

    key = "mlflow"

    def __init__(self, folder: Path, run: str, tags: dict[str, str], run_id: str | None) -> None:
        address = os.environ.get("MLFLOW_TRACKING_URI")
        self._is_resumed = run_id is not None
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        file = database(folder)
        shared: AbstractContextManager[Any] = nullcontext()
        if not address:
            file.parent.mkdir(parents=True, exist_ok=True)
            address, shared = f"sqlite:///{file}", FileLock(file.with_suffix(".lock"))
        with shared:
            super().__init__(experiment, run, address, tags, run_id=run_id)

    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        """Log the parameters as the first thing of a run."""
        from mlflow.exceptions import MlflowException

        if self._mlflow_client.get_experiment_by_name(self._experiment_name) is None:
            try:
                self._mlflow_client.create_experiment(self._experiment_name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
        super().log_hyperparams(params)
        if self._is_resumed:
            self.experiment.update_run(self.run_id, status="RUNNING")


class _WeightsAndBiases(WandbLogger):
    """Ends its run with the training; otherwise the next training of this process would continue it."""

    key = "wandb"

    def __init__(self, run: str, folder: Path, group: str, run_id: str | None) -> None:
        import wandb

        self._is_own = wandb.run is None  # else the user's, which Lightning takes
        folder.mkdir(parents=True, exist_ok=True)  # W&B warns if it has to
        super().__init__(
            run,
            folder,
            id=run_id,
            resume=None if run_id is None else "allow",
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            group=group,
            settings=wandb.Settings(console="off", silent=True),  # the terminal belongs to the pipeline
        )
        self._wandb_init.pop("anonymous", None)  # W&B warns of it

    def finalize(self, status: str) -> None:
        super().finalize(status)
        if self._experiment is not None and self._is_own:
            self._experiment.finish(exit_code=int(status != "success"))
            self._experiment = None
