"""A worker of a study: runs trials until the study has ``tuning.trials`` finished ones."""

from __future__ import annotations

import json
import logging
import math
import platform
import sys
import threading
import time
import uuid
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.study import Study
from optuna.trial import Trial, TrialState
from pydantic import TypeAdapter

from cvl_pipeline.episodes.data import EpisodeData
from cvl_pipeline.errors import InputError, one_line
from cvl_pipeline.imports import fault_of_user_code
from cvl_pipeline.io.artifacts import load_artifact
from cvl_pipeline.io.children import end_with_parent
from cvl_pipeline.io.owner import owner
from cvl_pipeline.io.storage import write_atomically
from cvl_pipeline.parameters import StageParameters
from cvl_pipeline.readout.parameters import REWARDS
from cvl_pipeline.training.devices import available_cores
from cvl_pipeline.training.seeds import stream_seed
from cvl_pipeline.tuning.objectives import OBJECTIVES
from cvl_pipeline.tuning.parameters import TuningParameters
from cvl_pipeline.tuning.space import suggest
from cvl_pipeline.tuning.storage import StudyLocation, check_journal, reachable
from cvl_pipeline.tuning.study import (
    FINISHED,
    MADE_FOR,
    SUCCESS_UNKNOWN,
    check_success,
    counts,
    open_study,
    record_path,
    release_dead,
)
from cvl_pipeline.tuning.trial import Bench

logger = logging.getLogger(__name__)

PULSE = 15.0
"""Seconds between the heartbeats of a running trial."""
POLL = 1.0
"""Seconds between checks of the other workers' trials when no trial is left to start."""
RECOVERABLE = (ValueError, ArithmeticError, MemoryError, RuntimeError)
"""Errors that fail a trial but not the study: incompatible values, divergence, too little memory."""


class _SurplusError(Exception):
    """Another worker started the last trial at the same moment."""


@dataclass(frozen=True)
class Specification:
    """The input of a worker.

    Attributes:
        folder: folder of the study: inputs, records and files that trials share.
        location: the storage.
        name: name of the study in the storage.
        stages: all parameters, except those of the space.
        tuning: the study's parameters.
        index: number of this worker on this machine.
        workers: number of workers on this machine.
        begun_with: number of trials in the study when the worker started, or those it started with.
    """

    folder: Path
    location: StudyLocation
    name: str
    stages: StageParameters
    tuning: TuningParameters
    index: int
    workers: int
    begun_with: int

    @property
    def records(self) -> Path:
        """Folder of the finished trials' results."""
        return self.folder / "records"

    def to_json(self) -> str:
        """Encode for another process. The text may contain a password: use a pipe, never a file."""
        return json.dumps(TypeAdapter(Specification).dump_python(self, mode="json"))

    @staticmethod
    def from_json(text: str) -> Specification:
        """Decode the output of ``to_json``."""
        return TypeAdapter(Specification).validate_python(json.loads(text))


