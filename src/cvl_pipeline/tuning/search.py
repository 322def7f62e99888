"""Run a study: workers on this machine, until it has ``tuning.trials`` finished trials."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from cvl_pipeline.episodes.data import EpisodeData
from cvl_pipeline.errors import InputError
from cvl_pipeline.io.artifacts import save_artifact
from cvl_pipeline.io.children import sigterm_raised, start_child
from cvl_pipeline.io.storage import fingerprint, shown
from cvl_pipeline.parameters import StageParameters
from cvl_pipeline.readout.diagnostics import check_ranked_steps
from cvl_pipeline.training.devices import available_cores, visible_devices
from cvl_pipeline.training.fit import tensors_of
from cvl_pipeline.training.launch import TrainingError
from cvl_pipeline.tuning.parameters import TuningParameters
from cvl_pipeline.tuning.results import trials_table
from cvl_pipeline.tuning.space import check_space
from cvl_pipeline.tuning.storage import StudyLocation, reachable
from cvl_pipeline.tuning.study import check_success, counts, open_study, prepare, signature, study_name
from cvl_pipeline.tuning.worker import POLL, Specification

logger = logging.getLogger(__name__)

MOST_WORKERS = 8
"""Workers without a GPU, at most: a sampler gains little from more parallel trials."""


def search(
    data: EpisodeData,
    stages: StageParameters,
    tuning: TuningParameters,
    location: StudyLocation,
    folder: Path,
) -> pd.DataFrame:
    """Start or continue a study until it has ``tuning.trials`` finished trials.

    Other machines may call this function for the same study, with the same storage.

    Args:
        data: the episodes, with the log's rewards.
        stages: all parameters, except those that the space changes.
        tuning: the study's parameters.
        location: the storage.
        folder: folder of the study on this machine: inputs, records and files that trials share.

    Returns:
        All trials (see ``trials_table``).

    Raises:
        InputError: a space that cannot be searched; a storage that is damaged, cannot be reached, or contains
            the study with other parameters; more than ``tuning.max_failures`` failures.
        TrainingError: workers were killed, or ended too early, more than ``tuning.max_failures`` times.
        SystemExit: SIGTERM; the next run resumes unfinished trials.
    """
    check_space(tuning, stages)
    name = study_name(stages, tuning)
    workers = tuning.workers or len(_devices()) or min(available_cores(), MOST_WORKERS)
    study = open_study(location, name, tuning, stages.seed)
    parts = data.parts()
    begun_with = len(study.get_trials(deepcopy=False))
    specification = Specification(folder, location, name, stages, tuning, 0, workers, begun_with)
    prepare(
        study,
        signature(stages, tuning, fingerprint(tensors_of(parts), {})),
        tuning,
        stages,
        specification.records,
    )
    check_success(study, tuning)
    if "returns_correlation" in tuning.measured:
        check_ranked_steps(data.transitions, data.split, tuning.returns_discount)
    logger.info("Searched: %s (tuning.space; null leaves one out)", ", ".join(tuning.space))
    for kind, part in parts.items():
        save_artifact(folder / "inputs" / f"{kind}.safetensors", kind, part)
    finished, _, _ = counts(study)
    logger.info(
        "Study '%s' in %s: %d of %d trials are finished; %d workers, whose logs are in %s",
        name, location, finished, tuning.trials, workers, shown(folder / "workers"),
    )  # fmt: skip
    if finished < tuning.trials:
        with sigterm_raised(), reachable(location):
            _run(study, specification)
    return trials_table(study.get_trials(deepcopy=False), tuning)


class _Reporter:
    """Logs one line per trial that ends."""

    def __init__(self, study: Study, tuning: TuningParameters) -> None:
        self._study = study
        self._tuning = tuning
        self._reported = {trial.number for trial in self._ended()}

    def _ended(self) -> list[FrozenTrial]:
        return [trial for trial in self._study.get_trials(deepcopy=False) if trial.state.is_finished()]

    def report(self) -> None:
        """Log the trials that have ended since the last call."""
        ended = self._ended()
        finished, _, _ = counts(self._study)
        for trial in ended:
            if trial.number in self._reported or trial.user_attrs.get("surplus"):
                continue
            self._reported.add(trial.number)
            logger.info("%d/%d trial %d: %s", finished, self._tuning.trials, trial.number, self._line(trial))

    def _line(self, trial: FrozenTrial) -> str:
        point = ", ".join(f"{name.split('.')[-1]} {_short(value)}" for name, value in trial.params.items())
        if trial.state == TrialState.FAIL:
            return f"failed ({trial.user_attrs.get('error', 'interrupted; it is repeated')}); {point}"
        if trial.state == TrialState.PRUNED:
            return f"pruned; {point}"
        measured = trial.user_attrs.get("measured", {})
        numbers = ", ".join(f"{name} {value:.3f}" for name, value in measured.items())
        return f"{numbers}; {point} ({trial.user_attrs.get('seconds', 0.0):.0f} s)"


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _run(study: Study, specification: Specification) -> None:
    """Run workers until all trials are done; replace workers that ended earlier."""
    reporter = _Reporter(study, specification.tuning)
    running: dict[int, subprocess.Popen[bytes]] = {}
    killed = 0
    try:
        for index in range(specification.workers):
            running[index] = start_worker(replace(specification, index=index))
        while running:
            time.sleep(POLL)
            reporter.report()
            for index, process in list(running.items()):
                status = process.poll()
                if status is None:
                    continue
                del running[index]
                if status == 2 and (message := _last_error(specification, index)) is not None:
                    raise InputError(message)
                # Code of the user's own, or a library, may end Python with any status.
                if status != 0 or counts(study)[0] < specification.tuning.trials:
                    killed += 1
                    if killed > specification.tuning.max_failures:
                        raise TrainingError(
                            f"tuning: workers ended early {killed} times (exit status {status}; see "
                            f"{shown(_log_path(specification, index))}); run the same command again to continue"
                        )
                    logger.warning(
                        "Worker %d ended early (exit status %d); another worker replaces it", index, status
                    )
                    # Its random points follow from this number: the same one would repeat those of the last worker.
                    begun_with = len(study.get_trials(deepcopy=False))
                    running[index] = start_worker(replace(specification, index=index, begun_with=begun_with))
    except SystemExit:
        logger.warning("Stopped by SIGTERM; run the same command again to continue the study")
        raise
    finally:
        for process in running.values():
            process.terminate()  # it saves a checkpoint, which the next run resumes
        for process in running.values():
            process.wait()


def start_worker(specification: Specification) -> subprocess.Popen[bytes]:
    """Start a worker process, which ends with this process and logs to the study's folder."""
    threads = max(1, available_cores() // specification.workers)
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
    if devices := _devices():
        environment["CUDA_VISIBLE_DEVICES"] = devices[specification.index % len(devices)]
    path = _log_path(specification, specification.index)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        process = start_child(
            [sys.executable, "-m", "cvl_pipeline.tuning.worker"],
            environment,
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=file,
        )
    assert process.stdin is not None
    process.stdin.write(specification.to_json().encode())
    process.stdin.close()
    return process


def _devices() -> tuple[str, ...]:
    """GPUs for the workers: without a GPU, CUDA_VISIBLE_DEVICES may name some that do not exist."""
    return visible_devices()[: torch.cuda.device_count()]


def _log_path(specification: Specification, index: int) -> Path:
    return specification.folder / "workers" / f"{index}.log"


def _last_error(specification: Specification, index: int) -> str | None:
    lines = _log_path(specification, index).read_text().splitlines()
    errors = [line.removeprefix("Error: ") for line in lines if line.startswith("Error: ")]
    return errors[-1] if errors else None