def work(specification: Specification) -> None:
    """Run trials until the study has enough finished ones.

    Raises:
        InputError: the storage is damaged or cannot be reached, too many trials failed, or code of the user's own
            ended Python.
        SystemExit: SIGTERM.
    """
    tuning = specification.tuning
    study = open_study(specification.location, specification.name, tuning, _sampler_seed(specification))
    inputs = specification.folder / "inputs"
    kinds = ("transitions", "split", "normalisation", "rewards")
    data = EpisodeData(**{kind: load_artifact(inputs / f"{kind}.safetensors", kind) for kind in kinds})
    bench = Bench(
        data, specification.stages, tuple(tuning.space), tuning.returns_discount,
        specification.folder / "shared", max(1, available_cores() // specification.workers),
    )  # fmt: skip
    try:
        with reachable(specification.location):
            objective = _Objective(specification, study, bench)
            while _may_begin(study, specification):
                _try_one(study, objective, specification.location)
    except SystemExit as error:
        fault = fault_of_user_code(error)
        if fault is None:  # SIGTERM
            raise
        raise InputError(fault) from error


def _try_one(study: Study, objective: _Objective, location: StudyLocation) -> None:
    try:
        study.optimize(objective, n_trials=1, catch=(*RECOVERABLE, _SurplusError))
    except (UpdateFinishedTrialError, ValueError) as error:
        if location.url is None:
            check_journal(location.journal)
        # The result was so late that another machine considered the trial dead and ended it.
        logger.warning("The trial had already ended when its result arrived: %s", one_line(error))


def _sampler_seed(specification: Specification) -> int:
    """Seed that differs between workers, their replacements and resumptions, so that they sample different points."""
    location, stages = specification.location, specification.stages
    number = 64 * specification.begun_with + specification.index
    if location.url is not None:  # other machines have workers with the same index
        number += 2**20 * zlib.crc32(platform.node().encode())
    return stream_seed(stages.seed, "tuning", number) % 2**32


def _may_begin(study: Study, specification: Specification) -> bool:
    """Wait until a trial may start (True) or the study has enough finished trials (False)."""
    tuning = specification.tuning
    while True:
        release_dead(study, tuning, specification.records)
        check_success(study, tuning)
        finished, running, failed = counts(study)
        if finished >= tuning.trials:
            return False
        if failed > tuning.max_failures:
            raise InputError(
                f"tuning: {failed} trials failed, more than tuning.max_failures ({tuning.max_failures}); the "
                f"last one: {_last_failure(study)}"
            )
        if finished + running < tuning.trials:
            return True
        time.sleep(POLL)


def _last_failure(study: Study) -> str:
    """Why the last trial that failed did so."""
    failed = study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
    return next(
        (trial.user_attrs["error"] for trial in reversed(failed) if "error" in trial.user_attrs),
        "interrupted",
    )


class _Objective:
    """Runs one trial; Optuna calls it."""

    def __init__(self, specification: Specification, study: Study, bench: Bench) -> None:
        self._specification = specification
        self._study = study
        self._bench = bench
        self._made_for = study.user_attrs[MADE_FOR]

    def __call__(self, trial: Trial) -> list[float]:
        tuning = self._specification.tuning
        if self._is_surplus(trial):
            trial.set_user_attr("surplus", True)
            raise _SurplusError
        attributes: dict[str, Any] = {**owner(), "alive": time.time(), "id": uuid.uuid4().hex}
        for key, value in attributes.items():
            trial.set_user_attr(key, value)
        attributes |= trial.user_attrs
        start = time.perf_counter()
        reported: dict[int, float] = {}
        with _heartbeat(trial):
            try:
                measured = self._measure(trial, reported)
            except optuna.TrialPruned:
                self._record(trial, attributes, "PRUNED", None, reported)
                raise
            except Exception as error:
                trial.set_user_attr("error", one_line(error)[:500])
                raise
        attributes |= {
            **trial.user_attrs, "measured": measured, "seconds": time.perf_counter() - start
        }  # fmt: skip
        values = [measured[name] for name in tuning.objectives]
        self._record(trial, attributes, "COMPLETE", values, reported)
        for key in ("measured", "seconds"):
            trial.set_user_attr(key, attributes[key])
        return values

    def _measure(self, trial: Trial, reported: dict[int, float]) -> dict[str, float]:
        tuning, stages = self._specification.tuning, self._specification.stages
        point = suggest(trial, tuning.space, stages)
        measured = []
        for number in range(tuning.seeds):
            watch = self._watch(trial, reported) if number == 0 else None
            seed = stages.seed + number
            measured.append(self._bench.measure(point, seed, tuning.measured, watch))
        of_success = REWARDS.of(stages.reward).needs_successes
        for name in tuning.measured:
            if name == "success_rate" or (name == "return_mean" and of_success):
                self._fill_in_success(trial, name, measured)
        means = {name: float(np.mean([row[name] for row in measured])) for name in tuning.measured}
        for name in tuning.objectives:
            if not np.isfinite(means[name]):
                raise FloatingPointError(
                    f"{name} is {means[name]}, which cannot be compared with other trials"
                )
        return means

    @staticmethod
    def _fill_in_success(trial: Trial, name: str, measured: list[dict[str, float]]) -> None:
        """Count success that the environment never mentioned as 0; ``check_success`` says when that is too much."""
        unknown = [row for row in measured if math.isnan(row[name])]
        if len(unknown) == len(measured):
            trial.set_user_attr(SUCCESS_UNKNOWN, True)
        for row in unknown:
            row[name] = 0.0

    def _watch(self, trial: Trial, reported: dict[int, float]) -> Any:
        """Return a function that reports validation metrics to the pruner; None if nothing can be pruned."""
        tuning = self._specification.tuning
        column = OBJECTIVES[tuning.objectives[0]].column
        if tuning.pruner == "none" or column is None:  # the parameters refuse a pruner without a column
            return None

        def watch(row: Mapping[str, float]) -> None:
            step = int(row["step"])
            reported[step] = row[column]
            trial.report(row[column], step)
            if trial.should_prune():
                raise optuna.TrialPruned(f"after step {step}")

        return watch

    def _is_surplus(self, trial: Trial) -> bool:
        """Whether enough trials started before this one; trials are numbered in order."""
        states = (*FINISHED, TrialState.RUNNING, TrialState.WAITING)
        earlier = sum(
            other.number < trial.number for other in self._study.get_trials(deepcopy=False, states=states)
        )
        return earlier >= self._specification.tuning.trials

    def _record(
        self,
        trial: Trial,
        attributes: dict[str, Any],
        state: str,
        values: list[float] | None,
        reported: dict[int, float],
    ) -> None:
        """Write the result to a file first, because the storage may be unreachable."""
        content = {
            "number": trial.number, "state": state, "values": values, "params": trial.params,
            "user_attrs": attributes, "intermediate_values": reported, MADE_FOR: self._made_for,
        }  # fmt: skip
        text = json.dumps(content, indent=1)
        path = record_path(self._specification.records, attributes)
        write_atomically(path, lambda partial: partial.write_text(text))


@contextmanager
def _heartbeat(trial: Trial) -> Iterator[None]:
    over = threading.Event()

    def beat() -> None:
        while not over.wait(PULSE):
            # Another machine ended the trial, or the database is unreachable: the trial's end reports it.
            with suppress(Exception):
                trial.set_user_attr("alive", time.time())

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


if __name__ == "__main__":
    end_with_parent()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    specification = Specification.from_json(sys.stdin.read())
    try:
        work(specification)
    except InputError as error:
        # For the parent process and for readers of the log.
        print(f"Error: {error}", flush=True)  # noqa: T201
        sys.exit(2)
